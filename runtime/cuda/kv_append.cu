// Encodes new tokens into the quantized KV cache (KvAppend in runtime/kv_operations.h). Products, sums and their order
// are those of the CPU (runtime/cpu/kv_kernels.cpp), so that equal input gives equal bits: this file is compiled
// without fused multiply-adds, and no quotient or root decides a bit.
//
// A block of threads takes K or V of one block of KV_BLOCK tokens of a sequence and head, of which some are new, so
// that no other block writes to its words. Numbers are in shared memory as [value][token]: what is summed over values
// in their order takes a thread for each token, whose neighbours read neighbouring words.
#include <algorithm>

#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/operation_rules.h"
#include "shaders/include/kv_scale.h"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kCandidates = 3;         // scales that KvScale::searched tries
constexpr uint32_t kMaxCodebook = 31;       // values of a segment's: 16 centroids, 15 thresholds
constexpr uint32_t kStagedHeadDim = 128;    // matrices of larger heads stay where they are
constexpr uint32_t kGroup = 8;              // tokens that a thread multiplies at once
constexpr uint32_t kStride = KV_BLOCK + 4;  // of values: multiples of 4, in other banks than the one before

struct Side {
  uint32_t segments, bits[2], scale_bits;
  KvScale scale;
  bool qjl;
  uint32_t n;           // values of a segment
  uint32_t first_word;  // in a block
  uint32_t words;
  uint32_t codebook_size;  // 0: none
  const float *mean, *position_mean, *transform, *codebook, *projection;
  bool transform_of_head, codebook_of_head;
};

struct Append {
  const void *k, *v;
  const int32_t* appends;
  const float* table;
  uint32_t* cache;
  Side sides[2];
  uint32_t heads, head_dim, blocks, block_words;
};

// Parts of shared memory: [head_dim][kStride] numbers, or one for each token.
struct Workplace {
  float* x;                             // what is transformed
  float* y;                             // what is quantized
  float* z;                             // [candidate] centroids of y's codes
  uint8_t* codes;                       // [candidate]
  float* matrix;                        // [d][d + 1], for matrices that are staged
  float (*codebook)[kMaxCodebook + 1];  // [segment] centroids, then thresholds
  float (*squares)[KV_BLOCK];           // [segment] |y|^2
  float (*tried)[2][KV_BLOCK];          // [candidate][segment] scales
  float (*errors)[2][KV_BLOCK];         // [candidate][segment] |y - s z|^2
  float (*products)[2][KV_BLOCK];       // [candidate][segment] y . z, z . z, or the largest |y|
  uint32_t (*best)[KV_BLOCK];           // [segment] candidate
  uint32_t (*scales)[KV_BLOCK];         // [segment] codes of scales
  uint32_t* norms;                      // codes of residuals' norms
};

constexpr uint32_t kNumberWords = (2 + 3 * 2 * kCandidates + 2 + 2 + 1) * KV_BLOCK + 2 * (kMaxCodebook + 1);

uint32_t shared_bytes(uint32_t d) {
  const uint32_t plane = d * kStride;
  return 4 * (plane * (2 + kCandidates) + kNumberWords + (d <= kStagedHeadDim ? d * (d + 1) : 0)) + plane * kCandidates;
}

__device__ Workplace workplace(float* memory, uint32_t d) {
  const uint32_t plane = d * kStride;
  Workplace w;
  w.x = memory;
  w.y = w.x + plane;
  w.z = w.y + plane;
  float* numbers = w.z + plane * kCandidates;
  w.codebook = reinterpret_cast<float(*)[kMaxCodebook + 1]>(numbers);
  w.squares = reinterpret_cast<float(*)[KV_BLOCK]>(w.codebook + 2);
  w.tried = reinterpret_cast<float(*)[2][KV_BLOCK]>(w.squares + 2);
  w.errors = w.tried + kCandidates;
  w.products = w.errors + kCandidates;
  w.best = reinterpret_cast<uint32_t(*)[KV_BLOCK]>(w.products + kCandidates);
  w.scales = w.best + 2;
  w.norms = reinterpret_cast<uint32_t*>(w.scales + 2);
  w.matrix = numbers + kNumberWords;
  w.codes = reinterpret_cast<uint8_t*>(w.matrix + (d <= kStagedHeadDim ? d * (d + 1) : 0));
  return w;
}

