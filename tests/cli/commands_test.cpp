// What every command answers: help, versions, devices, plans, measurements, and usage errors.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/cli/embedding.h"

namespace turboesm {
namespace {

using namespace test;
using nlohmann::json;

ProcessResult run_well(const Arguments& arguments) {
  ProcessResult result = run(arguments);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  return result;
}

json run_json(const Arguments& arguments) { return json::parse(run_well(arguments + Arguments{"--json", "-"}).out); }

TEST_CASE("--version and --help answer on standard output", "[cli]") {
  CHECK(run_well({"--version"}).out.starts_with("turboesm "));
  const std::string help = run_well({"--help"}).out;
  for (const char* command : {"devices", "embed", "plan", "bench"}) {
    CHECK(help.find(command) != std::string::npos);
    const ProcessResult own = run_well({command, "--help"});
    CHECK(own.out.find("Usage: ") != std::string::npos);
    CHECK(own.err.empty());
  }
}

TEST_CASE("what is no command, option or value is refused and named", "[cli]") {
  check_refusal(run({"embbed"}), 2, {"embbed", "--help"});
  check_refusal(run({"--frobnicate"}), 2, {"--frobnicate"});
  check_refusal(run({}), 2, {"--help"});
  check_refusal(run({"embed", "in.fasta", "-o", "out.npz", "--frobnicate"}), 2, {"--frobnicate"});
  check_refusal(run({"embed", "in.fasta"}), 2, {"--output"});
  check_refusal(run({"embed", "in.fasta", "-o", "out.npz", "--include", "mean,hidden"}), 2, {"--include", "hidden"});
  check_refusal(run({"embed", "in.fasta", "-o", "out.npz", "--overlong", "cut"}), 2, {"--overlong", "cut"});
  check_refusal(run({"embed", "in.fasta", "-o", "out.npz", "--max-length", "-5"}), 2, {"--max-length", "-5"});
  check_refusal(run({"plan", "--dtype", "f64"}), 2, {"--dtype", "f64"});
  check_refusal(run({"plan", "--size", "7B"}), 2, {"7B", "650M"});
  check_refusal(run({"plan", "--length", "1", "--device", "cpu"}), 2, {"--length 1"});
  check_refusal(run({"plan", "--batch", "4000000", "--length", "1024", "--device", "cpu"}), 2, {"--batch 4000000"});
  check_refusal(run({"bench", "softmax"}), 2, {"softmax"});
}

TEST_CASE("a device that is not there is named and never replaced by another", "[cli]") {
  check_refusal(run({"plan", "--device", "nonsense"}), 2, {"nonsense", "cpu"});
  check_refusal(run({"plan", "--device", "cpu:x"}), 2, {"cpu:x", "auto"});
  check_refusal(run({"plan", "--device", "vulkan:99"}), 4, {"vulkan:99"});
  // A build without CUDA knows no such back end; one with it may lack the card.
  const ProcessResult cuda = run({"plan", "--device", "cuda:99"});
  check_refusal(cuda, cuda.exit_code == 4 ? 4 : 2, {"cuda"});
}

TEST_CASE("devices lists the CPU, as text and as JSON", "[cli]") {
  CHECK(run_well({"devices"}).out.find("\ncpu ") != std::string::npos);
  const json list = run_json({"devices"});
  CHECK(list.at("problems").is_array());
  bool cpu = false;
  for (const json& device : list.at("devices")) {
    for (const char* field : {"spec", "name", "driver", "kind", "memory_bytes", "matrix_cores", "features", "problem"})
      CHECK(device.contains(field));
    cpu |= device.at("spec") == "cpu" && device.at("kind") == "CPU" && device.at("memory_bytes") > 0;
  }
  CHECK(cpu);
}

uint64_t planned(const json& plan, const char* label) { return plan.at("by_label").at(label); }

TEST_CASE("plan: the weights of 650M take their parameters' bytes", "[cli]") {
  const auto plan = [](const char* dtype) {
    return run_json({"plan", "--size", "650M", "--device", "cpu", "--dtype", dtype});
  };
  const json f32 = plan("f32"), f16 = plan("f16"), bf16 = plan("bf16");
  const double parameters = f32.at("parameters");
  CHECK(parameters > 650e6);
  CHECK(parameters < 653e6);
  CHECK(std::abs(double(planned(f32, "weights")) / (4 * parameters) - 1) < 0.001);
  // Vectors and the token embedding stay f32.
  CHECK(std::abs(double(planned(f16, "weights")) / (2 * parameters) - 1) < 0.005);
  CHECK(planned(f16, "weights") == planned(bf16, "weights"));
  for (const char* field : {"length", "batch", "total_bytes", "budget_bytes", "fits", "max_batch", "device", "rows"})
    CHECK(f32.contains(field));
}

TEST_CASE("plan: rows add up to labels and to the total", "[cli]") {
  const json plan = run_json({"plan", "--device", "cpu", "--include", "residues,logits,contacts"});
  uint64_t rows = 0, labels = 0;
  for (const json& row : plan.at("rows")) rows += uint64_t(row.at("bytes"));
  for (const auto& [label, bytes] : plan.at("by_label").items()) labels += uint64_t(bytes);
  CHECK(rows == plan.at("total_bytes"));
  CHECK(labels == plan.at("total_bytes"));
  CHECK(plan.at("fits") == (plan.at("total_bytes") <= plan.at("budget_bytes")));
}

TEST_CASE("plan: activations grow linearly with length and batch", "[cli]") {
  const auto activations = [](uint32_t length, uint32_t batch) {
    return double(planned(run_json({"plan", "--size", "650M", "--device", "cpu", "--length", std::to_string(length),
                                    "--batch", std::to_string(batch)}),
                          "activations"));
  };
  const double once = activations(1000, 1), more = activations(2000, 1) - once;
  CHECK(more > 1000 * 1280 * 4 * 7);  // residual stream, its norm, the feed-forward layer (four of them), last state
  CHECK(more < 1.1 * 1000 * 1280 * 4 * 7);
  CHECK(std::abs((activations(8000, 1) - once) / more - 7) < 0.01);
  CHECK(std::abs((activations(1000, 8) - once) / more - 7) < 0.1);  // the RoPE table is shared
}

TEST_CASE("plan prints a table, and the same JSON into a file", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder / "plan.json";
  const Arguments arguments{"plan", "--size", "8M", "--device", "cpu"};
  const ProcessResult result = run_well(arguments + Arguments{"--json", file.string(), "--quiet"});
  CHECK(result.out.find("weights") != std::string::npos);
  CHECK(result.out.find("fits") != std::string::npos);
  CHECK(result.err.empty());
  CHECK(folder.list() == std::vector<std::string>{"plan.json"});
  json written = json::parse(read_file(file)), printed = run_json(arguments);
  for (json* plan : {&written, &printed})
    for (const char* field : {"budget_bytes", "max_batch"}) plan->erase(field);  // vary with what else the machine does
  CHECK(written == printed);
}

TEST_CASE("--json into a folder that is not there fails before the work", "[cli]") {
  const TemporaryFolder folder;
  const std::string file = (folder / "missing/plan.json").string();
  check_refusal(run({"plan", "--size", "8M", "--device", "cpu", "--json", file}), 3, {file});
  check_refusal(run({"plan", "--size", "8M", "--device", "cpu", "--json", folder.path().string()}), 3,
                {folder.path().string(), "directory"});
  CHECK(folder.list().empty());
}

void check_timing(const json& timing) {
  CHECK(timing.at("fastest_s") > 0);
  CHECK(timing.at("fastest_s") <= timing.at("median_s"));
  CHECK(timing.at("median_s") <= timing.at("slowest_s"));
  CHECK(timing.at("repeats") >= 1);
}

TEST_CASE("bench copy reports bytes per second", "[cli]") {
  const Arguments arguments{"bench", "copy", "--device", "cpu", "--megabytes", "1", "--seconds", "0.01"};
  CHECK(run_well(arguments).out.find("GB/s") != std::string::npos);
  const json report = run_json(arguments);
  CHECK(report.at("device").at("spec") == "cpu");
  CHECK(report.at("copy").at("bytes") == 1 << 20);
  CHECK(report.at("copy").at("bytes_per_second") > 0);
  check_timing(report.at("copy").at("time"));
}

TEST_CASE("bench linear reports operations per second", "[cli]") {
  const std::string dtype = GENERATE("f32", "bf16"), epilogue = GENERATE("gelu", "none");
  const json report = run_json({"bench", "linear", "--device", "cpu", "--rows", "33", "--inputs", "64", "--outputs",
                                "40", "--dtype", dtype, "--epilogue", epilogue, "--seconds", "0.01"});
  const json& linear = report.at("linear");
  CHECK(linear.at("rows") == 33);
  CHECK(linear.at("inputs") == 64);
  CHECK(linear.at("outputs") == 40);
  CHECK(linear.at("dtype") == dtype);
  CHECK(linear.at("epilogue") == epilogue);
  CHECK(linear.at("flops_per_second") > 0);
  check_timing(linear.at("time"));
}

TEST_CASE("bench prefill reports speed, limits and memory", "[cli]") {
  const json report = run_json({"bench", "prefill", "--size", "8M", "--device", "cpu", "--batch", "2", "--length", "18",
                                "--seconds", "0.01", "--profile", "--roofline"});
  const json& prefill = report.at("prefill");
  CHECK(prefill.at("size") == "8M");
  CHECK(prefill.at("batch") == 2);
  CHECK(prefill.at("length") == 18);
  for (const char* field : {"parameters", "residues_per_second", "flops", "flops_per_second", "floor_s"})
    CHECK(prefill.at(field) > 0);
  CHECK(prefill.at("share_of_limit") > 0);
  check_timing(prefill.at("device_time"));
  check_timing(prefill.at("host_time"));
  CHECK(report.at("limits").at("bytes_per_second") > 0);
  CHECK(report.at("limits").at("flops_per_second") > 0);
  CHECK(report.at("memory").at("weights").at("peak") > 4 * 7'000'000);
  bool linear = false;
  for (const json& row : report.at("profile"))
    linear |= std::string(row.at("operation")).starts_with("linear ") && row.at("seconds") > 0;
  CHECK(linear);
}

}  // namespace
}  // namespace turboesm
