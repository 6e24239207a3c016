#pragma once

#include <array>
#include <cstdint>
#include <span>

// The 20 amino acids among the tokens, and distributions over them.
namespace turboesm {

inline constexpr int32_t kFirstAminoAcid =
    4;  // their tokens follow one another: L A G V S E R T I D P K Q N F Y M H W C
inline constexpr uint32_t kAminoAcids = 20;

using AminoAcidDistribution = std::array<float, kAminoAcids>;  // natural logarithms of probabilities, in tokens' order

// The softmax of a row of logits [vocab] over the amino acids alone.
AminoAcidDistribution amino_acid_distribution(std::span<const float> logits);

// KL(p || q), nats.
double divergence(const AminoAcidDistribution& p, const AminoAcidDistribution& q);

uint32_t most_likely(const AminoAcidDistribution& p);  // 0 .. 19

}  // namespace turboesm
