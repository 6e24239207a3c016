#pragma once

#include <cmath>
#include <cstdint>

namespace turboesm {

// The counter-based generator of RandomNormal, restated in shaders/include/random.glsl. PCG's RXS-M-XS output
// permutation over a linear congruential step (O'Neill 2014; Jarzynski & Olano 2020, "Hash Functions for GPU
// Rendering").
inline uint32_t pcg_hash(uint32_t value) {
  const uint32_t state = value * 747796405u + 2891336453u;
  const uint32_t word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}

// Elements 2 * pair and 2 * pair + 1 of the stream `seed`, standard normal, by Box-Muller from two uniforms on the
// 24-bit grid: u1 in (0, 1], u2 in [0, 1).
inline void random_normal_pair(uint32_t seed, uint32_t pair, float& even, float& odd) {
  const uint32_t key = pcg_hash(seed);
  const float u1 = float((pcg_hash(key ^ (2u * pair)) >> 8) + 1u) * 0x1p-24f;
  const float u2 = float(pcg_hash(key ^ (2u * pair + 1u)) >> 8) * 0x1p-24f;
  const float radius = std::sqrt(-2.0f * std::log(u1));
  even = radius * std::cos(6.28318530718f * u2);
  odd = radius * std::sin(6.28318530718f * u2);
}

// Uniform on the 24-bit grid of [0, 1): element `counter` of stream `stream` under `seed`. Restated in
// shaders/include/random.glsl; all of it is exact, so every back end draws the same number.
inline float random_uniform(uint32_t seed, uint32_t stream, uint32_t counter) {
  return float(pcg_hash(pcg_hash(pcg_hash(seed) ^ stream) ^ counter) >> 8) * 0x1p-24f;
}

}  // namespace turboesm
