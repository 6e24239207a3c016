// Encodes new tokens into the quantized KV cache (KvAppend in runtime/kv_operations.h). Products, sums and their order
// are those of the CPU (runtime/cpu/kv_kernels.cpp), so that equal input gives equal bits: times() and plus() are
// never fused, and no quotient or root decides a bit.
//
//   k, v [tokens, heads, d] -> cache [sequences, heads, blocks, block words]
//
// A warp takes K or V of one head and one token after another, of a chunk of kChunk tokens that begin and end together
// in the cache: tokens of different chunks share no word but of scales, which are stored byte by byte. Lane i has
// values i, i + 32, ... A block's warps share a head's transform and codebooks, which are in shared memory before the
// values come. Sums over values must be taken in ascending order: products go to rows in shared memory, and a lane for
// each row adds them one after another, all rows (of segments, candidates for the scale, kinds of sum) at the same
// time.
#pragma once

#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/kv_append.h"
#include "runtime/cuda/kv_transform.cuh"
#include "runtime/operation_rules.h"
#include "shaders/include/kv_scale.h"

namespace turboesm::cuda::kv_append {

inline constexpr uint32_t kChunk = 8;  // tokens; a multiple of kv_group_tokens() of 4 values and more
inline constexpr uint32_t kFewestWarps = 4, kMostWarps = 8;  // of a block
inline constexpr uint32_t kBook = 32;                        // room for a segment's centroids and thresholds
inline constexpr uint32_t kPad = 4;                          // floats: rows of shared memory begin in different banks
inline constexpr uint32_t kSums = 4;                         // rows for each segment

inline uint32_t stride_of_matrix(uint32_t d) { return d + kPad; }
__host__ __device__ inline uint32_t floats_of_warp(uint32_t d) { return kSums * (d + 2 * kPad); }

__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float minus(float a, float b) { return __fsub_rn(a, b); }

__device__ __forceinline__ float load_value(const void* values, DType dtype, uint64_t at) {
  if (dtype == DType::f16) return __half2float(static_cast<const __half*>(values)[at]);
  if (dtype == DType::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(values)[at]);
  return static_cast<const float*>(values)[at];
}

// The integer q in [-127, 127] with (q - 1/2) s <= y < (q + 1/2) s.
__device__ inline int32_t nearest_integer(float y, float s) {
  if (s == 0) return 0;
  const float guess = floorf(plus(y / s, 0.5f));
  int32_t q = guess < -127 ? -127 : guess > 127 ? 127 : int32_t(guess);
  while (q > -127 && y < times(minus(float(q), 0.5f), s)) --q;
  while (q < 127 && !(y < times(plus(float(q), 0.5f), s))) ++q;
  return q;
}

// The code of the scale nearest to a / b, or to its root; 0 when there is no such number. Lanes 8 c .. 8 c + 7 have the
// same a and b and find the same code: each takes a step of kv_scale_nearest(), which ends with the first that fails.
__device__ inline uint32_t scale_code(uint32_t scale_bits, float a, float b, bool root) {
  constexpr uint32_t kSteps = 6;
  const uint32_t lane = threadIdx.x % kWarp, step = lane % 8;
  const float quotient = a / b, guess = root ? sqrtf(quotient) : quotient;
  const uint32_t first = kv_scale_below(scale_bits, times(guess, 0.998f));
  const uint32_t base = first == 0 ? kv_scale_lowest(scale_bits) - 1 : first;  // plus the steps, unless there are none
  const uint32_t code = step == 0 ? first : base + step;
  const float sum = plus(kv_scale_value(scale_bits, code), kv_scale_value(scale_bits, base + step + 1));
  const bool passes =
      step < kSteps && code < kv_scale_highest(scale_bits) && kv_scale_is_below(times(0.5f, sum), a, b, root);
  const uint32_t passed = __ballot_sync(kAllLanes, passes) >> (lane & ~7u) & 0xffu;
  const uint32_t steps = __ffs(~passed) - 1;
  if (!(b > 0)) return 0;
  return steps == 0 ? first : base + steps;
}

// Stores the codes of n values of token t, where units of 32 codes are shared with other tokens, whose bits stay.
__device__ inline __noinline__ void merge_parts(const uint32_t* codes, uint32_t n, uint32_t bits, uint32_t t,
                                                uint32_t* words) {
  const uint32_t tokens = kv_group_tokens(n), begin = t % tokens * n, first_unit = begin / 32;
  const uint32_t units = (begin + n - 1) / 32 - first_unit + 1;
  for (uint32_t item = threadIdx.x % kWarp; item < units * bits; item += kWarp) {
    const uint32_t w = item / units, unit = first_unit + item % units;
    uint32_t word = 0, mask = 0;
    for (uint32_t e = 0; e < 32; ++e) {
      const uint32_t i = unit * 32 + e - begin;
      if (i >= n) continue;
      word |= kv_deposit(bits, e, w, codes[i]);
      mask |= kv_deposit(bits, e, w, ~0u >> (32 - bits));
    }
    uint32_t& stored = words[(w * (KV_BLOCK / tokens) + t / tokens) * kv_group_units(n) + unit];
    if (mask != 0) stored = mask == ~0u ? word : (stored & ~mask) | word;
  }
}

// What a warp works on. Members are called by all its lanes.
template <uint32_t kValues, bool kFull>
struct Encoder {
  const KvAppendSide& side;
  const float* book;  // [segment][kBook]
  float* rows;        // floats_of_warp()
  uint32_t d;
  uint32_t lane = threadIdx.x % kWarp;

