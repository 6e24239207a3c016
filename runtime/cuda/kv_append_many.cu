// What kv_append.cu does, for many tokens of fp16 at once: transforms on matrix cores, arithmetic in fp16, as in
// shaders/kv_append_many.comp. Sums are rounded as they come, so a value within a few thousandths of a threshold may
// get the code beside it, and a scale the one beside it. Values over 65,504 after the transform are lost.
//
//   k, v [tokens, heads, d] f16, transform [heads or 1, d, d] -> cache [sequences, heads, blocks, block words]
//
// d is 32, 64 or 128, and n, the values of a segment, a multiple of 32: a token's unit of 32 codes is its own. A warp
// takes K or V of one head for a block of 32 tokens, then another block (grid: runs, heads, sides). A block's warps
// share the head's transform.
//
// Fragments of mma.m16n8k16, with g = lane / 4 and j = lane % 4 (PTX ISA): A (16 x 16) a0 (g, 2j..) a1 (g + 8, 2j..)
// a2 (g, 2j + 8..) a3 (g + 8, 2j + 8..); B (16 x 8) b0 (2j.., g) b1 (2j + 8.., g); C (16 x 8) c0, c1 (g, 2j..) c2, c3
// (g + 8, 2j..). Rows of A are tokens, columns of B rows of the transform. Values may be numbered anew:
//
//   columns of A   two products take 32 of x, of which lane j has 8 j .. 8 j + 7, a vector of 16 bytes
//   columns of B   number c of tile i is value 8 (c / 2) + i + 4 (c % 2) of the unit: with four tiles lane j has the
//                  values 8 j .. 8 j + 7 of tokens g and g + 8, in pairs 4 apart, whose codes lie 16 bits apart in the
//                  lane's word of nibbles
//
// So a lane has 8 values of each unit of four tokens, g + 8 i. What is one for a token (sums, scales) is spread over
// its four lanes: lane j has those of token g + 8 j.
//
// What bounds it is the search for the scale: with H positive centroids a look() takes 2 H + 2 instructions a pair, and
// there are three before the codes are taken. Only Gaussian codebooks are searched: they are known by heart, and
// symmetric, so that H is half of all.
#include <algorithm>

#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/kv_append.h"
#include "shaders/include/kv_gaussian.h"
#include "shaders/include/kv_scale.h"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kWarps = 4;               // of a block
constexpr uint32_t kBlocksPerProcessor = 8;  // that share the work of a multiprocessor, if there is so much
constexpr uint32_t kUnit = 32, kTiles = 4;   // values of a unit, and the products that give them
constexpr uint32_t kTokens = 4;              // of a lane
constexpr uint32_t kEdges = 16;              // room for a segment's thresholds
constexpr float kSteep = 4096;               // see above(); times the largest fp16 threshold it is still finite
constexpr float kLargestFactor = 50000;      // a finite fp16

// ---- Instructions ---------------------------------------------------------------------------------------------------

// c += a b
__device__ __forceinline__ void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

// ---- Numbers --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t bits_of(__half2 pair) { return *reinterpret_cast<const uint32_t*>(&pair); }
__device__ __forceinline__ __half2 pair_of(uint32_t bits) { return *reinterpret_cast<const __half2*>(&bits); }
__device__ __forceinline__ __half2 both(float number) { return __float2half2_rn(number); }
__device__ __forceinline__ float sum_of(__half2 pair) {
  const float2 numbers = __half22float2(pair);
  return numbers.x + numbers.y;
}

// 1 where x is above the threshold, 0 where below, something between very near to it.
__device__ __forceinline__ __half2 above(__half2 x, float threshold) {
  return __hfma2_sat(x, both(kSteep), both(-threshold * kSteep));
}

// Of four numbers the sum over a token's four lanes: lane j gets that of number j.
__device__ __forceinline__ float sum_over_lanes(const float (&numbers)[kTokens]) {
  const uint32_t j = threadIdx.x % 4;
  const bool high = j >= 2, odd = j % 2 == 1;
  const float first = (high ? numbers[2] : numbers[0]) + __shfl_xor_sync(kAllLanes, high ? numbers[0] : numbers[2], 2);
  const float second = (high ? numbers[3] : numbers[1]) + __shfl_xor_sync(kAllLanes, high ? numbers[1] : numbers[3], 2);
  return (odd ? second : first) + __shfl_xor_sync(kAllLanes, odd ? first : second, 1);
}
// The inverse: what lane i of a token's four has of token i.
__device__ __forceinline__ float of_token(float number, uint32_t i) {
  return __shfl_sync(kAllLanes, number, (threadIdx.x % kWarp & ~3u) + i);
}

