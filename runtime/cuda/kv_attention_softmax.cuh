// The softmax of KvAttention on matrix cores (kv_attention_mma.cu): scores become weights, integers of 16 bits
//   N_t = 2^(score_t - reference) s'_t grow,   N_t <= 65535
// relative to a reference of each query, which changes when a weight would exceed 65535; then what was summed is
// brought to the new one.
#pragma once

#include "runtime/cuda/kv_attention_codes.cuh"

namespace turboesm::cuda {
namespace {

constexpr float kRoom = 15;           // log 2 of the largest weight at a new reference; weights have 16 bits
constexpr float kLeastScale = 1e-9f;  // that `grow` makes 1
constexpr float kRounder = 8388608;   // 2^23: added to a weight, leaves it in the low 16 bits
// Bits of a float of which kRounder + 0 .. 65535 have none, and all that is more, infinity too, has one.
constexpr uint32_t kOverflow = 0xb4ff0000;

// A lane's part of the softmax: scores of kTokens tokens with one query.
template <class V, uint32_t kTokens>
struct Softmax {
  float reference = kLowestScore, total = 0;  // of the query; the sum over this lane's tokens, relative to `reference`
  float grow[V::kSegments];                   // what scales of values are multiplied with
  float offset_sums[V::kSegments] = {};       // of weights
  int32_t sums[V::kChunks][2][4] = {};
  uint32_t older_sums;  // where in shared memory this lane has what earlier sums come to, if a reference was chosen

  __device__ explicit Softmax(uint32_t older_sums_) : older_sums(older_sums_) {
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s) grow[s] = 1;
  }

  __device__ __forceinline__ float sum(uint32_t chunk, uint32_t i) const {
    if (reference == kLowestScore) return 0;
    const int32_t(&digits)[4] = sums[chunk][i / 2];
    const float older = __uint_as_float(load_shared(older_sums + (4 * chunk + i) * kWarp * 4));
    return older + (256 * float(digits[i % 2 * 2]) + float(digits[i % 2 * 2 + 1]));
  }

  // Chooses a reference at which these tokens' weights have kRoom bits, and brings all to it; and `grow`, once.
  __device__ __forceinline__ void rescale(const float (&scores)[kTokens],
                                          const float (&scales)[V::kSegments][kTokens]) {
    const bool is_first = reference == kLowestScore;  // for all queries alike
    float highest = scores[0], most = kLeastScale;
#pragma unroll
    for (uint32_t i = 1; i < kTokens; ++i) highest = fmaxf(highest, scores[i]);
#pragma unroll
    for (uint32_t step = kTokens == 1 ? 1 : 4; step < kWarp; step *= 2)
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, step));
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s) {
      float of_segment = kLeastScale;
#pragma unroll
      for (uint32_t i = 0; i < kTokens; ++i)
        of_segment = fmaxf(of_segment, scores[i] > kLowestScore ? scales[s][i] : 0.0f);
      of_segment = warp_max(of_segment);
      if (is_first) grow[s] = __fdividef(1.0f, of_segment);
      most = fmaxf(most, of_segment * grow[s]);
    }
    const float next = fmaxf(reference, highest + __log2f(most) - kRoom);
    const float shrink = exp2_approximate(reference - next);
    total *= shrink;
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s) offset_sums[s] *= shrink;
#pragma unroll
    for (uint32_t c = 0; c < V::kChunks; ++c) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        store_shared(older_sums + (4 * c + i) * kWarp * 4, __float_as_uint(shrink * sum(c, i)));
#pragma unroll
      for (uint32_t i = 0; i < 8; ++i) sums[c][i / 4][i % 4] = 0;
    }
    reference = next;
  }

  // Weights of the tokens, rounded, in the low 16 bits of `numbers`. `scales` are without `grow`.
  __device__ __forceinline__ void weigh(const float (&scores)[kTokens], const float (&scales)[V::kSegments][kTokens],
                                        uint32_t (&numbers)[V::kSegments][kTokens]) {
    float weights[kTokens];
    const auto numbers_of = [&] {
      uint32_t all = 0;
#pragma unroll
      for (uint32_t i = 0; i < kTokens; ++i) weights[i] = exp2_approximate(scores[i] - reference);
#pragma unroll
      for (uint32_t s = 0; s < V::kSegments; ++s) {
#pragma unroll
        for (uint32_t i = 0; i < kTokens; ++i) {
          numbers[s][i] = __float_as_uint(fmaf(weights[i], scales[s][i] * grow[s], kRounder));
          all |= numbers[s][i];
        }
      }
      return (all & kOverflow) != 0;
    };
    if (__any_sync(kAllLanes, numbers_of())) {
      rescale(scores, scales);
      numbers_of();
    }
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i) total += weights[i];
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s) {
#pragma unroll
      for (uint32_t i = 0; i < kTokens; ++i) offset_sums[s] = fmaf(weights[i], scales[s][i] * grow[s], offset_sums[s]);
    }
  }
};

}  // namespace
}  // namespace turboesm::cuda
