#include <fmt/format.h>

#include "apps/cli/commands.h"
#include "apps/cli/common.h"
#include "model/bench.h"
#include "version.h"

namespace turboesm::cli {
namespace {

struct Options {
  Common common;
  BenchOptions bench;
  uint64_t megabytes = 0;
  uint32_t rows = 16384, inputs = 1280, outputs = 5120;
  bool gelu = false;
  std::string size;
  uint32_t batch = 1, length = 1024, seed = 1;
};

nlohmann::json to_json(const Timing& t) {
  return {{"median_s", t.median}, {"fastest_s", t.fastest}, {"slowest_s", t.slowest}, {"repeats", t.repeats}};
}

nlohmann::json header(const Device& device) {
  return {{"turboesm", fmt::format("{} ({})", TURBOESM_VERSION, TURBOESM_COMMIT)},
          {"device", cli::to_json(device.info())}};
}

std::string format_ms(double seconds) {
  const double ms = seconds * 1e3;
  return fmt::format("{:.{}f} ms", ms, ms < 1 ? 4 : ms < 100 ? 3 : 1);
}

std::string spread(const Timing& t) {
  return fmt::format("{} (median of {}, {} to {})", format_ms(t.median), t.repeats, format_ms(t.fastest),
                     format_ms(t.slowest));
}

void run_copy(const Options& o) {
  const std::unique_ptr<Device> device = o.common.open();
  const uint64_t megabytes = o.megabytes ? o.megabytes : runs_on_gpu(*device) ? 1024 : 256;
  const CopyBench bench = bench_copy(*device, megabytes << 20, o.bench);
  nlohmann::json json = header(*device);
  json["copy"] = {
      {"bytes", bench.bytes}, {"bytes_per_second", bench.bytes_per_second()}, {"time", to_json(bench.device)}};
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("copy of {}: {}, {:.1f} GB/s read and written\n", format_bytes(bench.bytes), spread(bench.device),
             bench.bytes_per_second() / 1e9);
}

void run_linear(const Options& o) {
  const std::unique_ptr<Device> device = o.common.open();
  const DType dtype = o.common.parsed_dtype();
  const LinearBench bench = bench_linear(*device, o.rows, o.inputs, o.outputs, dtype, o.gelu, o.bench);
  nlohmann::json json = header(*device);
  json["linear"] = {{"rows", o.rows},
                    {"inputs", o.inputs},
                    {"outputs", o.outputs},
                    {"dtype", o.common.dtype},
                    {"gelu", o.gelu},
                    {"flops_per_second", bench.flops_per_second()},
                    {"time", to_json(bench.device)}};
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("linear {} x {} x {} {}{}: {}, {:.2f} TFLOP/s\n", o.rows, o.inputs, o.outputs, o.common.dtype,
             o.gelu ? " gelu" : "", spread(bench.device), bench.flops_per_second() / 1e12);
}

void run_prefill(const Options& o) {
  check_batch(o.batch, o.length);
  const DType dtype = o.common.parsed_dtype();
  const Esm2Config config = o.common.config_of(o.size);
  const std::unique_ptr<Device> device = o.common.open();
  const DeviceLimits limits = measure_limits(*device, dtype);
  Esm2 model(*device, Esm2Weights::random(*device, config, dtype, o.seed));
  BenchOptions options = o.bench;
  options.profile = o.common.profile;
  const PrefillBench bench = bench_prefill(model, o.batch, o.length, options);

  const double product_floor = bench.flops / limits.flops_per_second;
  const double memory_floor = double(bench.bytes) / limits.bytes_per_second;
  const double floor = std::max(product_floor, memory_floor);
  nlohmann::json json = header(*device);
  json["prefill"] = {{"parameters", config.parameter_count()},
                     {"size", o.size},
                     {"dtype", o.common.dtype},
                     {"batch", o.batch},
                     {"length", o.length},
                     {"device_time", to_json(bench.device)},
                     {"host_time", to_json(bench.host)},
                     {"residues_per_second", bench.residues_per_second()},
                     {"flops", bench.flops},
                     {"flops_per_second", bench.flops_per_second()},
                     {"floor_s", floor},
                     {"share_of_limit", floor / bench.device.median}};
  json["limits"] = {{"bytes_per_second", limits.bytes_per_second}, {"flops_per_second", limits.flops_per_second}};
  json["memory"] = cli::to_json(device->memory());
  for (const auto& row : bench.profile.rows())
    json["profile"].push_back({{"operation", row.name},
                               {"count", row.count},
                               {"seconds", row.seconds},
                               {"flops", row.flops},
                               {"bytes", row.bytes}});
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("prefill {} {}, {} x {} tokens (random weights)\n", o.size.empty() ? "model" : o.size, o.common.dtype,
             o.batch, o.length);
  fmt::print("  device  {}\n  host    {}\n", spread(bench.device), spread(bench.host));
  fmt::print("  {} residues/s, {:.2f} TFLOP/s\n", format_count(bench.residues_per_second()),
             bench.flops_per_second() / 1e12);
  fmt::print("  floor   {}: {:.1f} % reached (products {} at {:.2f} TFLOP/s, memory {} at {:.0f} GB/s, as measured)\n",
             format_ms(floor), 100 * floor / bench.device.median, format_ms(product_floor),
             limits.flops_per_second / 1e12, format_ms(memory_floor), limits.bytes_per_second / 1e9);
  if (o.common.profile) print_profile(bench.profile);
}

void add_timing(CLI::App& command, Options& o) {
  command.add_option("--seconds", o.bench.seconds, "Time to spend on repeats")->capture_default_str();
  o.common.add_device(command);
  o.common.add_json(command);
  o.common.add_quiet(command);
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Measure this device: medians after a warm-up");
  bench->require_subcommand(1);

  auto copy = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("copy", "Memory bandwidth: a copy inside the device");
  command->add_option("--megabytes", copy->megabytes, "Size of the source (default: 1024, on the CPU 256)");
  add_timing(*command, *copy);
  command->callback([copy] { run_copy(*copy); });

  auto linear = std::make_shared<Options>();
  command = bench->add_subcommand("linear", "One linear layer with bias");
  command->add_option("--rows", linear->rows, "Rows of x (tokens)")->capture_default_str();
  command->add_option("--inputs", linear->inputs, "Columns of x")->capture_default_str();
  command->add_option("--outputs", linear->outputs, "Columns of y")->capture_default_str();
  command->add_flag("--gelu", linear->gelu, "With GELU");
  linear->common.add_dtype(*command);
  add_timing(*command, *linear);
  command->callback([linear] { run_linear(*linear); });

  auto prefill = std::make_shared<Options>();
  command = bench->add_subcommand("prefill", "The whole forward pass to the logits, with random weights");
  command->add_option("--size", prefill->size, "8M, 35M, 150M, 650M, 3B or 15B (default: the sizes of --model)");
  command->add_option("--batch", prefill->batch, "Sequences at once")->capture_default_str();
  command->add_option("--length", prefill->length, "Tokens a sequence, <cls> and <eos> counted")->capture_default_str();
  command->add_option("--seed", prefill->seed, "Of the random weights")->capture_default_str();
  prefill->common.add_model(*command);
  prefill->common.add_dtype(*command);
  prefill->common.add_profile(*command);
  add_timing(*command, *prefill);
  command->callback([prefill] { run_prefill(*prefill); });
}

}  // namespace turboesm::cli