// What a block of threads works on. All its members are called by all threads; each of them begins with numbers that
// the others have finished.
struct Encoder {
  const Side& side;
  const Workplace& w;
  uint32_t d, head;
  uint32_t first, count;  // the new tokens of the block of tokens

  // Calls body(token, i) for every new token and i < items, tokens fastest.
  template <class Body>
  __device__ void for_each(uint32_t items, Body&& body) const {
    for (uint32_t at = threadIdx.x; at < items * count; at += kThreads) body(first + at % count, at / count);
    __syncthreads();
  }

  // y = matrix x, each of the sums over j in ascending order. `matrix` [d, d] is in memory, and staged if it may be.
  __device__ void multiply(const float* matrix, const float* x, float* y) const {
    uint32_t stride = d;
    if (d <= kStagedHeadDim) {
      for (uint32_t i = threadIdx.x; i < d * d; i += kThreads) w.matrix[i / d * (d + 1) + i % d] = matrix[i];
      matrix = w.matrix;
      stride = d + 1;
      __syncthreads();
    }
    const uint32_t first_group = first / kGroup, groups = (first + count - 1) / kGroup - first_group + 1;
    for (uint32_t item = threadIdx.x; item < d * groups; item += kThreads) {
      const uint32_t i = item % d, token = (first_group + item / d) * kGroup;
      const float* row = matrix + uint64_t(i) * stride;
      float sums[kGroup] = {};
      for (uint32_t j = 0; j < d; ++j) {
        const float m = row[j];
        const float4 a = load4(x + j * kStride + token), b = load4(x + j * kStride + token + 4);
        sums[0] += m * a.x, sums[1] += m * a.y, sums[2] += m * a.z, sums[3] += m * a.w;
        sums[4] += m * b.x, sums[5] += m * b.y, sums[6] += m * b.z, sums[7] += m * b.w;
      }
      store4(y + i * kStride + token, {sums[0], sums[1], sums[2], sums[3]});
      store4(y + i * kStride + token + 4, {sums[4], sums[5], sums[6], sums[7]});
    }
    __syncthreads();
  }

  __device__ void load_codebook() const {
    if (side.codebook_size == 0) return;
    const float* codebook = side.codebook + (side.codebook_of_head ? head * side.codebook_size : 0);
    const uint32_t second = (2u << side.bits[0]) - 1;
    for (uint32_t i = threadIdx.x; i < side.codebook_size; i += kThreads) {
      if (i < second)
        w.codebook[0][i] = codebook[i];
      else
        w.codebook[1][i - second] = codebook[i];
    }
    __syncthreads();
  }

  // values [head_dim], of this head and token: `row` + `token` x `stride`. Their means go off.
  template <class T>
  __device__ void load(const T* row, uint64_t stride, const float* angles) const {
    // Tokens that are not new are multiplied along with their neighbours.
    for (uint32_t i = threadIdx.x; i < d * kStride; i += kThreads) w.x[i] = 0;
    __syncthreads();
    for (uint32_t at = threadIdx.x; at < d * count; at += kThreads) {
      const uint32_t i = at % d, t = at / d;
      float x = to_float(row[t * stride + i]);
      if (side.position_mean) {
        const float* m = side.position_mean + uint64_t(head) * d;
        const float* of_token = angles + uint64_t(t) * d;
        const float crossed = i % 2 == 0 ? -m[i + 1] : m[i - 1];
        x -= m[i] * of_token[i & ~1u] + crossed * of_token[i | 1u];
      }
      if (side.mean) x -= side.mean[uint64_t(head) * d + i];
      w.x[i * kStride + first + t] = x;
    }
    __syncthreads();
    if (side.transform) {
      multiply(side.transform + (side.transform_of_head ? uint64_t(head) * d * d : 0), w.x, w.y);
    } else {
      for (uint32_t i = threadIdx.x; i < d * kStride; i += kThreads) w.y[i] = w.x[i];
      __syncthreads();
    }
  }