// The code of the scale nearest to a value.
__device__ __forceinline__ uint32_t nearest_scale(uint32_t scale_bits, float value) {
  const uint32_t below = kv_scale_below(scale_bits, value), next = kv_scale_next(scale_bits, below);
  if (below >= kv_scale_highest(scale_bits)) return below;
  const float middle = 0.5f * (kv_scale_value(scale_bits, below) + kv_scale_value(scale_bits, next));
  return middle <= value ? next : below;
}

// ---- Quantization ---------------------------------------------------------------------------------------------------

// A segment's values of a lane: of token i and unit u, pair p is values 8 j + p and 8 j + p + 4.
template <uint32_t kUnits>
using Values = __half2[kTokens][kUnits][kTiles];

// Of a Gaussian codebook, to x >= 0.
template <uint32_t bits>
__device__ __forceinline__ __half2 nearest_centroids(__half2 x) {
  __half2 z = both(kv_gaussian_centroid(bits, 0));
#pragma unroll
  for (uint32_t t = 1; t < 1u << bits >> 1; ++t) {
    const float step = kv_gaussian_centroid(bits, t) - kv_gaussian_centroid(bits, t - 1);
    z = __hfma2(above(x, kv_gaussian_threshold(bits, t)), both(step), z);
  }
  return z;
}

// With x = factor |y| and z its nearest centroids, of a Gaussian codebook: the lane's sums of (x - z)^2 and of x z.
template <uint32_t bits, uint32_t kUnits>
__device__ __forceinline__ float2 look(const __half2 (&y)[kUnits][kTiles], float factor) {
  const __half2 scaling = both(factor);
  __half2 error = both(0), xz = both(0);
#pragma unroll
  for (uint32_t u = 0; u < kUnits; ++u)
#pragma unroll
    for (uint32_t p = 0; p < kTiles; ++p) {
      const __half2 x = __habs2(__hmul2(y[u][p], scaling));
      const __half2 z = nearest_centroids<bits>(x);
      const __half2 difference = __hsub2(x, z);
      error = __hfma2(difference, difference, error);
      xz = __hfma2(x, z, xz);
    }
  return {sum_of(error), sum_of(xz)};
}

// Of three scales round 1 / factor the one with the least error. On lane j's token: `factor` becomes the inverse of
// that scale; returns y . z times it.
template <uint32_t bits, uint32_t kUnits>
__device__ __forceinline__ float search(const Values<kUnits>& y, float& factor) {
  const float inverse = factor;
  float least = 0, best_xz = 0;
  bool second_is_better = false;
#pragma unroll 1
  for (uint32_t candidate = 0; candidate < 3; ++candidate) {
    const float tried = kv_search_factor(candidate, second_is_better), scaling = inverse / tried;
    float errors[kTokens], products[kTokens];
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i) {
      const float2 seen = look<bits, kUnits>(y[i], of_token(scaling, i));
      errors[i] = seen.x, products[i] = seen.y;
    }
    const float error = sum_over_lanes(errors) * tried * tried, xz = sum_over_lanes(products);
    const bool is_better = candidate == 0 || error < least;
    second_is_better = second_is_better || (is_better && candidate == 1);
    factor = is_better ? scaling : factor;
    best_xz = is_better ? xz : best_xz;
    least = is_better ? error : least;
  }
  return best_xz;
}

// The lane's sum of z^2, z the centroids nearest to factor |y|, of a Gaussian codebook.
template <uint32_t bits, uint32_t kUnits>
__device__ __forceinline__ float squares_of_centroids(const __half2 (&y)[kUnits][kTiles], float factor) {
  const __half2 scaling = both(factor);
  __half2 squares = both(0);
#pragma unroll
  for (uint32_t u = 0; u < kUnits; ++u)
#pragma unroll
    for (uint32_t p = 0; p < kTiles; ++p) {
      const __half2 z = nearest_centroids<bits>(__habs2(__hmul2(y[u][p], scaling)));
      squares = __hfma2(z, z, squares);
    }
  return sum_of(squares);
}