  float y[kValues];         // what is quantized
  float z[kValues];         // centroids
  uint32_t codes[kValues];  // theirs
  uint32_t scales[2];       // codes of scales

  __device__ uint32_t value(uint32_t v) const { return v * kWarp + lane; }
  __device__ bool is_value(uint32_t v) const { return kFull || value(v) < d; }
  __device__ uint32_t segment(uint32_t v) const { return value(v) >= side.n ? 1 : 0; }

  // y = matrix x, x [d] in shared memory, each sum over j in ascending order.
  __device__ __forceinline__ void multiply(const float* matrix, uint32_t stride, const float* x) {
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) y[v] = 0;
    constexpr uint32_t kAhead = kValues <= 2 ? 4 : 2;
    const uint32_t width = kFull ? kValues * kWarp : d;
#pragma unroll kAhead
    for (uint32_t j = 0; j < width; j += 4) {
      const float4 b = load4(x + j);
#pragma unroll
      for (uint32_t v = 0; v < kValues; ++v) {
        const float4 m = load4(matrix + (is_value(v) ? value(v) : 0) * stride + j);
        y[v] = plus(y[v], times(m.x, b.x));
        y[v] = plus(y[v], times(m.y, b.y));
        y[v] = plus(y[v], times(m.z, b.z));
        y[v] = plus(y[v], times(m.w, b.w));
      }
    }
  }

  // ---- Sums in order ------------------------------------------------------------------------------------------------

  // Row `sum` of each segment.
  __device__ void put(uint32_t sum, uint32_t v, float number) const {
    if (is_value(v)) rows[sum * (d + side.segments * kPad) + value(v) + segment(v) * kPad] = number;
  }

  // Lane r has the sum of row r, of n values; sum `sum` of a segment is row sum x segments + segment.
  __device__ float sum_rows(uint32_t count, uint32_t n) const {
    __syncwarp();
    float sum = 0;
    if (lane < count) {
      const float* row = rows + lane * (n + kPad);
      const auto add = [&](float4 four) { sum = plus(plus(plus(plus(sum, four.x), four.y), four.z), four.w); };
      constexpr uint32_t kAhead = 8;
      uint32_t i = 0;
      for (; i + 4 * kAhead <= n; i += 4 * kAhead) {
        float4 fours[kAhead];
#pragma unroll
        for (uint32_t k = 0; k < kAhead; ++k) fours[k] = load4(row + i + 4 * k);
#pragma unroll
        for (uint32_t k = 0; k < kAhead; ++k) add(fours[k]);
      }
      for (; i < n; i += 4) add(load4(row + i));
    }
    __syncwarp();
    return sum;
  }

