// The generator of runtime/random.h on the device.
#pragma once

#include <cstdint>

namespace turboesm::cuda {

__device__ __forceinline__ uint32_t pcg_hash(uint32_t value) {
  const uint32_t state = value * 747796405u + 2891336453u;
  const uint32_t word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}

__device__ __forceinline__ float2 random_normal_pair(uint32_t seed, uint32_t pair) {
  const uint32_t key = pcg_hash(seed);
  const float u1 = float((pcg_hash(key ^ (2u * pair)) >> 8) + 1u) * 0x1p-24f;
  const float u2 = float(pcg_hash(key ^ (2u * pair + 1u)) >> 8) * 0x1p-24f;
  const float radius = sqrtf(-2.0f * logf(u1));
  float sine, cosine;
  sincosf(6.28318530718f * u2, &sine, &cosine);
  return {radius * cosine, radius * sine};
}

__device__ __forceinline__ float random_uniform(uint32_t seed, uint32_t stream, uint32_t counter) {
  return float(pcg_hash(pcg_hash(pcg_hash(seed) ^ stream) ^ counter) >> 8) * 0x1p-24f;
}

}  // namespace turboesm::cuda