// The codes of factor y for a lane's 8 values of a unit, in order, fields of 1, 2 or 4 bits each. Of a codebook that is
// not Gaussian the thresholds are `edges`.
template <uint32_t bits>
__device__ __forceinline__ uint32_t find_codes(const __half2 (&y)[kTiles], __half2 scaling, bool gaussian,
                                               const __half2* edges) {
  constexpr uint32_t kHalf = 1u << bits >> 1, kField = bits >= 3 ? 4 : bits;
  // Whole numbers k over 1024 are 1024 + k as fp16: those that are added to round at once, and k is the low bits.
  constexpr float kWhole = 1024;
  uint32_t word = 0;  // of values p in the lower half, p + 4 in the upper
#pragma unroll
  for (uint32_t p = 0; p < kTiles; ++p) {
    uint32_t code;
    if (gaussian) {
      const __half2 x = __habs2(__hmul2(y[p], scaling));
      __half2 index = both(kWhole + kHalf);
#pragma unroll
      for (uint32_t t = 1; t < kHalf; ++t) index = __hadd2(index, above(x, kv_gaussian_threshold(bits, t)));
      const uint32_t negative = bits_of(y[p]) >> 15 & 0x00010001u;
      code = (bits_of(index) & 0x000f000fu) ^ negative * ((1u << bits) - 1);  // the mirror image has all bits inverted
    } else {
      __half2 index = both(kWhole);
#pragma unroll
      for (uint32_t t = 0; t + 1 < 2 * kHalf; ++t)
        index = __hadd2(index, __hfma2_sat(__hsub2(y[p], edges[t]), both(kSteep), both(0)));
      code = bits_of(index) & 0x000f000fu;
    }
    word |= code << kField * p;
  }
  if constexpr (kField < 4) word = (word | word >> (16 - 4 * kField)) & ((1u << 8 * kField) - 1);
  return word;
}

// The word of a unit that this lane of a token's four stores: word `at`, if it `stores`.
struct Word {
  uint32_t bits, at;
  bool stores;
};
template <uint32_t bits>
__device__ __forceinline__ Word word_of(uint32_t eight) {
  const uint32_t j = threadIdx.x % 4;
  if constexpr (bits == 4) return {eight, j, true};
  if constexpr (bits == 3) {
    const uint32_t last = __shfl_sync(kAllLanes, eight, threadIdx.x % kWarp | 3u);  // its bits lie in all three words
    return {eight | (last >> j & 0x11111111u) << 3, j, j < 3};
  }
  if constexpr (bits == 2) return {eight | __shfl_xor_sync(kAllLanes, eight, 1) << 16, j / 2, j % 2 == 0};
  eight |= __shfl_xor_sync(kAllLanes, eight, 1) << 8;
  return {eight | __shfl_xor_sync(kAllLanes, eight, 2) << 16, 0, j == 0};
}

// What a warp works on.
struct Task {
  const KvAppendSide& side;
  uint32_t* words;    // of this side of the block
  uint32_t position;  // of the block's first token
  uint32_t start, count;

  __device__ bool is_new(uint32_t t) const { return position + t - start < count; }
};

// Quantizes and stores segment `segment`; `squares` is |y|^2 of lane j's token.
template <uint32_t bits, uint32_t kUnits>
__device__ __forceinline__ void encode(const Task& task, uint32_t segment, const Values<kUnits>& y, float squares,
                                       const __half2* edges) {
  const KvAppendSide& side = task.side;
  const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, own = g + 8 * (lane % 4);
  float factor = 1;
  uint32_t scale_code = 0;
  if (side.scale != KvScale::none) {
    float scale = sqrtf(squares / float(side.n));
    if (side.scale == KvScale::norm) {
      scale_code = nearest_scale(side.scale_bits, scale);
      scale = kv_scale_value(side.scale_bits, scale_code);
    }
    factor = scale > 0 ? fminf(1 / scale, kLargestFactor) : 0;
  }
  if (side.scale == KvScale::searched) {
    const float xz = search<bits, kUnits>(y, factor);  // |y|^2 / (y . z) with x = factor y
    scale_code = xz > 0 ? nearest_scale(side.scale_bits, squares * factor / xz) : 0;
  }

  uint32_t* codes = task.words + kv_codes_at(side.n, side.bits[0], segment);
#pragma unroll
  for (uint32_t i = 0; i < kTokens; ++i) {
    const __half2 scaling = both(of_token(factor, i));
    const uint32_t t = g + 8 * i;
#pragma unroll
    for (uint32_t u = 0; u < kUnits; ++u) {
      const Word word = word_of<bits>(find_codes<bits>(y[i][u], scaling, side.gaussian, edges));
      if (word.stores && task.is_new(t)) codes[(word.at * KV_BLOCK + t) * kUnits + u] = word.bits;
    }
  }
  if (side.scale == KvScale::none) return;
  if (side.scale == KvScale::corrected) {
    float z_squares[kTokens];
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i) z_squares[i] = squares_of_centroids<bits, kUnits>(y[i], of_token(factor, i));
    scale_code = nearest_scale(side.scale_bits, sqrtf(squares / sum_over_lanes(z_squares)));
  }
  if (!task.is_new(own)) return;
  uint32_t* scales =
      task.words + kv_scales_at(side.n, side.segments, side.bits[0], side.bits[1]) + segment * side.scale_bits;
  if (side.scale_bits == 8)
    reinterpret_cast<uint8_t*>(scales)[own] = uint8_t(scale_code);
  else
    reinterpret_cast<uint16_t*>(scales)[own] = uint16_t(scale_code);
}

