#include <chrono>

#include <fmt/format.h>

#include "apps/cli/commands.h"
#include "apps/cli/common.h"
#include "apps/cli/progress.h"
#include "model/calibrate.h"
#include "model/fasta.h"
#include "model/kv_file.h"

namespace turboesm::cli {
namespace {

struct Options {
  Common common;
  std::string input, output;
  CalibrateOptions calibrate;
};

nlohmann::json to_json(const KvStatistics& statistics) {
  nlohmann::json shares = nlohmann::json::array();
  for (uint32_t l = 0; l < statistics.layers.size(); ++l) shares.push_back(statistics.position_mean_share(l));
  return {{"sequences", statistics.sequences}, {"tokens", statistics.tokens}, {"position_mean_share", shares}};
}

void print(const KvStatistics& statistics, const std::string& output) {
  fmt::print("{} sequences, {} tokens\n", statistics.sequences, statistics.tokens);
  fmt::print("share of K's energy that its mean before RoPE carries, by layer:");
  for (uint32_t l = 0; l < statistics.layers.size(); ++l)
    fmt::print(" {:.0f} %", 100 * statistics.position_mean_share(l));
  fmt::print("\nwritten to {}\n", output);
}

void run(const Options& o) {
  FastaReader input(o.input);
  const Checkpoint checkpoint = Checkpoint::open(o.common.model_directory());
  std::vector<std::vector<int32_t>> sequences;
  for (FastaRecord record; input.next(record);)
    sequences.push_back(checkpoint.tokenizer().encode(record.sequence, record.id).ids);
  const std::unique_ptr<Device> device = o.common.open();
  Esm2 model(*device, Esm2Weights::load(*device, checkpoint, o.common.parsed_dtype()));
  KvStatistics statistics;
  {
    Progress progress(!o.common.quiet);
    statistics = calibrate(model, checkpoint.hash(), sequences, o.calibrate,
                           [&](double share) { progress.update(share, "calibrating"); });
  }
  save_kv_statistics(statistics, o.output);
  o.common.write_json(to_json(statistics));
  if (!o.common.json_on_stdout() && !o.common.quiet) print(statistics, o.output);
}

}  // namespace

void add_calibrate(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("calibrate", "Learn from proteins what the presets of a quantized KV cache need of a model");
  command->add_option("input", o->input, "FASTA file, gzip too (-: standard input)")->required()->type_name("IN.fasta");
  command->add_option("-o,--output", o->output, "Result; model.kv.safetensors in the model's folder is found by itself")
      ->required()
      ->check(check_output_file)
      ->type_name("OUT.kv.safetensors");
  command->add_option("--sequences", o->calibrate.sequences, "How many to use, drawn uniformly over length")
      ->capture_default_str();
  command->add_option("--max-length", o->calibrate.max_length, "Longest sequence to use, in tokens")
      ->capture_default_str();
  command->add_option("--seed", o->calibrate.seed, "Of the choice of sequences and of k-means")->capture_default_str();
  o->common.add_usual(*command);
  command->callback([o] { run(*o); });
}

}  // namespace turboesm::cli