  __device__ float sum_of(float sums, uint32_t sum, uint32_t s) const {
    return __shfl_sync(kAllLanes, sums, sum * side.segments + s);
  }

  // ---- Quantization -------------------------------------------------------------------------------------------------

  // Codes at scales s[candidate][segment]: the number of thresholds t with t s < y. They ascend, so that halving finds
  // it.
  template <uint32_t kCandidates>
  __device__ __forceinline__ void quantize(const float (&s)[kCandidates][2], uint32_t (&found)[kCandidates][kValues],
                                           float (&centroids)[kCandidates][kValues]) const {
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v)
#pragma unroll
      for (uint32_t c = 0; c < kCandidates; ++c) found[c][v] = 0;
#pragma unroll
    for (uint32_t step = 8; step > 0; step /= 2)
#pragma unroll
      for (uint32_t v = 0; v < kValues; ++v) {
        const uint32_t which = segment(v), count = 1u << side.bits[which];
        const float* thresholds = book + which * kBook + count;
#pragma unroll
        for (uint32_t c = 0; c < kCandidates; ++c) {
          const bool is_above = times(thresholds[found[c][v] + step - 1], which == 0 ? s[c][0] : s[c][1]) < y[v];
          found[c][v] += step < count && is_above ? step : 0;
        }
      }
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v)
#pragma unroll
      for (uint32_t c = 0; c < kCandidates; ++c) centroids[c][v] = book[segment(v) * kBook + found[c][v]];
  }

  // Quantizes at the scales of candidates: sum 2 c is the error |y - s z|^2 of candidate c, sum 2 c + 1 is y . z.
  template <uint32_t kCandidates>
  __device__ __forceinline__ float judge(const float (&s)[kCandidates][2], uint32_t (&found)[kCandidates][kValues],
                                         float (&centroids)[kCandidates][kValues]) const {
    quantize(s, found, centroids);
#pragma unroll
    for (uint32_t c = 0; c < kCandidates; ++c)
#pragma unroll
      for (uint32_t v = 0; v < kValues; ++v) {
        const float decoded = times(segment(v) == 0 ? s[c][0] : s[c][1], centroids[c][v]);
        const float difference = minus(y[v], decoded);
        put(2 * c, v, times(difference, difference));
        put(2 * c + 1, v, times(y[v], centroids[c][v]));
      }
    return sum_rows(2 * kCandidates * side.segments, side.n);
  }

  // `numbers` of lane 0 for segment 0 and of lane 8 for segment 1, as scale_code() leaves them.
  template <class T>
  __device__ void spread(T number, T (&of_segments)[2]) const {
    of_segments[0] = __shfl_sync(kAllLanes, number, 0);
    of_segments[1] = __shfl_sync(kAllLanes, number, 8);
  }
  // The segment whose scale this lane seeks, in scale_code().
  __device__ uint32_t sought() const { return side.segments == 2 && lane / 8 == 1 ? 1 : 0; }

  // Of three scales round |y| / sqrt(n) the one with the least error; the scale that is stored is |y|^2 / (y . z).
  __device__ __forceinline__ void search(float squares) {
    float base[2], tried[2][2], third[1][2], yz[2];
    spread(kv_scale_value(16, scale_code(16, squares, float(side.n), true)), base);
    uint32_t found[2][kValues], found_third[1][kValues];
    float centroids[2][kValues], centroids_third[1][kValues];
#pragma unroll
    for (uint32_t s = 0; s < 2; ++s) {
      tried[0][s] = times(base[s], kv_search_factor(0, false));
      tried[1][s] = times(base[s], kv_search_factor(1, false));
    }
    float sums = judge(tried, found, centroids);
    bool is_second[2], is_third[2];
    float least[2];
#pragma unroll
    for (uint32_t s = 0; s < 2; ++s) {
      const uint32_t at = s < side.segments ? s : 0;
      const float first_error = sum_of(sums, 0, at), second_error = sum_of(sums, 2, at);
      const float first_yz = sum_of(sums, 1, at), second_yz = sum_of(sums, 3, at);
      is_second[s] = second_error < first_error;
      least[s] = is_second[s] ? second_error : first_error;
      yz[s] = is_second[s] ? second_yz : first_yz;
      third[0][s] = times(base[s], kv_search_factor(2, is_second[s]));
    }
    sums = judge(third, found_third, centroids_third);
#pragma unroll
    for (uint32_t s = 0; s < 2; ++s) {
      const uint32_t at = s < side.segments ? s : 0;
      const float third_error = sum_of(sums, 0, at), third_yz = sum_of(sums, 1, at);
      is_third[s] = third_error < least[s];
      if (is_third[s]) yz[s] = third_yz;
    }
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) {
      const uint32_t s = segment(v);
      const bool takes_third = s == 0 ? is_third[0] : is_third[1], takes_second = s == 0 ? is_second[0] : is_second[1];
      codes[v] = takes_third ? found_third[0][v] : takes_second ? found[1][v] : found[0][v];
      z[v] = takes_third ? centroids_third[0][v] : takes_second ? centroids[1][v] : centroids[0][v];
    }
    spread(scale_code(side.scale_bits, squares, sought() == 0 ? yz[0] : yz[1], false), scales);
  }

  __device__ void quantize_at(float first, float second) {
    const float s[1][2] = {{first, second}};
    uint32_t found[1][kValues];
    float centroids[1][kValues];
    quantize(s, found, centroids);
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) codes[v] = found[0][v], z[v] = centroids[0][v];
  }

  __device__ void quantize_by_largest() {
    float largest[2] = {0, 0};
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v)
      if (is_value(v)) {
        float& of_segment = segment(v) == 0 ? largest[0] : largest[1];
        of_segment = fmaxf(of_segment, fabsf(y[v]));
      }
    largest[0] = warp_max(largest[0]), largest[1] = warp_max(largest[1]);
    const uint32_t s = sought(), bits = side.bits[s];
    const float top = bits == 8 ? 127.0f : book[s * kBook + (1u << bits) - 1];
    spread(scale_code(side.scale_bits, s == 0 ? largest[0] : largest[1], top, false), scales);
    const float first = kv_scale_value(side.scale_bits, scales[0]), second = kv_scale_value(side.scale_bits, scales[1]);
    if (bits <= 4) return quantize_at(first, second);
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) {
      const int32_t q = nearest_integer(y[v], segment(v) == 0 ? first : second);
      codes[v] = uint32_t(q) & 0xffu;
      z[v] = float(q);
    }
  }

  // Codes, their centroids and the scales' codes.
  __device__ void encode() {
    if (side.bits[0] >= 16) {
#pragma unroll
      for (uint32_t v = 0; v < kValues; ++v)
        codes[v] = side.bits[0] == 32 ? __float_as_uint(y[v]) : __half_as_ushort(__float2half_rn(y[v]));
      return;
    }
    if (side.scale == KvScale::none) return quantize_at(1, 1);
    if (side.scale == KvScale::absmax) return quantize_by_largest();
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) put(0, v, times(y[v], y[v]));
    const float squares = sum_of(sum_rows(side.segments, side.n), 0, sought());
    if (side.scale == KvScale::searched) return search(squares);
    const uint32_t bits = side.scale == KvScale::norm ? side.scale_bits : 16;
    spread(scale_code(bits, squares, float(side.n), true), scales);
    quantize_at(kv_scale_value(bits, scales[0]), kv_scale_value(bits, scales[1]));
    if (side.scale == KvScale::norm) return;
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) put(0, v, times(z[v], z[v]));
    const float z_squares = sum_of(sum_rows(side.segments, side.n), 0, sought());
    spread(scale_code(side.scale_bits, squares, z_squares, true), scales);
  }

  // x = y - decoded y, y = projection x: codes are its signs. Returns the code of |x|.
  __device__ uint32_t project_residual() {
    float* x = rows + 2 * (d + 2 * kPad);
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) {
      const float s =
          side.scale_bits == 0 ? 1.0f : kv_scale_value(side.scale_bits, segment(v) == 0 ? scales[0] : scales[1]);
      const float left = minus(y[v], times(s, z[v]));
      if (is_value(v)) x[value(v)] = left, rows[value(v)] = times(left, left);
    }
    const float squares = __shfl_sync(kAllLanes, sum_rows(1, d), 0);
    multiply(side.projection, d, x);
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) codes[v] = y[v] >= 0 ? 1 : 0;
    __syncwarp();
    return scale_code(16, squares, 1, true);
  }

  // ---- Packing ------------------------------------------------------------------------------------------------------

  // Codes of values first .. first + n - 1 to `words`, those of a segment of n values.
  __device__ void pack(uint32_t first, uint32_t n, uint32_t bits, uint32_t t, uint32_t* words) const {
    if (first % kWarp == 0 && n % kWarp == 0)
      pack_units(first / kWarp, n / kWarp, bits, t, words);
    else
      pack_parts(first, n, bits, t, words);
  }

  // Whole units of 32 codes, each its own lane's.
  __device__ __forceinline__ void pack_units(uint32_t first, uint32_t units, uint32_t bits, uint32_t t,
                                             uint32_t* words) const {
    const uint32_t field = bits == 3 ? 4 : bits, of_word = 32 / field, w = lane / of_word;
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) {
      if (v - first >= units) continue;
      uint32_t word = codes[v];
      if (bits == 3) word |= (__shfl_sync(kAllLanes, word, 24 + lane % 8) >> w & 1u) << 3;
      word <<= lane % of_word * field;
      for (uint32_t step = 1; step < of_word; step *= 2) word |= __shfl_xor_sync(kAllLanes, word, step);
      if (lane % of_word == 0 && w < bits) words[(w * KV_BLOCK + t) * units + v - first] = word;
    }
  }

  __device__ void pack_parts(uint32_t first, uint32_t n, uint32_t bits, uint32_t t, uint32_t* words) const {
    uint32_t* all = reinterpret_cast<uint32_t*>(rows);
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v)
      if (is_value(v)) all[value(v)] = codes[v];
    __syncwarp();
    merge_parts(all + first, n, bits, t, words);
    __syncwarp();
  }

  __device__ void store_scale(uint32_t scale_bits, uint32_t t, uint32_t code, uint32_t* words) const {
    if (scale_bits == 8)
      reinterpret_cast<uint8_t*>(words)[t] = uint8_t(code);
    else
      reinterpret_cast<uint16_t*>(words)[t] = uint16_t(code);
  }

  // Token t of a block, whose words of this side begin at `words`.
  __device__ void store(uint32_t t, uint32_t* words) {
    const uint32_t n = side.n;
    pack(0, n, side.bits[0], t, words);
    if (side.segments == 2) pack(n, n, side.bits[1], t, words + kv_codes_at(n, side.bits[0], 1));
    const uint32_t scales_at = kv_scales_at(n, side.segments, side.bits[0], side.bits[1]);
    if (side.scale_bits != 0 && lane < side.segments)
      store_scale(side.scale_bits, t, lane == 0 ? scales[0] : scales[1], words + scales_at + lane * side.scale_bits);
    if (!side.qjl) return;
    const uint32_t norm = project_residual();
    uint32_t* signs = words + scales_at + side.segments * side.scale_bits;
    pack(0, d, 1, t, signs);
    if (lane == 0) store_scale(16, t, norm, signs + d);
  }
};

