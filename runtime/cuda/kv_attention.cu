// KvAttention (runtime/kv_operations.h) for every format, in fp32:
//   score_t = s_t (q . y_t) + sqrt(pi / 2) / d r_t (projected . sigma_t) + bias_t
//   out     = transform (sum_t p_t s'_t y'_t / sum_t p_t) + mean,   p = softmax(score),   d = head_dim
// with s, s' the scales of a token's key and value, y and y' their centroids (or integers, or floats), r and sigma the
// norm and the signs of QJL's residual.
//
// attend_units: where units of 32 codes (kv_layout.h) hold values of one token, and head_dim is 32, 64, 128 or 256. A
//   warp takes a block of 32 tokens at a time. A lane takes part p = lane % P of a token's values, P = head_dim / 32:
//   one unit of K and one of V. It keeps 32 sums and a softmax of its own; nothing passes between lanes but the parts'
//   shares of a score, until all is merged at the end. Neighbouring lanes read neighbouring words, those of K while
//   they sum values, those of V while they score.
// attend_any: for all other shapes. A block of threads unpacks the keys, then the values, of 32 tokens to shared
// memory. Each block of threads has a share of the context; kv_attention_parts.cuh merges them.
#include "runtime/cuda/kv_attention_mma.h"

#include <cmath>

#include "runtime/cuda/kv_attention_parts.cuh"