  // ---- Quantization -------------------------------------------------------------------------------------------------

  __device__ float y_of(uint32_t segment, uint32_t i, uint32_t t) const {
    return w.y[(segment * side.n + i) * kStride + t];
  }
  __device__ uint32_t place(uint32_t candidate, uint32_t segment, uint32_t i, uint32_t t) const {
    return (candidate * d + segment * side.n + i) * kStride + t;
  }

  // The code of the scale nearest to a / b, or to its root; 0 when there is no such number.
  __device__ static uint32_t scale_code(uint32_t scale_bits, float a, float b, bool root) {
    if (!(b > 0)) return 0;
    const float quotient = a / b;
    return kv_scale_nearest(scale_bits, root ? sqrtf(quotient) : quotient, a, b, root);
  }

  // Codes and centroids of `candidates` candidates from `first_candidate` on, at the scales tried[candidate]: a code is
  // the number of thresholds t with t s < y.
  __device__ void quantize(uint32_t first_candidate, uint32_t candidates) const {
    for_each(candidates * d, [&](uint32_t t, uint32_t item) {
      const uint32_t candidate = first_candidate + item / d, value = item % d, segment = value / side.n;
      const uint32_t i = value - segment * side.n, centroids = 1u << side.bits[segment];
      const float y = y_of(segment, i, t), s = w.tried[candidate][segment][t];
      const float* codebook = w.codebook[segment];
      uint32_t code = 0;
      for (uint32_t k = 0; k + 1 < centroids; ++k) {
        const float threshold = codebook[centroids + k] * s;
        code += threshold < y ? 1 : 0;
      }
      w.codes[place(candidate, segment, i, t)] = uint8_t(code);
      w.z[place(candidate, segment, i, t)] = codebook[code];
    });
  }

  // The integer q in [-127, 127] with (q - 1/2) s <= y < (q + 1/2) s.
  __device__ static int32_t nearest_integer(float y, float s) {
    if (s == 0) return 0;
    const float guess = floorf(y / s + 0.5f);
    int32_t q = guess < -127 ? -127 : guess > 127 ? 127 : int32_t(guess);
    while (q > -127 && y < (float(q) - 0.5f) * s) --q;
    while (q < 127 && !(y < (float(q) + 0.5f) * s)) ++q;
    return q;
  }

  __device__ void try_scale(uint32_t candidate, uint32_t segment, uint32_t t, float s) const {
    w.tried[candidate][segment][t] = s;
  }

  // errors and products of candidates from `first_candidate` on.
  __device__ void judge(uint32_t first_candidate, uint32_t candidates) const {
    for_each(candidates * side.segments, [&](uint32_t t, uint32_t item) {
      const uint32_t candidate = first_candidate + item / side.segments, segment = item % side.segments;
      const float s = w.tried[candidate][segment][t];
      float error = 0, yz = 0;
      for (uint32_t i = 0; i < side.n; ++i) {
        const float y = y_of(segment, i, t), z = w.z[place(candidate, segment, i, t)];
        const float decoded = s * z, difference = y - decoded;
        error += difference * difference;
        yz += y * z;
      }
      w.errors[candidate][segment][t] = error;
      w.products[candidate][segment][t] = yz;
    });
  }