// ---- The kernel -----------------------------------------------------------------------------------------------------

// A block of threads' shared memory.
template <uint32_t d>
struct Shared {
  uint4 transform[d / kUnit * kTiles][d / kUnit][kWarp];  // [unit and tile][32 columns][lane], as B's fragments
  float4 mean[d / 4], position_mean[d / 4];
  __half2 edges[2][kEdges];
};

// Columns 8 j .. of row `row` of the transform, as fp16.
__device__ __forceinline__ uint4 load_row(const float* transform, uint32_t d, uint32_t row, uint32_t column) {
  uint32_t words[4];
#pragma unroll
  for (uint32_t w = 0; w < 4; ++w) {
    const uint32_t at = column + 2 * w;
    const float2 two = transform != nullptr ? load2(transform + row * d + at)
                                            : make_float2(row == at ? 1.0f : 0.0f, row == at + 1 ? 1.0f : 0.0f);
    words[w] = bits_of(__floats2half2_rn(two.x, two.y));
  }
  return {words[0], words[1], words[2], words[3]};
}

// What all tasks of a block of threads share, none of which a kernel writes.
template <uint32_t d>
__device__ __forceinline__ void prepare(Shared<d>& shared, const KvAppendSide& side, uint32_t head) {
  constexpr uint32_t kColumns = d / kUnit;
  const float* transform =
      side.transform == nullptr ? nullptr : side.transform + (side.transform_of_head ? uint64_t(head) * d * d : 0);
  for (uint32_t item = threadIdx.x; item < kColumns * kTiles * kColumns * kWarp; item += kWarps * kWarp) {
    const uint32_t lane = item % kWarp, column = item / kWarp % kColumns, tile = item / kWarp / kColumns;
    const uint32_t c = lane / 4, row = tile / kTiles * kUnit + 8 * (c / 2) + tile % kTiles + 4 * (c % 2);
    shared.transform[tile][column][lane] = load_row(transform, d, row, column * kUnit + lane % 4 * 8);
  }
  const float4 zero = make_float4(0, 0, 0, 0);
  for (uint32_t i = threadIdx.x; i < d / 4; i += kWarps * kWarp) {
    shared.mean[i] = side.mean != nullptr ? load4(side.mean + head * d + 4 * i) : zero;
    shared.position_mean[i] = side.position_mean != nullptr ? load4(side.position_mean + head * d + 4 * i) : zero;
  }
  if (side.codebook_size == 0) return;
  const float* codebook = side.codebook + (side.codebook_of_head ? head * side.codebook_size : 0);
  for (uint32_t i = threadIdx.x; i < 2 * kEdges; i += kWarps * kWarp) {
    const uint32_t segment = i / kEdges, t = i % kEdges;
    if (segment >= side.segments || t + 1 >= 1u << side.bits[segment]) continue;
    shared.edges[segment][t] =
        both(codebook[(segment == 0 ? 0 : (2u << side.bits[0]) - 1) + (1u << side.bits[segment]) + t]);
  }
}