// Of a launch.
struct Shape {
  uint32_t warps;          // of a block
  uint32_t chunks;         // of a sequence
  uint64_t items;          // of K or V of a head, a warp each
  uint32_t matrix_stride;  // of the transform in shared memory; 0: it stays where it is
  uint32_t shared_bytes;

  uint32_t blocks() const { return blocks_of(items, warps); }
};

inline Shape shape_of(const KvAppendArguments& a, const Gpu& gpu) {
  // Tokens that follow one another may begin anywhere in a chunk.
  const uint32_t d = a.head_dim, chunks = (a.max_count + 2 * kChunk - 2) / kChunk, sides = 2 * a.heads;
  const uint64_t items = uint64_t(a.sequences) * chunks;
  // Warps of a block so that the multiprocessor with most of them has few.
  uint32_t warps = kMostWarps;
  const auto most = [&](uint32_t n) {
    return (uint64_t(sides) * blocks_of(items, n) + gpu.multiprocessors - 1) / gpu.multiprocessors * n;
  };
  for (uint32_t n = kMostWarps - 1; n >= kFewestWarps; --n)
    if (most(n) < most(warps)) warps = n;
  const uint32_t bytes = 4 * (2 * kBook + warps * floats_of_warp(d));
  uint32_t stride = stride_of_matrix(d), matrix_bytes = 4 * d * stride;
  if (bytes + matrix_bytes > gpu.max_shared_bytes) stride = matrix_bytes = 0;
  return {
      .warps = warps, .chunks = chunks, .items = items, .matrix_stride = stride, .shared_bytes = bytes + matrix_bytes};
}