  // Of three scales round |y| / sqrt(n) the one with the least error; the scale that is stored is |y|^2 / (y . z).
  __device__ void search() const {
    const auto root_mean_square = [&](uint32_t t, uint32_t segment) {
      return kv_scale_value(16, scale_code(16, w.squares[segment][t], float(side.n), true));
    };
    for_each(side.segments, [&](uint32_t t, uint32_t segment) {
      const float s0 = root_mean_square(t, segment);
      try_scale(0, segment, t, s0 * kv_search_factor(0, false));
      try_scale(1, segment, t, s0 * kv_search_factor(1, false));
    });
    quantize(0, 2);
    judge(0, 2);
    for_each(side.segments, [&](uint32_t t, uint32_t segment) {
      const bool second_is_better = w.errors[1][segment][t] < w.errors[0][segment][t];
      w.best[segment][t] = second_is_better ? 1 : 0;
      try_scale(2, segment, t, root_mean_square(t, segment) * kv_search_factor(2, second_is_better));
    });
    quantize(2, 1);
    judge(2, 1);
    for_each(side.segments, [&](uint32_t t, uint32_t segment) {
      uint32_t& best = w.best[segment][t];
      if (w.errors[2][segment][t] < w.errors[best][segment][t]) best = 2;
      w.scales[segment][t] = scale_code(side.scale_bits, w.squares[segment][t], w.products[best][segment][t], false);
    });
  }

  __device__ void encode_integers() const {
    for_each(d, [&](uint32_t t, uint32_t i) {
      const int32_t q = nearest_integer(y_of(0, i, t), kv_scale_value(side.scale_bits, w.scales[0][t]));
      w.codes[place(0, 0, i, t)] = uint8_t(q);
      w.z[place(0, 0, i, t)] = float(q);
    });
  }

  // Codes, their centroids and the scales' codes of all segments; those of candidate best[segment] count.
  __device__ void encode() const {
    if (side.bits[0] >= 16) return;  // y itself is packed
    for_each(side.segments, [&](uint32_t t, uint32_t segment) {
      float squares = 0, largest = 0;
      for (uint32_t i = 0; i < side.n; ++i) {
        const float y = y_of(segment, i, t);
        squares += y * y;
        largest = largest < fabsf(y) ? fabsf(y) : largest;
      }
      w.squares[segment][t] = squares;
      w.best[segment][t] = 0;
      uint32_t code = 0;  // of the scale to quantize at
      float s = 1;
      switch (side.scale) {
        case KvScale::none:
        case KvScale::searched: break;
        case KvScale::norm:
          code = scale_code(side.scale_bits, squares, float(side.n), true);
          s = kv_scale_value(side.scale_bits, code);
          break;
        case KvScale::corrected: s = kv_scale_value(16, scale_code(16, squares, float(side.n), true)); break;
        case KvScale::absmax: {
          const uint32_t bits = side.bits[segment];
          const float top = bits == 8 ? 127.0f : w.codebook[segment][(1u << bits) - 1];
          code = scale_code(side.scale_bits, largest, top, false);
          s = kv_scale_value(side.scale_bits, code);
        }
      }
      w.scales[segment][t] = code;
      try_scale(0, segment, t, s);
    });
    if (side.scale == KvScale::searched) return search();
    if (side.bits[0] == 8) return encode_integers();
    quantize(0, 1);
    if (side.scale != KvScale::corrected) return;
    for_each(side.segments, [&](uint32_t t, uint32_t segment) {
      float squares = 0;
      for (uint32_t i = 0; i < side.n; ++i) {
        const float z = w.z[place(0, segment, i, t)];
        squares += z * z;
      }
      w.scales[segment][t] = scale_code(side.scale_bits, w.squares[segment][t], squares, true);
    });
  }

