#include <array>
#include <chrono>

#include <fmt/format.h>

#include "apps/cli/bench_common.h"
#include "model/checkpoint.h"
#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct Options : BenchCommand {
  uint32_t length = 145;
};

struct Phase {
  const char* name;  // in JSON, with "_s"
  const char* what;
  double seconds = 0;
};

void run(const Options& o) {
  check_batch(1, o.length);
  std::vector<Phase> phases;
  const Clock::time_point start = Clock::now();
  Clock::time_point last = start;
  const auto done = [&](const char* name, const char* what) {
    const Clock::time_point now = Clock::now();
    phases.push_back({name, what, std::chrono::duration<double>(now - last).count()});
    last = now;
  };

  const Checkpoint checkpoint = Checkpoint::open(o.common.model_directory());
  done("checkpoint", "files mapped, headers read");
  const std::unique_ptr<Device> device = o.common.open();
  done("device", "device opened");
  Esm2 model(*device, Esm2Weights::load(*device, checkpoint, o.common.parsed_dtype()));
  done("weights", "weights converted and uploaded");
  const ProcessMemory loaded = process_memory();
  const Batch batch = random_batch(1, o.length);
  Forward forward = model.prepare(batch, {.layers = {model.config().layers}, .means = true});
  done("record", "forward pass recorded, kernels compiled or found in the cache");
  forward.upload(batch);
  forward.run();
  forward.download();
  done("forward", "forward pass run, result fetched");
  const double total = std::chrono::duration<double>(last - start).count();

  const MemoryReport memory = device->memory();
  const uint64_t stored = checkpoint.data_bytes(), weights = memory[MemoryLabel::weights].bytes;
  nlohmann::json json = bench_header(*device);
  nlohmann::json& load = json["load"];
  load = {{"dtype", o.common.dtype},
          {"length", o.length},
          {"total_s", total},
          {"file_bytes", stored},
          {"weights_bytes", weights},
          {"file_bytes_per_second", double(stored) / phases[2].seconds},
          {"host_peak_bytes", loaded.peak},
          {"host_own_bytes", loaded.own},
          {"host_mapped_bytes", loaded.mapped}};
  for (const Phase& phase : phases) load[fmt::format("{}_s", phase.name)] = phase.seconds;
  json["memory"] = cli::to_json(memory);
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("load {} as {}: from the files to the mean embedding of {} tokens\n", checkpoint.directory().string(),
             o.common.dtype, o.length);
  for (const Phase& phase : phases) fmt::print("  {:>10}  {}\n", format_ms(phase.seconds), phase.what);
  fmt::print("  {:>10}  in all\n", format_ms(total));
  fmt::print("  weights {} in the files, {} on the device, loaded at {:.2f} GB/s of the files\n", format_bytes(stored),
             format_bytes(weights), double(stored) / phases[2].seconds / 1e9);
  if (loaded.peak)
    fmt::print("  host memory {} at most while loading; then {} of its own and {} of files mapped\n",
               format_bytes(loaded.peak), format_bytes(loaded.own), format_bytes(loaded.mapped));
}

}  // namespace

void add_bench_load(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand("load", "From a model's files to the first result, phase by phase");
  command->add_option("--length", o->length, "Tokens of the sequence, <cls> and <eos> counted")->capture_default_str();
  command->add_flag("--no-pipeline-cache", o->common.no_pipeline_cache,
                    "Compile all kernels, as the first run on a device does");
  o->common.add_usual(*command);
  command->callback([o] { run(*o); });
}

}  // namespace turboesm::cli
