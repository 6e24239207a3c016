#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "model/amino_acids.h"
#include "model/esm2.h"

namespace turboesm {

// What the model makes of every substitution of a protein, from one forward pass of the protein as it is.
struct SubstitutionMap {
  std::string sequence;       // [L]
  std::vector<float> logits;  // [L, 20], amino acids in tokens' order
  // log p(amino acid) - log p(the residue that is there), nats, [L, 20]: the "wild-type marginals" of Meier et al.
  // 2021. Against the likeliest amino acid where the residue is none of the 20 (X and its like).
  std::vector<float> log_odds;
};

// `residues`: token ids without <cls> and <eos>, not empty. Errors: out_of_memory.
SubstitutionMap substitution_map(Esm2& model, std::span<const int32_t> residues);

// position,residue,L,A,G,... with a row a position; `values` is map.logits or map.log_odds. Written aside, then
// renamed.
void write_csv(const SubstitutionMap& map, std::span<const float> values, const std::filesystem::path& path);

}  // namespace turboesm