  // x = y - decoded y, y = projection x: its signs and |x| are packed.
  __device__ void project_residual() const {
    for_each(d, [&](uint32_t t, uint32_t value) {
      const uint32_t segment = value / side.n, i = value - segment * side.n;
      const float s = side.scale_bits == 0 ? 1.0f : kv_scale_value(side.scale_bits, w.scales[segment][t]);
      const float decoded = s * w.z[place(w.best[segment][t], segment, i, t)];
      w.x[value * kStride + t] = y_of(segment, i, t) - decoded;
    });
    for_each(1, [&](uint32_t t, uint32_t) {
      float squares = 0;
      for (uint32_t i = 0; i < d; ++i) squares += w.x[i * kStride + t] * w.x[i * kStride + t];
      w.norms[t] = scale_code(16, squares, 1.0f, true);
    });
    multiply(side.projection, w.x, w.y);
  }

  // ---- Packing ------------------------------------------------------------------------------------------------------

  struct Word {
    uint32_t bits = 0, mask = 0;  // of what is new
  };

  __device__ bool is_new(uint32_t t) const { return t - first < count; }

  __device__ uint32_t code_of(uint32_t segment, uint32_t bits, uint32_t i, uint32_t t) const {
    if (bits == 32) return __float_as_uint(y_of(segment, i, t));
    if (bits == 16) return __half_as_ushort(__float2half_rn(y_of(segment, i, t)));
    return w.codes[place(w.best[segment][t], segment, i, t)];
  }

  // Word `word` of a run of codes of n values a token; code(i, t) gives them.
  template <class Code>
  __device__ Word pack_codes(uint32_t n, uint32_t bits, uint32_t word, Code&& code) const {
    const uint32_t group_tokens = kv_group_tokens(n), units = kv_group_units(n);
    const uint32_t plane = KV_BLOCK / group_tokens * units;
    const uint32_t of_unit = word / plane, group = word % plane / units, unit = word % units;
    const uint32_t per_word = bits == 3 ? 8 : 32 / bits, all = ~0u >> (32 - bits);
    Word packed;
    const auto add = [&](uint32_t e) {
      const uint32_t c = unit * 32 + e, t = group * group_tokens + c / n;
      if (!is_new(t)) return;
      packed.bits |= kv_deposit(bits, e, of_unit, code(c % n, t));
      packed.mask |= kv_deposit(bits, e, of_unit, all);
    };
    for (uint32_t e = 0; e < per_word; ++e) add(of_unit * per_word + e);
    if (bits == 3)
      for (uint32_t e = 24; e < 32; ++e) add(e);  // their high bits lie in all three words
    return packed;
  }

  __device__ Word pack_scales(uint32_t scale_bits, uint32_t word, const uint32_t* codes) const {
    const uint32_t per_word = 32 / scale_bits;
    Word packed;
    for (uint32_t t = word * per_word; t < (word + 1) * per_word; ++t) {
      if (!is_new(t)) continue;
      packed.bits |= codes[t] << kv_scale_shift(scale_bits, t);
      packed.mask |= (~0u >> (32 - scale_bits)) << kv_scale_shift(scale_bits, t);
    }
    return packed;
  }

  __device__ Word pack_word(uint32_t word) const {
    const uint32_t n = side.n, segments = side.segments;
    const uint32_t second = n * side.bits[0], scales = kv_scales_at(n, segments, side.bits[0], side.bits[1]);
    const uint32_t signs = scales + segments * side.scale_bits, norms = signs + d;
    if (word < scales) {
      const uint32_t segment = segments == 2 && word >= second ? 1 : 0, bits = side.bits[segment];
      return pack_codes(n, bits, word - segment * second,
                        [&](uint32_t i, uint32_t t) { return code_of(segment, bits, i, t); });
    }
    if (word < signs) {
      const uint32_t segment = (word - scales) / side.scale_bits;
      return pack_scales(side.scale_bits, (word - scales) % side.scale_bits, w.scales[segment]);
    }
    if (word < norms)
      return pack_codes(d, 1, word - signs,
                        [&](uint32_t i, uint32_t t) { return w.y[i * kStride + t] >= 0 ? 1u : 0u; });
    return pack_scales(16, word - norms, w.norms);
  }