// Four values of which the means go off; `turn` is cosine and sine of two pairs.
__device__ __forceinline__ uint2 centre(uint2 words, float4 mean, float4 m, float4 turn) {
  const float2 low = __half22float2(pair_of(words.x)), high = __half22float2(pair_of(words.y));
  return {bits_of(__floats2half2_rn(low.x - mean.x - (m.x * turn.x - m.y * turn.y),
                                    low.y - mean.y - (m.y * turn.x + m.x * turn.y))),
          bits_of(__floats2half2_rn(high.x - mean.z - (m.z * turn.z - m.w * turn.w),
                                    high.y - mean.w - (m.w * turn.z + m.z * turn.w)))};
}

// Blocks of a multiprocessor for which there are registers.
constexpr uint32_t resident_blocks(uint32_t d, uint32_t segments) {
  return d == 32 ? 5 : d == 128 ? 2 : segments == 2 ? 4 : 3;
}

template <uint32_t d, uint32_t kSegments>
__global__ void __launch_bounds__(kWarps* kWarp, resident_blocks(d, kSegments))
    kv_append_many(const __grid_constant__ KvAppendArguments a, const uint32_t first_side) {
  constexpr uint32_t kColumns = d / kUnit, kUnits = kColumns / kSegments;
  __shared__ Shared<d> shared;
  let_next_start();
  const uint32_t is_v = first_side + blockIdx.z, head = blockIdx.y;
  const KvAppendSide& side = a.sides[is_v];
  prepare(shared, side, head);
  wait_for_inputs();
  __syncthreads();

  const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, j = lane % 4;
  const __half* values = static_cast<const __half*>(a.values[is_v]);
  const uint32_t blocks = (a.max_count + 2 * KV_BLOCK - 2) / KV_BLOCK;  // tokens may begin anywhere in a block
  // All sequences take the same positions one after another, and find the table's rows in the cache nearby.
  for (uint32_t item = blockIdx.x * kWarps + threadIdx.x / kWarp; item < blocks * a.sequences;
       item += gridDim.x * kWarps) {
    const uint32_t sequence = item % a.sequences;
    const int32_t* append = a.appends + 3 * uint64_t(sequence);
    const uint32_t start = uint32_t(append[1]), block = start / KV_BLOCK + item / a.sequences;
    const uint64_t place = (uint64_t(sequence) * a.heads + head) * a.blocks + block;
    const Task task{side, a.cache + place * a.block_words + side.first_word, block * KV_BLOCK, start,
                    uint32_t(append[2])};
    if (task.count == 0 || task.position >= start + task.count) continue;

    uint4 x[kTokens][kColumns];
#pragma unroll
    for (uint32_t i = 0; i < kTokens; ++i) {
      const uint32_t t = g + 8 * i;
      const uint64_t row = uint64_t(uint32_t(append[0])) + task.position + t - start;
#pragma unroll
      for (uint32_t c = 0; c < kColumns; ++c)
        x[i][c] = task.is_new(t)
                      ? *reinterpret_cast<const uint4*>(values + (row * a.heads + head) * d + c * kUnit + 8 * j)
                      : make_uint4(0, 0, 0, 0);
    }
    if (side.bits[0] == 16) {
#pragma unroll
      for (uint32_t i = 0; i < kTokens; ++i) {
        const uint32_t t = g + 8 * i;
        if (!task.is_new(t)) continue;
#pragma unroll
        for (uint32_t c = 0; c < kColumns; ++c) {
          const uint32_t words[4] = {x[i][c].x, x[i][c].y, x[i][c].z, x[i][c].w};
#pragma unroll
          for (uint32_t w = 0; w < 4; ++w)
            task.words[kv_codes_at(side.n, 16, c / kUnits) + ((4 * j + w) * KV_BLOCK + t) * kUnits + c % kUnits] =
                words[w];
        }
      }
      continue;
    }
    if (side.mean != nullptr || side.position_mean != nullptr) {
#pragma unroll
      for (uint32_t i = 0; i < kTokens; ++i) {
        const uint32_t t = g + 8 * i;
#pragma unroll
        for (uint32_t c = 0; c < kColumns; ++c) {
          const uint32_t at = c * kUnit + 8 * j;
          float4 low = make_float4(0, 0, 0, 0), high = low;
          if (side.position_mean != nullptr && task.is_new(t)) {
            const float* turn = a.table + uint64_t(task.position + t) * d + at;
            low = load4(turn), high = load4(turn + 4);
          }
          const uint2 first = centre({x[i][c].x, x[i][c].y}, shared.mean[at / 4], shared.position_mean[at / 4], low);
          const uint2 second =
              centre({x[i][c].z, x[i][c].w}, shared.mean[at / 4 + 1], shared.position_mean[at / 4 + 1], high);
          x[i][c] = {first.x, first.y, second.x, second.y};
        }
      }
    }

#pragma unroll 1
    for (uint32_t segment = 0; segment < kSegments; ++segment) {
      Values<kUnits> y;
      float squares[kTokens] = {};
#pragma unroll
      for (uint32_t u = 0; u < kUnits; ++u)
#pragma unroll
        for (uint32_t tile = 0; tile < kTiles; ++tile) {
          float sums[kTokens / 2][4] = {};
#pragma unroll
          for (uint32_t c = 0; c < kColumns; ++c) {
            const uint4 b = shared.transform[(segment * kUnits + u) * kTiles + tile][c][lane];
#pragma unroll
            for (uint32_t h = 0; h < kTokens / 2; ++h) {
              const uint4 &upper = x[2 * h][c], &lower = x[2 * h + 1][c];
              multiply(sums[h], upper.x, lower.x, upper.y, lower.y, b.x, b.y);
              multiply(sums[h], upper.z, lower.z, upper.w, lower.w, b.z, b.w);
            }
          }
#pragma unroll
          for (uint32_t i = 0; i < kTokens; ++i) {
            const float first = sums[i / 2][i % 2 * 2], second = sums[i / 2][i % 2 * 2 + 1];
            squares[i] += first * first + second * second;
            y[i][u][tile] = __floats2half2_rn(first, second);
          }
        }
      const float squares_of_own = sum_over_lanes(squares);
      const __half2* edges = shared.edges[segment];
      switch (side.bits[segment]) {
        case 1: encode<1, kUnits>(task, segment, y, squares_of_own, edges); break;
        case 2: encode<2, kUnits>(task, segment, y, squares_of_own, edges); break;
        case 3: encode<3, kUnits>(task, segment, y, squares_of_own, edges); break;
        default: encode<4, kUnits>(task, segment, y, squares_of_own, edges);
      }
    }
  }
}

