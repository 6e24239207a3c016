#include "model/amino_acids.h"

#include <algorithm>
#include <cmath>

namespace turboesm {

AminoAcidDistribution amino_acid_distribution(std::span<const float> logits) {
  const std::span<const float> own = logits.subspan(kFirstAminoAcid, kAminoAcids);
  const float largest = *std::ranges::max_element(own);
  double sum = 0;
  for (const float logit : own) sum += std::exp(double(logit) - largest);
  AminoAcidDistribution result;
  for (uint32_t i = 0; i < kAminoAcids; ++i) result[i] = float(double(own[i]) - largest - std::log(sum));
  return result;
}

double divergence(const AminoAcidDistribution& p, const AminoAcidDistribution& q) {
  double sum = 0;
  for (uint32_t i = 0; i < kAminoAcids; ++i) sum += std::exp(double(p[i])) * (double(p[i]) - q[i]);
  return sum;
}

uint32_t most_likely(const AminoAcidDistribution& p) { return uint32_t(std::ranges::max_element(p) - p.begin()); }

}  // namespace turboesm