  // Tokens beside the new ones stay as they are.
  __device__ void pack(uint32_t* words) const {
    for (uint32_t i = threadIdx.x; i < side.words; i += kThreads) {
      const Word packed = pack_word(i);
      if (packed.mask == ~0u)
        words[i] = packed.bits;
      else if (packed.mask != 0)
        words[i] = (words[i] & ~packed.mask) | packed.bits;
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) kv_append(const Append a) {
  extern __shared__ __align__(16) float memory[];
  wait_for_inputs();
  let_next_start();
  const uint32_t sequence = blockIdx.z, head = blockIdx.y / 2, d = a.head_dim;
  const int32_t* append = a.appends + 3 * uint64_t(sequence);
  const uint32_t source = uint32_t(append[0]), position = uint32_t(append[1]), tokens = uint32_t(append[2]);
  const uint32_t block = position / KV_BLOCK + blockIdx.x;
  const uint32_t begin = max(position, block * KV_BLOCK), end = min(position + tokens, (block + 1) * KV_BLOCK);
  if (begin >= end) return;

  const Side& side = a.sides[blockIdx.y % 2];
  const Workplace w = workplace(memory, d);
  const Encoder encoder{side, w, d, head, begin % KV_BLOCK, end - begin};
  const uint64_t stride = uint64_t(a.heads) * d;
  const T* values = static_cast<const T*>(blockIdx.y % 2 == 0 ? a.k : a.v);
  encoder.load_codebook();
  encoder.load(values + (uint64_t(source) + (begin - position)) * stride + head * d, stride,
               a.table + uint64_t(begin) * d);
  encoder.encode();
  if (side.qjl) encoder.project_residual();
  const uint64_t row = uint64_t(sequence) * a.heads + head;
  encoder.pack(a.cache + (row * a.blocks + block) * a.block_words + side.first_word);
}

Side side_of(const KvSide& format, const KvSideTensors& t, uint32_t first_word, uint32_t d) {
  return {.segments = format.segments,
          .bits = {format.bits[0], format.bits[1]},
          .scale_bits = format.scale_bits,
          .scale = format.scale,
          .qjl = format.qjl,
          .n = d / format.segments,
          .first_word = first_word,
          .words = format.block_words(d),
          .codebook_size = format.codebook_size(),
          .mean = pointer<const float>(t.mean),
          .position_mean = pointer<const float>(t.position_mean),
          .transform = pointer<const float>(t.transform),
          .codebook = pointer<const float>(t.codebook),
          .projection = pointer<const float>(t.projection),
          .transform_of_head = t.transform.count > uint64_t(d) * d,
          .codebook_of_head = t.codebook.count > format.codebook_size()};
}

}  // namespace

void launch(const KvAppend& a, const Launch& l) {
  const uint32_t d = a.head_dim, bytes = shared_bytes(d);
  const Append arguments{
      .k = pointer<const void>(a.k),
      .v = pointer<const void>(a.v),
      .appends = pointer<const int32_t>(a.appends),
      .table = pointer<const float>(a.table),
      .cache = pointer<uint32_t>(a.cache),
      .sides = {side_of(a.format.k, a.k_side, 0, d), side_of(a.format.v, a.v_side, a.format.k.block_words(d), d)},
      .heads = a.heads,
      .head_dim = d,
      .blocks = a.capacity / KV_BLOCK,
      .block_words = a.format.block_words(d)};
  // Tokens that follow one another may begin anywhere in a block.
  const uint32_t blocks = std::min((a.max_count + 2 * KV_BLOCK - 2) / KV_BLOCK, arguments.blocks);
  with_type(a.k.dtype, [&](auto type) {
    using T = decltype(type);
    require(cudaFuncSetAttribute(kv_append<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
            "cudaFuncSetAttribute");
    start(kv_append<T>, dim3(blocks, 2 * a.heads, a.sequences), kThreads, bytes, l, arguments);
  });
}

}  // namespace turboesm::cuda
