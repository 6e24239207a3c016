#include <fmt/format.h>

#include "apps/cli/commands.h"
#include "apps/cli/common.h"
#include "apps/cli/compare_plot.h"
#include "apps/cli/kv_options.h"
#include "apps/cli/progress.h"
#include "model/compare.h"
#include "model/fasta.h"
#include "model/kv_file.h"
#include "runtime/error.h"

namespace turboesm::cli {
namespace {

struct Options {
  Common common;
  KvOptions kv;
  CompareOptions compare;
  std::string input, presets, plot;
  uint32_t max_proteins = 0;
};

std::vector<KvPreset> presets_of(const Options& o) {
  if (!o.presets.empty()) return parse_kv_presets(o.presets);
  std::vector<KvPreset> all;
  for (const KvPresetRow& row : kv_presets())
    if (row.name != "f32") all.push_back(parse_kv_preset(row.name));
  return all;
}

std::vector<CompareRecord> records_of(const Options& o, const Checkpoint& checkpoint) {
  FastaReader input(o.input);
  std::vector<CompareRecord> records;
  uint64_t too_short = 0;
  for (FastaRecord record; input.next(record);) {
    if (o.max_proteins && records.size() == o.max_proteins) break;
    std::vector<int32_t> ids = checkpoint.tokenizer().encode(record.sequence, record.id).ids;
    ids.pop_back();  // <eos> is not left in the middle of a context that grows
    if (ids.size() < 3)
      ++too_short;
    else
      records.push_back({record.id, std::move(ids)});
  }
  if (too_short) warn(fmt::format("{} records of fewer than two residues left out", too_short));
  if (records.empty()) throw_error(ErrorKind::input, "{}: no protein of two residues or more", o.input);
  return records;
}

nlohmann::json to_json(const LogitAgreement& a) { return {{"kl", a.kl_mean}, {"kl_p99", a.kl_p99}, {"top1", a.top1}}; }

nlohmann::json to_json(const KvQuality& q) {
  return {{"preset", q.preset},
          {"bits_per_value", q.bits_per_value},
          {"bytes_per_token", q.bytes_per_token},
          {"ratio_f32", 32 / q.bits_per_value},
          {"ratio_f16", 16 / q.bits_per_value},
          {"residue", to_json(q.residue)},
          {"mask", to_json(q.mask)},
          {"hidden_l2", q.hidden_l2},
          {"hidden_cosine", q.hidden_cosine},
          {"hidden_cosine_p1", q.hidden_cosine_p1},
          {"perplexity", q.perplexity},
          {"perplexity_f32", q.perplexity_f32},
          {"layer0_cosine", q.layer0_cosine},
          {"worst", q.worst},
          {"worst_kl", q.worst_kl},
          {"positions", q.positions}};
}

void print(const std::vector<KvQuality>& qualities, size_t proteins) {
  std::vector<std::vector<std::string>> table{{"cache", "bits", "B/token", "vs f32", "vs f16", "KL", "KL p99", "top-1",
                                               "mask KL", "mask p99", "mask top-1", "hidden L2", "cosine", "cosine p1",
                                               "perplexity", "layer-0 cosine", "worst KL", "worst protein"}};
  for (const KvQuality& q : qualities)
    table.push_back({q.preset, fmt::format("{:.3f}", q.bits_per_value), fmt::format("{:.0f}", q.bytes_per_token),
                     fmt::format("{:.2f}x", 32 / q.bits_per_value), fmt::format("{:.2f}x", 16 / q.bits_per_value),
                     fmt::format("{:.5f}", q.residue.kl_mean), fmt::format("{:.4f}", q.residue.kl_p99),
                     fmt::format("{:.4f}", q.residue.top1), fmt::format("{:.5f}", q.mask.kl_mean),
                     fmt::format("{:.4f}", q.mask.kl_p99), fmt::format("{:.4f}", q.mask.top1),
                     fmt::format("{:.4f}", q.hidden_l2), fmt::format("{:.5f}", q.hidden_cosine),
                     fmt::format("{:.5f}", q.hidden_cosine_p1),
                     fmt::format("{:+.2f} %", 100 * (q.perplexity / q.perplexity_f32 - 1)),
                     fmt::format("{:.5f}", q.layer0_cosine), fmt::format("{:.4f}", q.worst_kl), q.worst});
  print_table(table);
  if (!qualities.empty())
    fmt::print("{} proteins, {} residues decoded; perplexity with the f32 cache {:.3f}\n", proteins,
               qualities.front().positions, qualities.front().perplexity_f32);
}

void run(Options& o) {
  const std::vector<KvPreset> presets = presets_of(o);
  const Checkpoint checkpoint = Checkpoint::open(o.common.model_directory());
  std::vector<CompareRecord> records = records_of(o, checkpoint);
  KvTableMaker make(o.kv.calibration_file(o.common), checkpoint);
  const KvTables f32 = make(parse_kv_preset("f32"));
  std::vector<CompareSubject> subjects;
  for (const KvPreset& preset : presets) subjects.push_back({preset.name, make(preset)});
  subjects.push_back(uniform_attention(f32));

  const std::unique_ptr<Device> device = o.common.open();
  Esm2 model(*device, Esm2Weights::load(*device, checkpoint, o.common.parsed_dtype()));
  const size_t proteins = records.size();
  std::vector<KvQuality> qualities;
  {
    Progress progress(!o.common.quiet);
    qualities = compare(model, f32, subjects, std::move(records), o.compare,
                        [&](double share) { progress.update(share, "comparing"); });
  }
  nlohmann::json rows = nlohmann::json::array();
  for (const KvQuality& q : qualities) rows.push_back(to_json(q));
  o.common.write_json({{"proteins", proteins}, {"device", cli::to_json(device->info())}, {"presets", rows}});
  if (!o.plot.empty()) write_text(o.plot, compare_plot(qualities));
  if (!o.common.json_on_stdout()) print(qualities, proteins);
}

}  // namespace

void add_compare(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "compare", "Quality of quantized KV caches against the f32 cache, decoding the second half of each protein");
  command->add_option("input", o->input, "FASTA file, gzip too (-: standard input)")->required()->type_name("IN.fasta");
  command->add_option("--kv", o->presets, "Presets and specifications, comma-separated (default: every preset)")
      ->type_name("LIST");
  command->add_option("--max-proteins", o->max_proteins, "Use the first N only (default: all)")->type_name("N");
  command->add_option("--batch", o->compare.sequences, "Proteins decoded at once")->capture_default_str();
  command->add_option("--plot", o->plot, "Draw KL against bits a value")
      ->check(check_output_file)
      ->type_name("FILE.svg");
  o->kv.add_calibration(*command);
  o->common.add_usual(*command);
  o->common.stable_sums = true;  // a table's last digits change with the codecs alone
  command->callback([o] { run(*o); });
}

}  // namespace turboesm::cli