namespace turboesm::cuda {
namespace {

constexpr float kRootOfHalfPi = 1.25331413732f;
constexpr uint32_t kUnit = 32;       // values
constexpr uint32_t kMostCodes = 16;  // of a segment's codebook
constexpr uint32_t kMostHeadDim = 256;

// K or V; words are counted from the first of the block.
struct SideLayout {
  uint32_t segments, n, bits_0, bits_1, scale_bits;
  uint32_t at, scales_at;
  __host__ __device__ uint32_t bits(uint32_t segment) const { return segment == 0 ? bits_0 : bits_1; }
  __host__ __device__ uint32_t codes_at(uint32_t segment) const { return at + segment * n * bits_0; }
};
struct Layout {
  SideLayout k, v;
  uint32_t qjl, signs_at, norms_at;
};

// A token's scale: the numbers of kv_scale.h, and 1 without.
__device__ __forceinline__ float scale_of(const uint32_t* words, uint32_t scale_bits, uint32_t t) {
  if (scale_bits == 0) return 1;
  const uint32_t word = words[kv_scale_word(scale_bits, t)] >> kv_scale_shift(scale_bits, t);
  if (scale_bits == 8) {
    const uint32_t code = word & 0xffu;
    return code == 0 ? 0.0f : __uint_as_float((code << 18) + (123u << 23));
  }
  const uint32_t code = word & 0xffffu;
  return code < 0x400u ? 0.0f : __uint_as_float((code << 13) + (112u << 23));
}
__device__ __forceinline__ float scale_of(const uint32_t* block, const SideLayout& side, uint32_t segment, uint32_t t) {
  return scale_of(block + side.scales_at + segment * side.scale_bits, side.scale_bits, t);
}

// Centroids to book [segment][kMostCodes].
__device__ void load_book(const float* codebook, const SideLayout& side, float* book) {
  for (uint32_t i = threadIdx.x; i < side.segments * kMostCodes; i += kKvThreads) {
    const uint32_t segment = i / kMostCodes, code = i % kMostCodes;
    if (code >> side.bits(segment) == 0) book[i] = codebook[(segment == 0 ? 0 : (2u << side.bits_0) - 1) + code];
  }
}

// Words of a unit, `step` apart. kWords is 4 for any number of words up to 4, else the number.
template <uint32_t kWords>
__device__ __forceinline__ void load_unit(const uint32_t* words, uint32_t bits, uint32_t step,
                                          uint32_t (&unit)[kWords]) {
#pragma unroll
  for (uint32_t w = 0; w < kWords; ++w) {
    if (kWords > 4 || w < bits) unit[w] = words[w * step];
  }
}

// The word of nibbles of a unit of 3-bit codes that is made of its words' high bits.
__device__ __forceinline__ uint32_t fourth_word(const uint32_t* unit) {
  return (unit[0] >> 3 & 0x11111111u) | (unit[1] >> 2 & 0x22222222u) | (unit[2] >> 1 & 0x44444444u);
}

// The 32 values of a unit.
template <uint32_t kWords>
__device__ __forceinline__ void unpack(const uint32_t (&unit)[kWords], uint32_t bits, const float* book,
                                       float (&values)[kUnit]) {
  if constexpr (kWords == 32) {
#pragma unroll
    for (uint32_t i = 0; i < kUnit; ++i) values[i] = __uint_as_float(unit[i]);
  } else if constexpr (kWords == 16) {
#pragma unroll
    for (uint32_t w = 0; w < 16; ++w) {
      values[2 * w] = __half2float(__ushort_as_half(uint16_t(unit[w] & 0xffffu)));
      values[2 * w + 1] = __half2float(__ushort_as_half(uint16_t(unit[w] >> 16)));
    }
  } else if constexpr (kWords == 8) {
#pragma unroll
    for (uint32_t i = 0; i < kUnit; ++i) values[i] = float(int32_t(unit[i / 4] << (24 - 8 * (i % 4))) >> 24);
  } else if (bits >= 3) {
    const uint32_t words[4] = {unit[0], unit[1], unit[2], bits == 3 ? fourth_word(unit) : unit[3]};
    const uint32_t mask = bits == 3 ? 7u : 15u;
#pragma unroll
    for (uint32_t i = 0; i < kUnit; ++i) values[i] = book[words[i / 8] >> (4 * (i % 8)) & mask];
  } else if (bits == 2) {
#pragma unroll
    for (uint32_t i = 0; i < kUnit; ++i) values[i] = book[unit[i / 16] >> (2 * (i % 16)) & 3u];
  } else {
#pragma unroll
    for (uint32_t i = 0; i < kUnit; ++i) values[i] = book[unit[0] >> i & 1u];
  }
}

// What a block of threads is to do.
struct Share {
  uint32_t length, first, end;  // tokens of the sequence; blocks of this share
  const uint32_t* cache;        // of the head
  __device__ Share(const KvArguments& a, const KvPlace& place) : length(uint32_t(a.lengths[place.sequence])) {
    const uint32_t used = (length + KV_BLOCK - 1) / KV_BLOCK;
    first = used * place.split / a.splits;
    end = used * (place.split + 1) / a.splits;
    cache = a.cache + uint64_t(place.tile(a)) * a.blocks * a.block_words;
  }
};

// ---- Units of one token ---------------------------------------------------------------------------------------------

// Shared memory of a part's queries, in floats: those of neighbouring parts lie in different banks.
template <uint32_t kQueries>
constexpr uint32_t kPartStride = kQueries* kUnit + 4;

__host__ __device__ constexpr uint32_t unit_blocks(uint32_t words, uint32_t queries) {  // on a multiprocessor
  return 2 * words + queries * kUnit > 128 ? 2 : 2 * words + queries * kUnit > 64 ? 3 : 4;
}

template <uint32_t kWords, uint32_t kQueries>
__global__ void __launch_bounds__(kKvThreads, unit_blocks(kWords, kQueries))
    attend_units(const __grid_constant__ KvArguments a, const __grid_constant__ Layout layout) {
  extern __shared__ float4 dynamic[];
  __shared__ float book[4][kMostCodes];  // of the segments of K, then of V
  __shared__ KvTail tail;
  constexpr uint32_t kStride = kPartStride<kQueries>;
  const uint32_t d = a.head_dim, parts = d / kUnit, thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
  float* const shared_q = reinterpret_cast<float*>(dynamic);  // [part][kStride]
  float* const shared_projected = shared_q + (layout.qjl != 0 ? parts * kStride : 0);
  float* const shared_sums = shared_projected + parts * kStride;  // [warp][query][value]

  const KvPlace place(a);
  let_next_start();
  if (layout.k.bits_0 <= 4) load_book(a.k_codebook + uint64_t(place.head) * a.k_codebook_step, layout.k, book[0]);
  if (layout.v.bits_0 <= 4) load_book(a.v_codebook + uint64_t(place.head) * a.v_codebook_step, layout.v, book[2]);
  const Share share(a, place);
  wait_for_inputs();

  for (uint32_t i = thread; i < kQueries * d; i += kKvThreads) {
    const uint32_t query = i / d, value = i % d, to = value / kUnit * kStride + query * kUnit + value % kUnit;
    const bool is_one = query < a.queries;
    shared_q[to] = is_one ? a.q[place.row(a, query) * d + value] * kLog2E : 0.0f;
    if (layout.qjl != 0)
      shared_projected[to] =
          is_one ? a.projected[place.row(a, query) * d + value] * (kRootOfHalfPi / float(d) * kLog2E) : 0.0f;
  }
  __syncthreads();

  const uint32_t part = lane % parts, tokens = kWarp / parts;  // at a time
  const float* const own_q = shared_q + part * kStride;
  const float* const own_projected = shared_projected + part * kStride;
  const uint32_t k_units = layout.k.n / kUnit, v_units = layout.v.n / kUnit;  // of a token and segment
  const uint32_t k_segment = part / k_units, v_segment = part / v_units;
  const uint32_t k_bits = layout.k.bits(k_segment), v_bits = layout.v.bits(v_segment);
  const uint32_t k_at = layout.k.codes_at(k_segment) + part % k_units;
  const uint32_t v_at = layout.v.codes_at(v_segment) + part % v_units;
  const float* const k_book = book[k_segment];
  const float* const v_book = book[2 + v_segment];
  const float* const biases = a.bias != nullptr ? a.bias + place.row(a, 0) * a.blocks * KV_BLOCK : nullptr;
  const uint64_t bias_step = uint64_t(a.heads) * a.blocks * KV_BLOCK;  // from query to query

  float sums[kQueries][kUnit] = {}, largest[kQueries], total[kQueries] = {};
#pragma unroll
  for (uint32_t r = 0; r < kQueries; ++r) largest[r] = kLowestScore;

  // Item i is round i % parts of block first + warp + kKvWarps (i / parts); this lane's token there is
  // i % parts x tokens + lane / parts.
  const uint32_t own_blocks = share.end > share.first + warp ? (share.end - share.first - warp - 1) / kKvWarps + 1 : 0;
  const uint32_t items = own_blocks * parts;
  const auto block_of = [&](uint32_t i) { return share.first + warp + i / parts * kKvWarps; };
  const auto words_of = [&](uint32_t i) { return share.cache + uint64_t(block_of(i)) * a.block_words; };
  const auto token_of = [&](uint32_t i) { return i % parts * tokens + lane / parts; };

  uint32_t k_words[kWords] = {}, v_words[kWords] = {};
  if (items > 0) {
    load_unit(words_of(0) + k_at + token_of(0) * k_units, k_bits, layout.k.n, k_words);
    load_unit(words_of(0) + v_at + token_of(0) * v_units, v_bits, layout.v.n, v_words);
  }
  for (uint32_t item = 0; item < items; ++item) {
    const uint32_t* const block = words_of(item);
    const uint32_t t = token_of(item), token = block_of(item) * KV_BLOCK + t;
    const bool counts = token < share.length;
    const bool is_last = item + 1 == items;
    float bias[kQueries] = {};
#pragma unroll
    for (uint32_t r = 0; r < kQueries; ++r) {
      if (biases != nullptr && counts && r < a.queries) bias[r] = biases[r * bias_step + token] * kLog2E;
    }
    const float k_scale = scale_of(block, layout.k, k_segment, t), v_scale = scale_of(block, layout.v, v_segment, t);

    float scores[kQueries] = {};
    {
      float values[kUnit];
      unpack(k_words, k_bits, k_book, values);
      __syncwarp();
#pragma unroll
      for (uint32_t r = 0; r < kQueries; ++r) {
        float4 dot{0, 0, 0, 0};
#pragma unroll
        for (uint32_t i = 0; i < kUnit; i += 4) {
          const float4 x = load4(own_q + r * kUnit + i);
          dot.x += x.x * values[i], dot.y += x.y * values[i + 1];
          dot.z += x.z * values[i + 2], dot.w += x.w * values[i + 3];
        }
        scores[r] = k_scale * ((dot.x + dot.y) + (dot.z + dot.w));
      }
    }
    if (layout.qjl != 0) {
      const uint32_t signs = block[layout.signs_at + t * parts + part];
      const float norm = scale_of(block + layout.norms_at, 16, t);
#pragma unroll
      for (uint32_t r = 0; r < kQueries; ++r) {
        float dot = 0;
#pragma unroll
        for (uint32_t i = 0; i < kUnit; ++i)
          dot += (signs >> i & 1u) != 0 ? own_projected[r * kUnit + i] : -own_projected[r * kUnit + i];
        scores[r] += norm * dot;
      }
    }
    if (!is_last) load_unit(words_of(item + 1) + k_at + token_of(item + 1) * k_units, k_bits, layout.k.n, k_words);
#pragma unroll
    for (uint32_t r = 0; r < kQueries; ++r) {
      for (uint32_t step = 1; step < parts; step *= 2) scores[r] += __shfl_xor_sync(kAllLanes, scores[r], step);
      scores[r] += bias[r];
    }
    if (counts) {  // beyond, scores and values may be anything
#pragma unroll
      for (uint32_t r = 0; r < kQueries; ++r) {
        constexpr float kSlack = 16;  // sums shrink only when a score is by so much above what they are relative to
        if (scores[r] > largest[r] + kSlack) {
          const float shrink = exp2f(largest[r] - scores[r]);
          largest[r] = scores[r];
          total[r] *= shrink;
#pragma unroll
          for (uint32_t i = 0; i < kUnit; ++i) sums[r][i] *= shrink;
        }
      }
      float values[kUnit];
      unpack(v_words, v_bits, v_book, values);
#pragma unroll
      for (uint32_t r = 0; r < kQueries; ++r) {
        const float weight = exp2f(scores[r] - largest[r]), scaled = weight * v_scale;
        total[r] += weight;
#pragma unroll
        for (uint32_t i = 0; i < kUnit; ++i) sums[r][i] += scaled * values[i];
      }
    }
    __syncwarp();
    if (!is_last) load_unit(words_of(item + 1) + v_at + token_of(item + 1) * v_units, v_bits, layout.v.n, v_words);
  }

  // Of this warp, by query: lanes of one part come together.
#pragma unroll
  for (uint32_t r = 0; r < kQueries; ++r) {
    const float highest = warp_max(largest[r]), shrink = exp2f(largest[r] - highest);
    const float weights = warp_sum(part == 0 ? shrink * total[r] : 0.0f);
#pragma unroll
    for (uint32_t i = 0; i < kUnit; ++i) {
      float sum = shrink * sums[r][i];
      for (uint32_t step = parts; step < kWarp; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
      if (lane < parts && r < a.queries) shared_sums[(r * kKvWarps + warp) * d + part * kUnit + i] = sum;
    }
    if (lane == 0) {
      tail.largest[r * kKvWarps + warp] = highest;
      tail.total[r * kKvWarps + warp] = weights;
    }
  }
  finish<0, kKvWarps>(a, place, tail, shared_sums);
}

// ---- Any shape ------------------------------------------------------------------------------------------------------

// Where number i of a segment's [token][value] lies in shared memory: lanes that each store a unit, or read a token,
// meet in few banks.
__host__ __device__ constexpr uint32_t padded(uint32_t i) { return i + i / kUnit; }

// All units of a segment to values [padded(KV_BLOCK n)].
template <uint32_t kWords>
__device__ __forceinline__ void unpack_segment(const uint32_t* words, uint32_t n, uint32_t bits, const float* book,
                                               float* values) {
  for (uint32_t u = threadIdx.x; u < n; u += kKvThreads) {
    uint32_t unit[kWords] = {};
    float unpacked[kUnit];
    load_unit(words + u, bits, n, unit);
    unpack(unit, bits, book, unpacked);
#pragma unroll
    for (uint32_t i = 0; i < kUnit; ++i) values[padded(kUnit * u) + i] = unpacked[i];
  }
}
__device__ void unpack_side(const uint32_t* block, const SideLayout& side, const float* book, float* values) {
  for (uint32_t s = 0; s < side.segments; ++s) {
    const uint32_t bits = side.bits(s);
    const uint32_t* words = block + side.codes_at(s);
    float* const to = values + s * padded(KV_BLOCK * side.n);
    switch (bits) {
      case 8: unpack_segment<8>(words, side.n, bits, nullptr, to); break;
      case 16: unpack_segment<16>(words, side.n, bits, nullptr, to); break;
      case 32: unpack_segment<32>(words, side.n, bits, nullptr, to); break;
      default: unpack_segment<4>(words, side.n, bits, book + s * kMostCodes, to);
    }
  }
}

__global__ void __launch_bounds__(kKvThreads, 4)
    attend_any(const __grid_constant__ KvArguments a, const __grid_constant__ Layout layout) {
  extern __shared__ float4 dynamic[];
  __shared__ float book[4][kMostCodes];
  __shared__ float weights[kKvQueries][KV_BLOCK], shrinks[kKvQueries], value_scales[2][KV_BLOCK];
  __shared__ KvTail tail;
  const uint32_t d = a.head_dim, size = a.queries * d, thread = threadIdx.x, warp = thread / kWarp,
                 lane = thread % kWarp;
  float* const shared_q = reinterpret_cast<float*>(dynamic);  // [query][value]
  float* const shared_projected = shared_q + (layout.qjl != 0 ? size : 0);
  float* const shared_sums = shared_projected + size;  // [query][value]
  float* const values = shared_sums + size;            // [segment][padded(token, value)]

  const KvPlace place(a);
  let_next_start();
  if (layout.k.bits_0 <= 4) load_book(a.k_codebook + uint64_t(place.head) * a.k_codebook_step, layout.k, book[0]);
  if (layout.v.bits_0 <= 4) load_book(a.v_codebook + uint64_t(place.head) * a.v_codebook_step, layout.v, book[2]);
  const Share share(a, place);
  wait_for_inputs();

  for (uint32_t i = thread; i < size; i += kKvThreads) {
    const uint64_t from = place.row(a, i / d) * d + i % d;
    shared_q[i] = a.q[from] * kLog2E;
    if (layout.qjl != 0) shared_projected[i] = a.projected[from] * (kRootOfHalfPi / float(d) * kLog2E);
  }
  // A thread sums values thread and thread + kKvThreads of all queries; warp r has the softmax of query r.
  constexpr uint32_t kColumns = kMostHeadDim / kKvThreads;
  float sums[kColumns][kKvQueries] = {}, largest = kLowestScore, total = 0;
  __syncthreads();
  for (uint32_t b = share.first; b < share.end; ++b) {
    const uint32_t* const block = share.cache + uint64_t(b) * a.block_words;
    const uint32_t counted = min(share.length - b * KV_BLOCK, KV_BLOCK);
    unpack_side(block, layout.k, book[0], values);
    __syncthreads();

    // Four threads score a token.
    constexpr uint32_t kSharers = kKvThreads / KV_BLOCK;
    const uint32_t t = thread / kSharers, sharer = thread % kSharers, n = layout.k.n;
    float scores[kKvQueries] = {};
    for (uint32_t s = 0; s < layout.k.segments; ++s) {
      float dots[kKvQueries] = {};
      for (uint32_t i = sharer; i < n; i += kSharers) {
        const float value = values[s * padded(KV_BLOCK * n) + padded(t * n + i)];
#pragma unroll
        for (uint32_t r = 0; r < kKvQueries; ++r) {
          if (r < a.queries) dots[r] += shared_q[r * d + s * n + i] * value;
        }
      }
      const float scale = scale_of(block, layout.k, s, t);
#pragma unroll
      for (uint32_t r = 0; r < kKvQueries; ++r) scores[r] += scale * dots[r];
    }
    if (layout.qjl != 0) {
      float dots[kKvQueries] = {};
      for (uint32_t i = sharer; i < d; i += kSharers) {
        const bool is_plus = (block[layout.signs_at + kv_code_word(d, t, i, 0)] >> kv_element(d, t, i) & 1u) != 0;
#pragma unroll
        for (uint32_t r = 0; r < kKvQueries; ++r) {
          if (r < a.queries) dots[r] += is_plus ? shared_projected[r * d + i] : -shared_projected[r * d + i];
        }
      }
      const float norm = scale_of(block + layout.norms_at, 16, t);
#pragma unroll
      for (uint32_t r = 0; r < kKvQueries; ++r) scores[r] += norm * dots[r];
    }
#pragma unroll
    for (uint32_t r = 0; r < kKvQueries; ++r) {
#pragma unroll
      for (uint32_t step = 1; step < kSharers; step *= 2) scores[r] += __shfl_xor_sync(kAllLanes, scores[r], step);
      if (sharer != r || r >= a.queries) continue;  // sharer r finishes query r
      if (t < counted && a.bias != nullptr)
        scores[r] += a.bias[(place.row(a, r) * a.blocks + b) * KV_BLOCK + t] * kLog2E;
      weights[r][t] = t < counted ? scores[r] : 2 * kLowestScore;
    }
    __syncthreads();  // the scores are there, and keys no longer needed
    if (warp < a.queries) {
      const float score = weights[warp][lane], highest = fmaxf(largest, warp_max(score));
      const float shrink = exp2f(largest - highest), weight = exp2f(score - highest);
      largest = highest;
      total = total * shrink + weight;  // of this lane's tokens
      weights[warp][lane] = weight;
      if (lane == 0) shrinks[warp] = shrink;
    }
    unpack_side(block, layout.v, book[2], values);
    if (thread < layout.v.segments * KV_BLOCK)
      value_scales[thread / KV_BLOCK][thread % KV_BLOCK] =
          scale_of(block, layout.v, thread / KV_BLOCK, thread % KV_BLOCK);
    __syncthreads();
#pragma unroll
    for (uint32_t k = 0; k < kColumns; ++k) {
      const uint32_t column = thread + k * kKvThreads;
      if (column >= d) break;
#pragma unroll
      for (uint32_t r = 0; r < kKvQueries; ++r) {
        if (r < a.queries) sums[k][r] *= shrinks[r];
      }
      const uint32_t segment = column / layout.v.n, i = column % layout.v.n;
      const float* const of_segment = values + segment * padded(KV_BLOCK * layout.v.n);
      for (uint32_t token = 0; token < counted; ++token) {
        const float value = value_scales[segment][token] * of_segment[padded(token * layout.v.n + i)];
#pragma unroll
        for (uint32_t r = 0; r < kKvQueries; ++r) {
          if (r < a.queries) sums[k][r] += weights[r][token] * value;
        }
      }
    }
    __syncthreads();
  }
  total = warp_sum(total);
  if (lane == 0 && warp < a.queries) {
    tail.largest[warp] = largest;
    tail.total[warp] = total;
  }
#pragma unroll
  for (uint32_t k = 0; k < kColumns; ++k) {
#pragma unroll
    for (uint32_t r = 0; r < kKvQueries; ++r) {
      if (r < a.queries && thread + k * kKvThreads < d) shared_sums[r * d + thread + k * kKvThreads] = sums[k][r];
    }
  }
  finish<0, 1>(a, place, tail, shared_sums);
}

// ---- On the host ----------------------------------------------------------------------------------------------------

SideLayout layout_of(const KvSide& side, uint32_t head_dim, uint32_t at) {
  const uint32_t n = head_dim / side.segments;
  return {.segments = side.segments,
          .n = n,
          .bits_0 = side.bits[0],
          .bits_1 = side.bits[1],
          .scale_bits = side.scale_bits,
          .at = at,
          .scales_at = at + kv_scales_at(n, side.segments, side.bits[0], side.bits[1])};
}

Layout layout_of(const KvFormat& format, uint32_t head_dim) {
  const KvSide& k = format.k;
  const uint32_t signs_at = kv_signs_at(head_dim / k.segments, k.segments, k.bits[0], k.bits[1], k.scale_bits);
  return {.k = layout_of(k, head_dim, 0),
          .v = layout_of(format.v, head_dim, k.block_words(head_dim)),
          .qjl = k.qjl ? 1u : 0u,
          .signs_at = signs_at,
          .norms_at = signs_at + head_dim};
}

KvArguments arguments_of(const KvAttention& a, const Launch& l) {
  const auto step = [](const Tensor& tensor, uint64_t size) { return uint32_t(tensor.count > size ? size : 0); };
  return {.q = pointer<const float>(a.q),
          .projected = pointer<const float>(a.projected),
          .bias = pointer<const float>(a.bias),
          .cache = pointer<const uint32_t>(a.cache),
          .lengths = pointer<const int32_t>(a.lengths),
          .k_codebook = pointer<const float>(a.k_codebook),
          .v_codebook = pointer<const float>(a.v_codebook),
          .transform = pointer<const float>(a.transform),
          .mean = pointer<const float>(a.mean),
          .out = pointer<void>(a.out),
          .scratch = reinterpret_cast<uint32_t*>(l.scratch),
          .out_dtype = a.out.dtype,
          .sequences = a.sequences,
          .queries = a.queries,
          .heads = a.heads,
          .head_dim = a.head_dim,
          .blocks = a.capacity / KV_BLOCK,
          .block_words = a.format.block_words(a.head_dim),
          .splits = 1,
          .log2_together = 0,
          .k_codebook_step = step(a.k_codebook, a.format.k.codebook_size()),
          .v_codebook_step = step(a.v_codebook, a.format.v.codebook_size()),
          .transform_step = step(a.transform, uint64_t(a.head_dim) * a.head_dim)};
}

template <class... Parameters>
void launch_kernel(void (*kernel)(Parameters...), size_t floats, KvArguments arguments, const KvAttention& a,
                   uint32_t resident, const Launch& l) {
  const size_t bytes = floats * sizeof(float);
  constexpr double kMerge = 2.5;  // an H200
  arguments.splits = kv_splits(a, l, resident, true, kMerge);
  start(kernel, dim3(a.heads, a.sequences, arguments.splits), dim3(kKvThreads), bytes, l, arguments,
        layout_of(a.format, a.head_dim));
}

template <uint32_t kWords>
void launch_units(const KvAttention& a, const KvArguments& arguments, const Launch& l) {
  const auto with_queries = [&]<uint32_t kQueries>() {
    const uint32_t tensors = a.format.k.qjl ? 2 : 1;
    launch_kernel(attend_units<kWords, kQueries>,
                  tensors * a.head_dim / kUnit * kPartStride<kQueries> + kKvWarps * a.queries * a.head_dim, arguments,
                  a, unit_blocks(kWords, kQueries), l);
  };
  if (a.queries == 1) return with_queries.template operator()<1>();
  if (a.queries == 2) return with_queries.template operator()<2>();
  with_queries.template operator()<4>();
}

// Words of a unit as attend_units has them; 0 for sides that it does not take.
uint32_t words_of_unit(const KvSide& side, uint32_t head_dim) {
  if (head_dim / side.segments % kUnit != 0 || kWarp % (head_dim / kUnit) != 0) return 0;
  return side.bits[0] <= 4 ? 4 : side.bits[0];
}

constexpr double kMany = 4;  // waves: from here on blocks do not end together, and none waits for a wave

}  // namespace

double kv_waves(uint64_t blocks, uint32_t resident, const Gpu& gpu) {
  constexpr uint32_t kLeast = 2;  // blocks that a multiprocessor takes as long for as for one
  const double full = double(blocks) / (double(gpu.multiprocessors) * resident);
  if (full <= 1) return 1;
  if (full >= kMany) return full + 0.5;
  const uint32_t most = blocks_of(blocks, gpu.multiprocessors), rest = most % resident;
  return most / resident + (rest == 0 ? 0 : double(rest < kLeast ? kLeast : rest) / resident);
}

uint32_t kv_splits(const KvAttention& a, const Launch& l, uint32_t resident, bool whole_waves, double merge) {
  // Estimated times, in units of what a warp of a full multiprocessor takes for a block of the cache: before and after
  // the loop, and for each split that is merged.
  constexpr double kFixed = 4, kMergeSplit = 0.05;
  const uint64_t tiles = uint64_t(a.sequences) * a.heads;
  if (tiles == 0 || tiles > kCounters) return 1;
  const uint64_t blocks = a.capacity / KV_BLOCK, stride = (a.head_dim + 4) * a.queries * sizeof(float);
  const uint64_t room = (kScratchBytes - kCounters * sizeof(uint32_t)) / (tiles * stride);
  uint64_t most = room < kMaxKvSplits ? room : kMaxKvSplits;
  if (most > blocks) most = blocks;
  uint32_t best = 1;
  double least = 0;
  for (uint64_t splits = 1; splits <= most; ++splits) {
    const uint64_t of_split = (blocks + splits - 1) / splits, of_warp = (of_split + kKvWarps - 1) / kKvWarps;
    const double waves = kv_waves(tiles * splits, resident, l.gpu);
    const double counted = whole_waves && waves < kMany ? std::ceil(waves) : waves;
    const double time = counted * (kFixed + double(of_warp)) + (splits > 1 ? merge + kMergeSplit * double(splits) : 0);
    if (splits == 1 || time < least) best = uint32_t(splits), least = time;
  }
  return best;
}

void launch(const KvAttention& a, const Launch& l) {
  const KvArguments arguments = arguments_of(a, l);
  if (launch_kv_attention_mma(a, arguments, l)) return;
  const uint32_t k_words = words_of_unit(a.format.k, a.head_dim), v_words = words_of_unit(a.format.v, a.head_dim);
  if (k_words == v_words) {
    switch (k_words) {
      case 4: return launch_units<4>(a, arguments, l);
      case 8: return launch_units<8>(a, arguments, l);
      case 16: return launch_units<16>(a, arguments, l);
      case 32: return launch_units<32>(a, arguments, l);
    }
  }
  const uint32_t tensors = a.format.k.qjl ? 3 : 2;  // queries, projected ones, sums
  const uint32_t most_segments = 2;
  launch_kernel(attend_any, tensors * a.queries * a.head_dim + padded(KV_BLOCK * a.head_dim) + most_segments, arguments,
                a, 4, l);
}

}  // namespace turboesm::cuda