bool takes(const KvAppendSide& side, uint32_t head_dim) {
  const bool scale = side.scale == KvScale::none ||
                     (side.gaussian && side.scale != KvScale::absmax);  // of other codebooks it knows no centroids
  const bool codes = side.codebook_size != 0 && !side.qjl && scale;
  const bool copy =
      side.bits[0] == 16 && side.mean == nullptr && side.position_mean == nullptr && side.transform == nullptr;
  return (codes || copy) && head_dim / side.segments % kUnit == 0;
}

template <uint32_t d, uint32_t kSegments>
void launch_sides(const KvAppendArguments& a, uint32_t first_side, uint32_t sides, const Launch& l) {
  const uint64_t items = uint64_t((a.max_count + 2 * KV_BLOCK - 2) / KV_BLOCK) * a.sequences;
  const uint32_t most = blocks_of(kBlocksPerProcessor * l.gpu.multiprocessors, uint64_t(a.heads) * sides);
  start(kv_append_many<d, kSegments>, dim3(std::min(blocks_of(items, kWarps), most), a.heads, sides), kWarps * kWarp, 0,
        l, a, first_side);
}

}  // namespace

bool launch_kv_append_many(const KvAppendArguments& a, const Launch& l) {
  constexpr int kOldest = 80;  // whose matrix cores have m16n8k16
  const uint32_t d = a.head_dim;
  if (!l.gpu.matrix_cores || l.gpu.compute_capability < kOldest || a.dtype != DType::f16 || a.max_count < KV_BLOCK ||
      (d != 32 && d != 64 && d != 128) || !takes(a.sides[0], d) || !takes(a.sides[1], d))
    return false;
  const auto launch = [&](uint32_t first_side, uint32_t sides) {
    const bool split = a.sides[first_side].segments == 2;
    if (d == 32) return launch_sides<32, 1>(a, first_side, sides, l);
    if (d == 64)
      return split ? launch_sides<64, 2>(a, first_side, sides, l) : launch_sides<64, 1>(a, first_side, sides, l);
    split ? launch_sides<128, 2>(a, first_side, sides, l) : launch_sides<128, 1>(a, first_side, sides, l);
  };
  if (a.sides[0].segments == a.sides[1].segments) {
    launch(0, 2);
  } else {
    launch(0, 1);
    launch(1, 1);
  }
  return true;
}

}  // namespace turboesm::cuda