inline KvAppendSide side_of(const KvSide& format, const KvSideTensors& t, uint32_t first_word, uint32_t d) {
  return {.segments = format.segments,
          .bits = {format.bits[0], format.bits[1]},
          .scale_bits = format.scale_bits,
          .scale = format.scale,
          .qjl = format.qjl,
          .gaussian = format.gaussian,
          .n = d / format.segments,
          .first_word = first_word,
          .codebook_size = format.codebook_size(),
          .mean = pointer<const float>(t.mean),
          .position_mean = pointer<const float>(t.position_mean),
          .transform = pointer<const float>(t.transform),
          .codebook = pointer<const float>(t.codebook),
          .projection = pointer<const float>(t.projection),
          .transform_of_head = t.transform.count > uint64_t(d) * d,
          .codebook_of_head = t.codebook.count > format.codebook_size()};
}

inline KvAppendArguments arguments_of(const KvAppend& a) {
  const uint32_t d = a.head_dim;
  return {.values = {pointer<const void>(a.k), pointer<const void>(a.v)},
          .dtype = a.k.dtype,
          .appends = pointer<const int32_t>(a.appends),
          .table = pointer<const float>(a.table),
          .cache = pointer<uint32_t>(a.cache),
          .sides = {side_of(a.format.k, a.k_side, 0, d), side_of(a.format.v, a.v_side, a.format.k.block_words(d), d)},
          .sequences = a.sequences,
          .heads = a.heads,
          .head_dim = d,
          .blocks = a.capacity / KV_BLOCK,
          .block_words = a.format.block_words(d),
          .max_count = a.max_count};
}

