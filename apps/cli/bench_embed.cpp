#include <fmt/format.h>

#include "apps/cli/bench_common.h"
#include "model/embedder.h"
#include "model/fasta.h"
#include "model/tokenizer.h"
#include "runtime/error.h"

namespace turboesm::cli {
namespace {

struct Options : BenchCommand {
  std::string input, size;
  uint32_t max_tokens = 0, seed = 1;
};

std::vector<std::vector<int32_t>> read_sequences(const std::string& name) {
  const Tokenizer tokenizer = Tokenizer::esm2();
  FastaReader input(name);
  std::vector<std::vector<int32_t>> sequences;
  for (FastaRecord record; input.next(record);) sequences.push_back(tokenizer.encode(record.sequence, record.id).ids);
  if (sequences.empty()) throw_error(ErrorKind::input, "{}: has no record to measure with", name);
  return sequences;
}

void run(const Options& o) {
  const std::vector<std::vector<int32_t>> sequences = read_sequences(o.input);
  const Esm2Config config = o.common.config_of(o.size);
  const std::unique_ptr<Device> device = o.common.open();
  Esm2 model(*device, Esm2Weights::random(*device, config, o.common.parsed_dtype(), o.seed));
  const uint32_t max_tokens = o.max_tokens ? o.max_tokens : default_max_tokens(device->info());
  BenchOptions options = o.bench;
  options.min_repeats = 3;
  options.profile = o.common.profile;
  const EmbedBench bench = bench_embed(model, sequences, max_tokens, options);

  nlohmann::json json = bench_header(*device);
  json["memory"] = cli::to_json(device->memory());
  const Limits limits = o.measure_limits(*device);
  nlohmann::json& row = json["embed"];
  row = {{"size", o.size},
         {"dtype", o.common.dtype},
         {"sequences", bench.sequences},
         {"tokens", bench.tokens},
         {"batches", bench.batches},
         {"max_tokens", max_tokens},
         {"first_s", bench.first_seconds},
         {"host_time", to_json(bench.host)},
         {"device_time", to_json(bench.device)},
         {"tokens_per_second", bench.tokens_per_second()},
         {"residues_per_second", bench.residues_per_second()},
         {"flops_per_second", bench.work.flops / bench.host.median}};
  add_roofline(row, bench.work, bench.host.median, limits);
  add_limits(json, limits);
  if (o.common.profile) json["profile"] = to_json(bench.profile, limits);
  o.common.write_json(json);
  if (o.common.json_on_stdout()) return;
  fmt::print("embed {} {}, {} sequences of {} tokens in {} batches of at most {} (random weights)\n",
             o.size.empty() ? "model" : o.size, o.common.dtype, bench.sequences, bench.tokens, bench.batches,
             max_tokens);
  fmt::print("  host    {}, tokens to means; the first time {}\n", spread(bench.host), format_ms(bench.first_seconds));
  fmt::print("  device  {}\n", spread(bench.device));
  fmt::print("  {} residues/s, {} tokens/s, {}\n", format_count(bench.residues_per_second()),
             format_count(bench.tokens_per_second()), format_rate(bench.work.flops / bench.host.median));
  print_roofline(bench.work, bench.host.median, limits);
  if (o.common.profile) print_profile(bench.profile, limits);
}

}  // namespace

void add_bench_embed(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand(
      "embed", "The proteins of a FASTA file, batched as `embed` does, tokens to means, with random weights");
  command->add_option("input", o->input, "FASTA file, gzip too (-: standard input)")->required()->type_name("IN.fasta");
  command->add_option("--size", o->size, "8M, 35M, 150M, 650M, 3B or 15B (default: the sizes of --model)");
  command->add_option("--max-tokens", o->max_tokens, "Tokens of one batch (default: by device)")->type_name("N");
  command->add_option("--seed", o->seed, "Of the random weights")->capture_default_str();
  o->common.add_model(*command);
  o->common.add_dtype(*command);
  o->common.add_profile(*command);
  o->add_timing(*command);
  command->callback([o] { run(*o); });
}

}  // namespace turboesm::cli
