// What `bench` measures beside the speed of one operation (commands_test.cpp): the roofline, whole files of proteins,
// and loading.
#include <algorithm>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <nlohmann/json.hpp>

#include "tests/cli/embedding.h"
#include "tests/options.h"

namespace turboesm {
namespace {

using namespace test;
using Catch::Approx;
using nlohmann::json;

json bench(const Arguments& arguments) {
  const ProcessResult result =
      run(Arguments{"bench"} + arguments + Arguments{"--device", "cpu", "--quiet", "--json", "-"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  return json::parse(result.out);
}

// The row's floors follow from its work and the limits of the same report, and the share from them and `seconds`.
void check_roofline(const json& report, const json& row, double flops, double bytes, double seconds) {
  const json& limits = report.at("limits");
  const double memory = bytes / double(limits.at("bytes_per_second"));
  const double arithmetic = flops / double(limits.at("flops_per_second"));
  CHECK(row.at("flops") == Approx(flops));
  CHECK(row.at("least_bytes") == Approx(bytes));
  CHECK(row.at("memory_floor_s") == Approx(memory));
  CHECK(row.at("arithmetic_floor_s") == Approx(arithmetic));
  CHECK(row.at("floor_s") == Approx(std::max(memory, arithmetic)));
  CHECK(row.at("bound_by") == (memory > arithmetic ? "memory" : "arithmetic"));
  CHECK(row.at("share_of_limit") == Approx(std::max(memory, arithmetic) / seconds));
}

TEST_CASE("--roofline relates a copy, a product and attention to what they cannot do without", "[cli]") {
  const Arguments fast{"--seconds", "0.01", "--roofline"};
  const json copy = bench(Arguments{"copy", "--megabytes", "1"} + fast);
  check_roofline(copy, copy.at("copy"), 0, 2 << 20, copy.at("copy").at("time").at("median_s"));

  const json linear =
      bench(Arguments{"linear", "--rows", "32", "--inputs", "64", "--outputs", "128", "--dtype", "bf16"} + fast);
  const double operands = 2.0 * (32 * 64 + 64 * 128 + 32 * 128) + 4 * 128;  // the bias is f32
  check_roofline(linear, linear.at("linear"), 2.0 * 32 * 64 * 128, operands,
                 linear.at("linear").at("time").at("median_s"));

  const json attention =
      bench(Arguments{"attention", "--batch", "3", "--length", "40", "--heads", "2", "--head-dim", "16"} + fast);
  const double tensor = 4.0 * 3 * 40 * 2 * 16, cu_seqlens = 4 * 4;
  check_roofline(attention, attention.at("attention"), 4.0 * 3 * 40 * 40 * 2 * 16, 4 * tensor + cu_seqlens,
                 attention.at("attention").at("time").at("median_s"));
}

TEST_CASE("--roofline stands beside every cache of bench decode and a step of bench generate", "[cli]") {
  const json decode = bench({"decode", "--kv", "turbo", "--batch", "2", "--context", "64", "--heads", "2", "--head-dim",
                             "16", "--seconds", "0.01", "--roofline"});
  REQUIRE(decode.at("decode").size() == 2);
  for (const json& row : decode.at("decode")) {
    const double queries_and_outputs = 2 * 4.0 * 2 * 2 * 16;
    check_roofline(decode, row, 4.0 * 2 * 64 * 2 * 16, double(row.at("cache_bytes")) + queries_and_outputs,
                   row.at("time").at("median_s"));
  }

  const json report = bench({"generate", "--size", "8M", "--kv", "f16", "--batch", "3", "--prompt", "4", "--length",
                             "12", "--roofline", "--profile"});
  const json& generate = report.at("generate");
  const double parameters = double(report.at("memory").at("weights").at("peak")) / 4, cached = 3 * 8;
  CHECK(double(generate.at("flops")) / (2 * 6 * parameters) == Approx(1).epsilon(0.02));
  CHECK(double(generate.at("least_bytes")) - 4 * parameters == Approx(cached * 6 * 2 * 320 * 2).epsilon(0.5));
  const double step = double(generate.at("decode_time").at("median_s")) / 8;
  CHECK(generate.at("step_s") == Approx(step));
  CHECK(generate.at("share_of_limit") == Approx(double(generate.at("floor_s")) / step));
  CHECK(generate.at("prefill_time").at("repeats") == generate.at("decode_time").at("repeats"));
  const auto count_of = [&](std::string_view operation) {
    for (const json& row : report.at("profile"))
      if (row.at("operation") == operation) return uint32_t(row.at("count"));
    return 0u;
  };
  CHECK(count_of("kv_append") == 6);  // one step, of six layers
  CHECK(count_of("kv_attention") == 6);
  CHECK(count_of("sample") == 1);
}

TEST_CASE("a report names the program, its commit and the device", "[cli]") {
  const json report = bench({"copy", "--megabytes", "1", "--seconds", "0.01"});
  const std::string program = report.at("turboesm");
  CHECK(run({"--version"}).out == "turboesm " + program + "\n");
  // A tarball has no commit.
  const std::string folder = test_options().source_dir.string();
  const ProcessResult git =
      run({"git", "-C", folder, "rev-parse", "--show-toplevel", "HEAD"}, {.program = "/usr/bin/env"});
  if (git.exit_code == 0 && git.out.starts_with(folder + "\n")) CHECK(program.find("unknown") == std::string::npos);
  for (const char* field : {"spec", "name", "driver"}) CHECK(!std::string(report.at("device").at(field)).empty());
  CHECK(report.at("copy").at("time").at("warm_up") >= 1);
}

TEST_CASE("without --roofline no limit is measured", "[cli]") {
  const json report = bench({"prefill", "--size", "8M", "--length", "8", "--seconds", "0.01"});
  CHECK(!report.contains("limits"));
  CHECK(!report.at("prefill").contains("floor_s"));
  CHECK(report.at("prefill").at("flops") > 0);
  CHECK(report.at("prefill").at("least_bytes") > report.at("memory").at("weights").at("peak"));
}

TEST_CASE("bench embed packs a file's proteins as embed does", "[cli]") {
  const TemporaryFolder folder;
  const std::vector<size_t> lengths{30, 5, 70, 11, 30, 8, 64};
  const std::string fasta = folder.write("proteins.fasta", random_fasta(lengths)).string();
  const Arguments common{"--model", tiny_model().string(), "--max-tokens", "100"};
  const json report = bench(Arguments{"embed", fasta, "--seconds", "0.01", "--roofline", "--profile"} + common);
  const json& row = report.at("embed");
  CHECK(row.at("sequences") == 7);
  CHECK(row.at("tokens") == 30 + 5 + 70 + 11 + 30 + 8 + 64 + 7 * 2);
  CHECK(row.at("first_s") > 0);
  CHECK(row.at("host_time").at("repeats") >= 3);
  const double seconds = row.at("host_time").at("median_s");
  CHECK(row.at("device_time").at("fastest_s") > 0);
  CHECK(row.at("device_time").at("fastest_s") <= row.at("host_time").at("fastest_s"));
  CHECK(row.at("tokens_per_second") == Approx(double(row.at("tokens")) / seconds));
  CHECK(row.at("residues_per_second") == Approx(218 / seconds));
  const double means = 4.0 * 7 * 64, weights = report.at("memory").at("weights").at("peak");
  check_roofline(report, row, row.at("flops"), double(row.at("batches")) * weights + means, seconds);
  CHECK(!report.at("profile").empty());
  for (const json& operation : report.at("profile"))
    check_roofline(report, operation, operation.at("flops"), operation.at("least_bytes"), operation.at("seconds"));

  const ProcessResult embedded = run(embed_arguments(fasta, folder / "out.safetensors") +
                                     Arguments{"--max-tokens", "100", "--quiet", "--json", "-"});
  REQUIRE(embedded.exit_code == 0);
  CHECK(json::parse(embedded.out).at("report").at("batches") == row.at("batches"));
}

TEST_CASE("bench embed refuses a file without records", "[cli]") {
  const TemporaryFolder folder;
  const std::string empty = folder.write("empty.fasta", "").string();
  check_refusal(run({"bench", "embed", empty, "--device", "cpu", "--quiet"}), 3, {empty});
}

TEST_CASE("bench load goes from the files to the first result in phases, and holds the weights once", "[cli]") {
  const json report = bench({"load", "--dtype", "f32", "--length", "20"});
  const json& load = report.at("load");
  double sum = 0;
  for (const char* phase : {"checkpoint_s", "device_s", "weights_s", "record_s", "forward_s"}) {
    CHECK(load.at(phase) > 0);
    sum += double(load.at(phase));
  }
  CHECK(load.at("total_s") == Approx(sum));
  const uint64_t stored = load.at("file_bytes"), weights = load.at("weights_bytes");
  CHECK(weights == report.at("memory").at("weights").at("peak"));
  CHECK(double(weights) / double(stored) == Approx(2).epsilon(0.01));  // the default model is stored as f16
#ifdef __linux__
  // On the CPU back end device memory is host memory: there is no room for a second copy in either dtype.
  const uint64_t own = load.at("host_own_bytes"), peak = load.at("host_peak_bytes");
  CHECK(own > weights);
  CHECK(own < weights + stored / 2);
  CHECK(peak < weights + stored + stored / 2);
#endif
}

}  // namespace
}  // namespace turboesm