// What block (block, side) of a grid of Shape::blocks() x 2 heads does. d is 32 x kValues if kFull, else at most that.
template <uint32_t kValues, bool kFull>
__device__ __forceinline__ void run(const KvAppendArguments& a, const Shape& shape, float* memory, uint32_t block,
                                    uint32_t head_and_side) {
  const uint32_t d = kFull ? kValues * kWarp : a.head_dim, head = head_and_side / 2, is_v = head_and_side % 2;
  const KvAppendSide& side = a.sides[is_v];
  const uint32_t warp = threadIdx.x / kWarp, warps = shape.warps, matrix_stride = shape.matrix_stride;
  float* const book = memory;
  float* const rows = book + 2 * kBook + warp * floats_of_warp(d);
  float* const staged = book + 2 * kBook + warps * floats_of_warp(d);  // [d][matrix_stride], if that is not 0

  // What no kernel ahead writes.
  const float* matrix = side.transform + (side.transform_of_head ? uint64_t(head) * d * d : 0);
  if (side.transform != nullptr && matrix_stride != 0)
    fetch_transform(matrix, d, staged, matrix_stride, threadIdx.x, warps * kWarp);
  const float* codebook = side.codebook + (side.codebook_of_head ? head * side.codebook_size : 0);
  for (uint32_t i = threadIdx.x; i < 2 * kBook; i += warps * kWarp) {
    const uint32_t segment = i / kBook, first = segment == 0 ? 0 : (2u << side.bits[0]) - 1, at = first + i % kBook;
    const uint32_t end = segment + 1 < side.segments ? (2u << side.bits[0]) - 1 : side.codebook_size;
    book[i] = segment < side.segments && at < min(end, side.codebook_size) ? codebook[at] : 0;
  }
  Encoder<kValues, kFull> encoder{side, book, rows, d};
  const uint32_t lane = encoder.lane;
  float mean[kValues], turned[kValues], crossed[kValues];
#pragma unroll
  for (uint32_t v = 0; v < kValues; ++v) {
    const uint32_t i = encoder.is_value(v) ? v * kWarp + lane : lane % 2, at = head * d + i;
    mean[v] = side.mean != nullptr ? side.mean[at] : 0;
    turned[v] = side.position_mean != nullptr ? side.position_mean[at] : 0;
    crossed[v] = side.position_mean == nullptr ? 0
                 : i % 2 == 0                  ? -side.position_mean[at + 1]
                                               : side.position_mean[at - 1];
  }
  const uint64_t item = uint64_t(block) * warps + warp;
  const uint32_t sequence = uint32_t(item / shape.chunks);
  uint32_t source = 0, position = 0, first = 0, end = 0;
  if (sequence < a.sequences) {
    const int32_t* append = a.appends + 3 * uint64_t(sequence);
    source = uint32_t(append[0]), position = uint32_t(append[1]);
    const uint32_t count = uint32_t(append[2]), chunk = (position / kChunk + uint32_t(item % shape.chunks)) * kChunk;
    first = max(position, chunk), end = min(position + count, chunk + kChunk);
  }
  wait_for_transform();
  __syncthreads();
  wait_for_inputs();
  for (uint32_t token = first; token < end; ++token) {
    const uint64_t row = (uint64_t(source) + (token - position)) * a.heads * d + head * d;
    float* x = rows;
#pragma unroll
    for (uint32_t v = 0; v < kValues; ++v) {
      encoder.y[v] = 0;
      if (!encoder.is_value(v)) continue;
      const uint32_t i = v * kWarp + lane;
      float number = load_value(a.values[is_v], a.dtype, row + i);
      if (side.position_mean != nullptr) {
        const float2 turn = load2(a.table + uint64_t(token) * d + (i & ~1u));  // cosine and sine
        number = minus(number, plus(times(turned[v], turn.x), times(crossed[v], turn.y)));
      }
      if (side.mean != nullptr) number = minus(number, mean[v]);
      encoder.y[v] = number;
      x[i] = number;
    }
    __syncwarp();
    if (side.transform != nullptr) {
      if (matrix_stride != 0)
        encoder.multiply(staged, matrix_stride, x);
      else
        encoder.multiply(matrix, d, x);
    }
    __syncwarp();
    encoder.encode();
    const uint64_t of_cache = (uint64_t(sequence) * a.heads + head) * a.blocks + token / KV_BLOCK;
    encoder.store(token % KV_BLOCK, a.cache + of_cache * a.block_words + side.first_word);
    __syncwarp();
  }
}

}  // namespace turboesm::cuda::kv_append
