#include <future>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "apps/cli/commands.h"
#include "apps/cli/common.h"
#include "apps/cli/progress.h"
#include "model/embedder.h"
#include "runtime/error.h"
#include "version.h"

namespace turboesm::cli {
namespace {

struct Options {
  Common common;
  std::string input, output;
  std::vector<std::string> include{"mean"};
  std::string overlong = "truncate";
  EmbedOptions embed;
};

const std::vector<std::string> kIncludes{"mean", "residues", "logits", "bos", "contacts"};

void apply_include(Options& o) {
  o.embed.mean = false;
  for (const std::string& what : o.include) {
    if (what == "mean") o.embed.mean = true;
    if (what == "residues") o.embed.residues = true;
    if (what == "logits") o.embed.logits = true;
    if (what == "bos") o.embed.bos = true;
    if (what == "contacts") o.embed.contacts = true;
  }
  o.embed.overlong = o.overlong == "skip" ? EmbedOptions::Overlong::skip : EmbedOptions::Overlong::truncate;
}

// What a reader of the file needs to know where its numbers come from.
std::map<std::string, std::string> metadata(const Options& o, const Checkpoint& checkpoint, const std::string& hash,
                                            const Device& device, const EmbedReport& report,
                                            const std::vector<std::string>& keys) {
  const auto list = [](const auto& values) {
    return nlohmann::json(values).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  };
  return {{"ids", list(keys)},
          {"model", (checkpoint.directory() / "").parent_path().filename().string()},
          {"model_hash", hash},
          {"dtype", o.common.dtype},
          {"device", device.info().spec + " " + device.info().name},
          {"include", list(o.include)},
          {"layers", list(o.embed.layers)},
          {"max_length", std::to_string(o.embed.max_length)},
          {"overlong", o.overlong},
          {"truncated", list(report.truncated)},
          {"skipped", list(report.skipped)},
          {"turboesm_version", TURBOESM_VERSION}};
}

nlohmann::json to_json(const EmbedReport& report) {
  return {{"records", report.records},     {"residues", report.residues}, {"batches", report.batches},
          {"halved", report.halved},       {"unknown", report.unknown},   {"stops", report.stops},
          {"truncated", report.truncated}, {"skipped", report.skipped},   {"renamed", report.renamed},
          {"seconds", report.seconds}};
}

std::string some_of(const std::vector<std::string>& keys) {
  constexpr size_t kShown = 3;
  const auto last = keys.begin() + ptrdiff_t(std::min(kShown, keys.size()));
  return fmt::format("{}{}", fmt::join(keys.begin(), last, ", "),
                     keys.size() > kShown ? fmt::format(" and {} more", keys.size() - kShown) : "");
}

std::string counted(uint64_t count, std::string_view one, std::string_view many) {
  return fmt::format("{} {}", count, count == 1 ? one : many);
}
std::string records(uint64_t count) { return counted(count, "record", "records"); }
std::string residues(uint64_t count) { return counted(count, "residue", "residues"); }
std::string batches(uint64_t count) { return counted(count, "batch", "batches"); }

// Everything that was done to the input, so that nothing is silent; shown even with --quiet.
void report_changes(const Options& o, const EmbedReport& report) {
  if (!report.truncated.empty())
    warn(fmt::format("{} cut to {}: {}", records(report.truncated.size()), residues(o.embed.max_length),
                     some_of(report.truncated)));
  if (!report.skipped.empty())
    warn(fmt::format("{} left out for being longer than {}: {}", records(report.skipped.size()),
                     residues(o.embed.max_length), some_of(report.skipped)));
  if (!report.renamed.empty())
    warn(fmt::format("{} got a number because the id occurs before: {}", records(report.renamed.size()),
                     some_of(report.renamed)));
  if (report.unknown) warn(fmt::format("{} unknown to the model ('*' inside a sequence)", residues(report.unknown)));
  if (o.common.quiet) return;
  if (report.stops) note(fmt::format("'*' (stop) dropped at the end of {}", records(report.stops)));
  if (report.halved) note(fmt::format("{} halved to fit in memory", batches(report.halved)));
}

void print_summary(const EmbedReport& report, const MemoryReport& memory) {
  note(fmt::format("{}, {} in {:.2f} s ({} residues/s), {}", records(report.records), residues(report.residues),
                   report.seconds, format_count(double(report.residues) / std::max(report.seconds, 1e-9)),
                   batches(report.batches)));
  std::string labels;
  for (uint32_t i = 0; i < kMemoryLabels; ++i)
    if (memory.by_label[i].peak)
      labels += fmt::format("{}{} {}", labels.empty() ? "" : ", ", name_of(MemoryLabel(i)),
                            format_bytes(memory.by_label[i].peak));
  note(fmt::format("device memory at most {} ({})", format_bytes(memory.total.peak), labels));
}

void run(Options& o) {
  apply_include(o);
  o.embed.profile = o.common.profile;
  // In this order, what is most often wrong is found before it costs anything.
  TensorOutput output(o.output);
  FastaReader input(o.input);
  const Checkpoint checkpoint = Checkpoint::open(o.common.model_directory());
  const std::unique_ptr<Device> device = o.common.open();
  Esm2 model(*device, Esm2Weights::load(*device, checkpoint, o.common.parsed_dtype()));
  // It reads all weights once more, which takes a large model as long as its first proteins.
  std::future<std::string> hash = std::async(std::launch::async, [&] { return checkpoint.hash(); });

  std::vector<std::string> keys;
  EmbedReport report;
  {
    Progress progress(!o.common.quiet);
    report = embed(
        model, input, output, o.embed,
        [&](const EmbedProgress& p) {
          progress.update(p.share(), fmt::format("{} records  {} residues/s", p.records,
                                                 format_count(double(p.residues) / std::max(p.seconds, 1e-9))));
        },
        keys);
  }
  output.finish(metadata(o, checkpoint, hash.get(), *device, report, keys));
  report_changes(o, report);
  const MemoryReport memory = device->memory();
  if (!o.common.quiet) print_summary(report, memory);
  if (o.common.profile) print_profile(report.profile);
  o.common.write_json({{"output", o.output},
                       {"report", to_json(report)},
                       {"device", cli::to_json(device->info())},
                       {"memory", cli::to_json(memory)}});
}

}  // namespace

void add_embed(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("embed", "Embed the proteins of a FASTA file");
  command->add_option("input", o->input, "FASTA file, gzip too (-: standard input)")->required()->type_name("IN.fasta");
  command->add_option("-o,--output", o->output, "Result: .safetensors or .npz")->required()->type_name("OUT");
  command
      ->add_option("--include", o->include,
                   "What to write, comma-separated: mean (over residues), residues (each one's vector), logits, bos "
                   "(the <cls> token's vector), contacts")
      ->delimiter(',')
      ->check(CLI::IsMember(kIncludes))
      ->capture_default_str();
  command
      ->add_option("--layers", o->embed.layers,
                   "Hidden states to take, comma-separated; 0 is the embedding, -1 the last (after the last LayerNorm)")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--max-length", o->embed.max_length, "Longest sequence in residues (default: none)")
      ->type_name("N");
  command
      ->add_option("--overlong", o->overlong, "What happens to longer sequences: truncate or skip; both are reported")
      ->check(CLI::IsMember({"truncate", "skip"}))
      ->capture_default_str();
  command->add_option("--max-tokens", o->embed.max_tokens, "Tokens of one batch (default: by device, 2048 to 32768)")
      ->type_name("N");
  o->common.add_usual(*command);
  o->common.add_profile(*command);
  command->callback([o] { run(*o); });
}

}  // namespace turboesm::cli
