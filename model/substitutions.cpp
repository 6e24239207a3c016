#include "model/substitutions.h"

#include <fmt/format.h>

#include "model/tokenizer.h"
#include "runtime/files.h"

namespace turboesm {

SubstitutionMap substitution_map(Esm2& model, std::span<const int32_t> residues) {
  std::vector<int32_t> ids{Tokenizer::kCls};
  ids.insert(ids.end(), residues.begin(), residues.end());
  ids.push_back(Tokenizer::kEos);
  Batch batch;
  batch.add(ids);
  const std::vector<float> logits = model.forward(batch, {.logits = true}).logits;

  const size_t vocab = model.config().vocab;
  SubstitutionMap map;
  for (size_t i = 0; i < residues.size(); ++i) {
    const std::span<const float> row = std::span(logits).subspan((i + 1) * vocab, vocab);
    const AminoAcidDistribution p = amino_acid_distribution(row);
    const int32_t own = residues[i] - kFirstAminoAcid;
    const float reference = own >= 0 && own < int32_t(kAminoAcids) ? p[size_t(own)] : p[most_likely(p)];
    map.sequence += Tokenizer::esm2().letter(residues[i]);
    for (uint32_t a = 0; a < kAminoAcids; ++a) {
      map.logits.push_back(row[size_t(kFirstAminoAcid) + a]);
      map.log_odds.push_back(p[a] - reference);
    }
  }
  return map;
}

void write_csv(const SubstitutionMap& map, std::span<const float> values, const std::filesystem::path& path) {
  std::string text = "position,residue";
  for (uint32_t a = 0; a < kAminoAcids; ++a)
    text += fmt::format(",{}", Tokenizer::esm2().letter(kFirstAminoAcid + int32_t(a)));
  text += '\n';
  for (size_t i = 0; i < map.sequence.size(); ++i) {
    text += fmt::format("{},{}", i + 1, map.sequence[i]);
    for (uint32_t a = 0; a < kAminoAcids; ++a) text += fmt::format(",{:.6g}", values[i * kAminoAcids + a]);
    text += '\n';
  }
  write_file(path, text);
}

}  // namespace turboesm
