// generate, calibrate and compare as their users run them.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <nlohmann/json.hpp>

#include "tests/cli/embedding.h"
#include "tests/options.h"

namespace turboesm {
namespace {

using namespace test;
using Catch::Matchers::ContainsSubstring;

void check_refusal(const Arguments& arguments, int code, std::initializer_list<std::string_view> parts) {
  const ProcessResult result = run(arguments);
  INFO(result.err);
  CHECK(result.exit_code == code);
  CHECK(result.out.empty());
  for (std::string_view part : parts) CHECK_THAT(result.err, ContainsSubstring(std::string(part)));
}

std::string proteins() { return (test_options().source_dir / "tests" / "fixtures" / "proteins").string(); }

TEST_CASE("generate writes the same FASTA for the same seed", "[cli]") {
  const Arguments command{"generate", "--device", "cpu", "--length", "24", "-n", "3", "--prompt", "MKV", "--seed"};
  const ProcessResult first = run(command + Arguments{"5"}), again = run(command + Arguments{"5"});
  INFO(first.err);
  REQUIRE(first.exit_code == 0);
  CHECK(first.out == again.out);
  CHECK_THAT(first.out, ContainsSubstring(">generated_1 ") && ContainsSubstring(">generated_3 "));
  CHECK_THAT(first.out, ContainsSubstring("\nMKV") && ContainsSubstring("log_probability=-") &&
                            ContainsSubstring("pseudo_perplexity="));
  CHECK_THAT(first.err, ContainsSubstring("cache turbo: 3.50 bits") && ContainsSubstring("took cpu"));
  const ProcessResult other = run(command + Arguments{"6"});
  REQUIRE(other.exit_code == 0);
  CHECK(other.out != first.out);
}

TEST_CASE("generate with temperature 0 takes the likeliest residue whatever the seed", "[cli]") {
  const Arguments command{"generate",
                          "--device",
                          "cpu",
                          "--length",
                          "12",
                          "--temperature",
                          "0",
                          "--kv",
                          "f32",
                          "--quiet",
                          "--no-pseudo-perplexity",
                          "--seed"};
  const ProcessResult first = run(command + Arguments{"1"});
  REQUIRE(first.exit_code == 0);
  CHECK(first.out == run(command + Arguments{"2"}).out);
}

TEST_CASE("generate refuses what makes no sense", "[cli]") {
  check_refusal({"generate", "--kv", "turbo-9"}, 2, {"turbo-9", "turboesm"});
  check_refusal({"generate", "--length", "0"}, 2, {"--length 0"});
  check_refusal({"generate", "--length", "3", "--prompt", "MKVL"}, 2, {"--prompt", "4 residues"});
  check_refusal({"generate", "--prompt", "MK1"}, 3, {"--prompt", "'1'"});
  check_refusal({"generate", "--top-p", "0"}, 2, {"--top-p"});
  check_refusal({"generate", "--temperature", "-1"}, 2, {"--temperature"});
  check_refusal({"generate", "-n", "0"}, 2, {"-n 0"});
}

TEST_CASE("an output that cannot be written is found before any work is done", "[cli]") {
  const std::string output = (test::TemporaryFolder() / "gone" / "output").string(), model = "no-such-model";
  for (const std::vector<std::string>& command : {std::vector<std::string>{"generate", "-o", output},
                                                  {"calibrate", "none.fasta", "-o", output},
                                                  {"compare", "none.fasta", "--plot", output}}) {
    auto arguments = command;
    arguments.insert(arguments.end(), {"--model", model});
    check_refusal(arguments, 3, {output, "cannot"});
  }
}

TEST_CASE("a cache that needs a calibration asks for it, and takes no other model's", "[cli]") {
  const std::string model = tiny_model().string();
  check_refusal({"generate", "--model", model, "--device", "cpu", "--length", "4"}, 3, {"model.kv.safetensors"});
  const std::string other =
      (test_options().source_dir / "model" / "pretrained" / "swissprot_t8_14M" / "model.kv.safetensors").string();
  check_refusal({"generate", "--model", model, "--device", "cpu", "--length", "4", "--calibration", other}, 3,
                {other, "another model"});
  const ProcessResult without =
      run({"generate", "--model", model, "--device", "cpu", "--length", "4", "--kv", "wht3", "--quiet"});
  INFO(without.err);
  CHECK(without.exit_code == 0);
}

TEST_CASE("calibrate makes what the calibrated presets need, the same on every run", "[cli]") {
  const TemporaryFolder folder;
  const std::string model = tiny_model("tiny_hd24").string();
  const auto calibrate = [&](const std::string& output) {
    return run({"calibrate", proteins() + "/calibration.fasta", "-o", output, "--sequences", "8", "--max-length", "200",
                "--device", "cpu", "--model", model});
  };
  const std::string first = (folder / "a.kv.safetensors").string(), again = (folder / "b.kv.safetensors").string();
  const ProcessResult result = calibrate(first);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.out, ContainsSubstring("8 sequences") && ContainsSubstring("before RoPE"));
  REQUIRE(calibrate(again).exit_code == 0);
  CHECK(read_file(first) == read_file(again));
  for (const char* preset : {"turbo", "turboesm", "turboquant-2.5"}) {
    const ProcessResult generated = run({"generate", "--model", model, "--device", "cpu", "--length", "6", "--kv",
                                         preset, "--calibration", first, "--quiet"});
    INFO(preset << ": " << generated.err);
    CHECK(generated.exit_code == 0);
  }
  check_refusal({"calibrate", proteins() + "/calibration.fasta", "-o", first, "--max-length", "5", "--device", "cpu"},
                3, {"5 tokens"});
}

// The figures are those of a few proteins; docs/kv-cache.md has those of all.
TEST_CASE("compare ranks the caches of the default model", "[cli]") {
  const TemporaryFolder folder;
  const std::string json = (folder / "out.json").string(), plot = (folder / "out.svg").string();
  const ProcessResult result = run({"compare", proteins() + "/eval.fasta", "--max-proteins", "3", "--device", "cpu",
                                    "--kv", "f16,turboesm,turbo,turbo-s", "--json", json, "--plot", plot, "--quiet"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.out, ContainsSubstring("turboesm") && ContainsSubstring("uniform attention"));
  CHECK(read_file(plot).starts_with("<svg"));
  const nlohmann::json presets = nlohmann::json::parse(read_file(json))["presets"];
  REQUIRE(presets.size() == 5);
  const auto kl = [&](size_t i) { return presets[i]["residue"]["kl"].get<double>(); };
  const double f16 = kl(0), turboesm = kl(1), turbo = kl(2), small = kl(3), uniform = kl(4);
  CHECK(f16 <= 1e-4);
  CHECK(turbo <= 0.12 * turboesm);
  CHECK(small <= 0.15 * turboesm);
  CHECK(uniform > 5 * turboesm);
  CHECK(presets[2]["bits_per_value"] == 3.5);
  CHECK(presets[2]["hidden_cosine"].get<double>() >= 0.99);
}

TEST_CASE("plan and bench decode know the cache", "[cli]") {
  const ProcessResult plan =
      run({"plan", "--size", "650M", "--kv", "turboesm", "--length", "1024", "--device", "cpu", "--json", "-", "-q"});
  REQUIRE(plan.exit_code == 0);
  const nlohmann::json planned = nlohmann::json::parse(plan.out);
  CHECK(planned["by_label"]["kv"].get<uint64_t>() <= uint64_t(36.2 * 1024 * 1024));
  const ProcessResult bench =
      run({"bench", "decode", "--kv", "turbo,turboesm", "--batch", "2", "--context", "70", "--heads", "2", "--head-dim",
           "24", "--device", "cpu", "--seconds", "0.05", "--json", "-", "-q"});
  INFO(bench.err);
  REQUIRE(bench.exit_code == 0);
  const nlohmann::json decode = nlohmann::json::parse(bench.out)["decode"];
  REQUIRE(decode.size() == 3);
  CHECK(decode[2]["kv"] == "f16");
  CHECK(decode[1]["cache_bytes"] == 2 * 70 * 2 * 24 * 7 / 8);  // 4 and 3 bits, no scales
}

TEST_CASE("bench generate decodes to the length asked for, in the memory that was planned", "[cli]") {
  const ProcessResult bench = run({"bench", "generate", "--kv", "turbo", "--batch", "3", "--prompt", "5", "--length",
                                   "20", "--device", "cpu", "--json", "-", "-q"});
  INFO(bench.err);
  REQUIRE(bench.exit_code == 0);
  const nlohmann::json report = nlohmann::json::parse(bench.out);
  const nlohmann::json& generate = report["generate"];
  CHECK(generate["steps"] == 15);
  CHECK(generate["residues_per_second"].get<double>() > 0);
  const double planned = generate["planned_bytes"], peak = report["memory"]["total"]["peak"];
  CHECK(std::abs(peak / planned - 1) < 0.05);
  check_refusal(run({"bench", "generate", "--prompt", "8", "--length", "8", "--device", "cpu"}), 2, {"--prompt 8"});
}

}  // namespace
}  // namespace turboesm
