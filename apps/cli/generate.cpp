#include <cmath>

#include <fmt/format.h>

#include "apps/cli/commands.h"
#include "apps/cli/common.h"
#include "apps/cli/kv_options.h"
#include "apps/cli/progress.h"
#include "model/generate.h"
#include "model/kv_file.h"
#include "model/tokenizer.h"
#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm::cli {
namespace {

struct Options {
  Common common;
  KvOptions kv;
  std::string preset{kDefaultKvPreset}, prompt, output = "-";
  bool no_pseudo_perplexity = false;
  GenerateOptions generate;
};

void check(const Options& o) {
  const GenerateOptions& g = o.generate;
  if (g.count == 0) throw_error(ErrorKind::usage, "-n 0: there is nothing to generate");
  if (g.length == 0 || g.length > 65535) throw_error(ErrorKind::usage, "--length {}: from 1 to 65535", g.length);
  if (!(g.temperature >= 0) || std::isinf(g.temperature))
    throw_error(ErrorKind::usage, "--temperature {}: 0 (always the likeliest residue) or more", g.temperature);
  if (!(g.top_p > 0 && g.top_p <= 1)) throw_error(ErrorKind::usage, "--top-p {}: more than 0 and at most 1", g.top_p);
  if (g.prompt.size() >= g.length)
    throw_error(ErrorKind::usage, "--prompt has {} residues, --length {} leaves no room after it", g.prompt.size(),
                g.length);
}

std::string fasta(const GenerateReport& report) {
  std::string text;
  for (size_t i = 0; i < report.proteins.size(); ++i) {
    const GeneratedProtein& protein = report.proteins[i];
    text += fmt::format(">generated_{} length={} end={} log_probability={:.4f}", i + 1, protein.residues.size(),
                        protein.stopped ? "stop" : "length", protein.mean_log_probability);
    if (protein.pseudo_perplexity > 0) text += fmt::format(" pseudo_perplexity={:.3f}", protein.pseudo_perplexity);
    text += '\n';
    const Tokenizer tokenizer = Tokenizer::esm2();
    constexpr size_t kLine = 60;
    for (size_t r = 0; r < protein.residues.size(); ++r) {
      text += tokenizer.letter(protein.residues[r]);
      if ((r + 1) % kLine == 0 && r + 1 < protein.residues.size()) text += '\n';
    }
    text += '\n';
  }
  return text;
}

nlohmann::json to_json(const Options& o, const GenerateReport& report, const Device& device, const KvPreset& preset) {
  nlohmann::json proteins = nlohmann::json::array();
  const Tokenizer tokenizer = Tokenizer::esm2();
  for (const GeneratedProtein& protein : report.proteins) {
    std::string sequence;
    for (int32_t id : protein.residues) sequence += tokenizer.letter(id);
    nlohmann::json row{
        {"sequence", sequence}, {"stopped", protein.stopped}, {"mean_log_probability", protein.mean_log_probability}};
    if (protein.pseudo_perplexity > 0) row["pseudo_perplexity"] = protein.pseudo_perplexity;
    proteins.push_back(row);
  }
  return {{"proteins", proteins},
          {"kv", preset.name},
          {"temperature", o.generate.temperature},
          {"top_p", o.generate.top_p},
          {"seed", o.generate.seed},
          {"at_once", report.at_once},
          {"cache_bytes", report.cache_bytes},
          {"steps", report.steps},
          {"decode_seconds", report.decode_seconds},
          {"device", cli::to_json(device.info())},
          {"memory", cli::to_json(device.memory())}};
}

void run(Options& o) {
  const KvPreset preset = parse_kv_preset(o.preset);
  const Tokenizer::Encoded prompt = Tokenizer::esm2().encode(o.prompt, "--prompt");
  o.generate.prompt.assign(prompt.ids.begin() + 1, prompt.ids.end() - 1);
  o.generate.pseudo_perplexity = !o.no_pseudo_perplexity;
  check(o);
  const Checkpoint checkpoint = Checkpoint::open(o.common.model_directory());
  const KvTables tables = KvTableMaker(o.kv.calibration_file(o.common), checkpoint)(preset);
  const std::unique_ptr<Device> device = o.common.open();
  Esm2 model(*device, Esm2Weights::load(*device, checkpoint, o.common.parsed_dtype()));
  GenerateReport report;
  {
    Progress progress(!o.common.quiet);
    report = generate(model, tables, o.generate, [&](const GenerateProgress& p) {
      progress.update(p.share, p.stage == GenerateProgress::Stage::decoding ? "decoding" : "pseudo-perplexity");
    });
  }
  if (!o.common.json_on_stdout()) write_text(o.output, fasta(report));
  o.common.write_json(to_json(o, report, *device, preset));
  if (o.common.quiet) return;
  uint64_t residues = 0;
  for (const GeneratedProtein& protein : report.proteins) residues += protein.residues.size();
  note(fmt::format("{} proteins, {} residues in {:.2f} s ({} residues/s), {} at once on {}", report.proteins.size(),
                   residues, report.decode_seconds,
                   format_count(double(residues) / std::max(report.decode_seconds, 1e-9)), report.at_once,
                   device->info().name));
  note(fmt::format("cache {}: {:.2f} bits a value, {}", preset.name,
                   kv_bits_per_value(preset.format(), model.config().head_dim()), format_bytes(report.cache_bytes)));
}

}  // namespace

void add_generate(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "Generate proteins residue by residue on a quantized KV cache");
  command->add_option("-o,--output", o->output, "FASTA file (-: standard output)")
      ->check(check_output_file)
      ->capture_default_str();
  command->add_option("--prompt", o->prompt, "Residues to go on from (default: none)")->type_name("SEQ");
  command->add_option("--length", o->generate.length, "Most residues of a protein, the prompt's counted")
      ->capture_default_str();
  command->add_option("-n,--count", o->generate.count, "Proteins")->capture_default_str();
  command->add_option("--temperature", o->generate.temperature, "Of the softmax that residues are drawn from")
      ->capture_default_str();
  command->add_option("--top-p", o->generate.top_p, "Draw among the likeliest residues that together reach this share")
      ->capture_default_str();
  command->add_option("--seed", o->generate.seed, "The same seed gives the same proteins")->capture_default_str();
  command->add_option("--kv", o->preset, "Preset of the KV cache, or a specification")->capture_default_str();
  command->add_flag("--no-pseudo-perplexity", o->no_pseudo_perplexity,
                    "Leave out the pseudo-perplexity, which takes a full forward pass for every residue");
  o->kv.add_calibration(*command);
  o->common.add_usual(*command);
  command->callback([o] { run(*o); });
}

}  // namespace turboesm::cli
