// KvAttention (runtime/kv_operations.h) on int8 matrix cores: K and V of 2, 3 or 4 bits a value, output of 16 bits.
//   score_t = s_t (q . y_t) + bias_t,   out = transform (sum_t p_t s'_t y'_t / sum_t p_t) + mean,   p = softmax(score)
// with s, s' the scales of a token's key and value, y and y' their centroids; each segment has scales of its own.
//
// Centroids are rounded to c = unit (r + offset), r an integer of 8 bits; `unit` is chosen for each codebook to make
// that error least: well below a hundredth of the quantization's own. The other factors become integers of 16 bits, in
// two digits of 8: the query's values X = 256 hi + lo (its largest is 127 x 256), and the weights p_t s'_t of a block
// of 32 tokens (its largest is 65535). Products and sums of a block are then exact.
//
// A warp takes a block of 32 tokens at a time, with a softmax of its own. With lane = 4 g + j, m16n8k32's operands are
//   A [16 x 32]  register 0: row g,     k = 4 j .. 4 j + 3      B [32 x 8]  register 0: column g, k = 4 j .. 4 j + 3
//                register 1: row g + 8, k = 4 j ..                          register 1: column g, k = 16 + 4 j ..
//                register 2: row g,     k = 16 + 4 j ..         C [16 x 8]  0, 1: row g,     columns 2 j, 2 j + 1
//                register 3: row g + 8, k = 16 + 4 j ..                     2, 3: row g + 8, columns 2 j, 2 j + 1
// and in either product columns 2 i and 2 i + 1 are the high and low digits of query i, 0 <= i < 4.
//
//   Scores, tile n = 0, 1: rows g and g + 8 are tokens 4 g + 2 n and 4 g + 2 n + 1; along k are the 32 values of a unit
//     of codes, of which lane j has the 8 that lie in its word of each token (key_element()). So C has, in lane (g, j),
//     the scores of query j with tokens 4 g .. 4 g + 3.
//   Values, tile n = 0, 1: along k are the tokens, 8 j .. 8 j + 3 in register 0 and 8 j + 4 .. 8 j + 7 in register 1
//   (of
//     A: 0 and 2), which lanes (2 j, i) and (2 j + 1, i) have as rows of scores; rows g and g + 8 are values
//     value_element(g, 2 n) and value_element(g, 2 n + 1) of a unit. So C has sums of query j.
//
// Codes become bytes by byte permutes: a selector of four nibbles looks four codes up in a table of eight bytes, where
// bit 3 of a nibble means that the byte's sign is to be repeated. Of a table of sixteen the lower half is kept below 0
// and the upper half, one higher, at 0 or above, so that the lookup in the half that a code does not belong to yields
// -1 or 0: the products with either half are summed. For values, selectors take one code of each of four tokens, so
// nibbles are first exchanged between words.
//
// Blocks come through shared memory by cp.async, kStages ahead; the rows of K's words are placed so that a quarter of a
// warp reads its vectors from different banks.
#include "runtime/cuda/kv_attention_mma.h"

#include "runtime/cuda/kv_attention_codes.cuh"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kStages = 4;                 // blocks of the cache of each warp that are on their way or in use
constexpr uint32_t kScaleWords = 4 * KV_BLOCK;  // of a warp: scales of a block, of up to four segments
constexpr float kQuerySteps = 127 * 256, kWeightSteps = 65535;
constexpr float kSlack = 16;  // by how much a score may exceed what sums are relative to, in units of log 2

// Blocks of threads that a multiprocessor has registers for.
constexpr uint32_t resident_blocks(uint32_t head_dim) { return head_dim == 128 ? 3 : 4; }

// ---- A block of tokens ----------------------------------------------------------------------------------------------

// Codes of 3 bits: what becomes of words (own, 1, 2) of a unit for the word of nibbles that a lane takes, which is its
// own, or the fourth, made of the high bits of all.
struct HighBits {
  uint32_t shift_own, mask_own, mask_1, mask_2;
  __device__ explicit HighBits(bool is_fourth)
      : shift_own(is_fourth ? 3 : 0),
        mask_own(is_fourth ? 0x11111111u : 0x77777777u),
        mask_1(is_fourth ? 0x22222222u : 0u),
        mask_2(is_fourth ? 0x44444444u : 0u) {
    keep(shift_own), keep(mask_own), keep(mask_1), keep(mask_2);
  }
  __device__ __forceinline__ uint32_t nibbles(uint32_t own, uint32_t word_1, uint32_t word_2) const {
    return (own >> shift_own & mask_own) | (word_1 >> 2 & mask_1) | (word_2 >> 1 & mask_2);
  }
};

// count x 4 words from shared memory.
template <uint32_t count>
__device__ __forceinline__ void load_vectors(uint32_t address, uint32_t (&out)[4 * count]) {
#pragma unroll
  for (uint32_t i = 0; i < count; ++i) {
    const uint4 v = load_shared_vector(address + 16 * i);
    out[4 * i] = v.x, out[4 * i + 1] = v.y, out[4 * i + 2] = v.z, out[4 * i + 3] = v.w;
  }
}
__device__ __forceinline__ void load_numbers(uint32_t address, float (&out)[4]) {
  const uint4 v = load_shared_vector(address);
  out[0] = __uint_as_float(v.x), out[1] = __uint_as_float(v.y);
  out[2] = __uint_as_float(v.z), out[3] = __uint_as_float(v.w);
}

// What a lane keeps of a sequence's keys.
template <class K>
struct Keys {
  uint32_t query[K::kChunks][2];  // B: digits of the queries
  Table table[K::kSegments];
  uint32_t at[K::kSegments];  // bytes from the beginning of a stage to this lane's words
  uint32_t tokens_at;         // and, in a row, to those of its tokens
  uint32_t shift;             // to the lane's codes of 2 bits
  HighBits high_bits;
};

// dots[tile] += products of one segment with the queries.
template <class K, class V, uint32_t segment>
__device__ __forceinline__ void score(uint32_t stage, const Keys<K>& keys, int32_t (&dots)[2][4]) {
  constexpr uint32_t bits = K::bits(segment), units = K::kUnits;
  const Table& table = keys.table[segment];
  uint32_t words[4 * units], words_1[4 * units], words_2[4 * units];  // [token][unit]
  load_vectors<units>(stage + keys.at[segment], words);
  if constexpr (bits == 3) {
    load_vectors<units>(stage + keys.tokens_at + 4 * Stage<K, V>::key_row(segment, 1), words_1);
    load_vectors<units>(stage + keys.tokens_at + 4 * Stage<K, V>::key_row(segment, 2), words_2);
  }
#pragma unroll
  for (uint32_t u = 0; u < units; ++u) {
#pragma unroll
    for (uint32_t tile = 0; tile < 2; ++tile) {
      Fragment low, high;
#pragma unroll
      for (uint32_t k = 0; k < 2; ++k) {  // rows g and g + 8
        const uint32_t at = (2 * tile + k) * units + u;
        uint32_t selector = words[at];
        if constexpr (bits == 4) {
          const uint32_t other = selector ^ 0x88888888u;
          high.at[k] = permute(table.high[0], table.high[1], other);
          high.at[k + 2] = permute(table.high[0], table.high[1], other >> 16);
        } else if constexpr (bits == 3) {
          selector = keys.high_bits.nibbles(selector, words_1[at], words_2[at]);
        } else {
          selector = selector >> keys.shift & 0x33333333u;
        }
        low.at[k] = permute(table.low[0], table.low[1], selector);
        low.at[k + 2] = permute(table.low[0], table.low[1], selector >> 16);
      }
      multiply_signed(dots[tile], low, keys.query[segment * units + u]);
      if constexpr (bits == 4) multiply_signed(dots[tile], high, keys.query[segment * units + u]);
    }
  }
}

// What a lane keeps of a sequence's values.
template <class V>
struct Values {
  Table table[V::kSegments];
  uint32_t at[V::kSegments];    // bytes from the beginning of a stage to this lane's words
  uint32_t tokens_at;           // and, in a row, to those of its tokens
  uint32_t shift;               // to the lane's codes of 2 bits
  uint32_t half[V::kSegments];  // selector of a half of two words
  HighBits high_bits;
};

// sums[chunk][2 n + k] += factor x sum over the tokens of weights x value_element(g, 2 n + k), for one segment.
template <class K, class V, uint32_t segment>
__device__ __forceinline__ void add_values(uint32_t stage, const Values<V>& values, const uint32_t (&weights)[2],
                                           float factor, float (&sums)[V::kChunks][4]) {
  constexpr uint32_t bits = V::bits(segment), units = V::kUnits;
  constexpr uint32_t kLowNibbles = 0x0f0f0f0fu;
  const Table& table = values.table[segment];
  uint32_t words[2][4 * units], words_1[2][4 * units], words_2[2][4 * units];  // [four tokens][token][unit]
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    load_vectors<units>(stage + values.at[segment] + 16 * units * half, words[half]);
    if constexpr (bits == 3) {
      constexpr uint32_t kFirst = Stage<K, V>::kValues + segment * V::kRow * V::bits(0);
      const uint32_t tokens = stage + values.tokens_at + 16 * units * half;
      load_vectors<units>(tokens + 4 * (kFirst + V::kRow), words_1[half]);
      load_vectors<units>(tokens + 4 * (kFirst + 2 * V::kRow), words_2[half]);
    }
  }
#pragma unroll
  for (uint32_t u = 0; u < units; ++u) {
    Fragment low[2], high[2];  // of tile n
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      // The nibbles of values 0 to 3 in the halves of two words: x of tokens 0 and 2, y of tokens 1 and 3, as
      // bytes (x: token 0 values 0 1, token 2 values 0 1, token 0 values 2 3, token 2 values 2 3).
      const auto halves = [&](const uint32_t(&from)[4 * units], uint32_t token) {
        return permute(from[token * units + u], from[(token + 2) * units + u], values.half[segment]);
      };
      uint32_t x = halves(words[half], 0), y = halves(words[half], 1);
      if constexpr (bits == 3) {
        x = values.high_bits.nibbles(x, halves(words_1[half], 0), halves(words_2[half], 0));
        y = values.high_bits.nibbles(y, halves(words_1[half], 1), halves(words_2[half], 1));
      } else if constexpr (bits == 2) {
        x = x >> values.shift & 0x33333333u;
        y = y >> values.shift & 0x33333333u;
      }
      // Nibbles of tokens 0 1 2 3, value 0 and then 2; value 1 and then 3.
      const uint32_t even = (x & kLowNibbles) | (y << 4 & ~kLowNibbles);
      const uint32_t odd = (x >> 4 & kLowNibbles) | (y & ~kLowNibbles);
      const uint32_t selectors[4] = {even, odd, even >> 16, odd >> 16};
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        low[i / 2].at[i % 2 + 2 * half] = permute(table.low[0], table.low[1], selectors[i]);
      if constexpr (bits == 4) {
        const uint32_t other_even = even ^ 0x88888888u, other_odd = odd ^ 0x88888888u;
        const uint32_t others[4] = {other_even, other_odd, other_even >> 16, other_odd >> 16};
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
          high[i / 2].at[i % 2 + 2 * half] = permute(table.high[0], table.high[1], others[i]);
      }
    }
#pragma unroll
    for (uint32_t n = 0; n < 2; ++n) {
      int32_t products[4] = {0, 0, 0, 0};
      multiply_unsigned(products, low[n], weights);
      if constexpr (bits == 4) multiply_unsigned(products, high[n], weights);
      float(&out)[4] = sums[segment * units + u];
      out[2 * n] += factor * float(products[0] * 256 + products[1]);
      out[2 * n + 1] += factor * float(products[2] * 256 + products[3]);
    }
  }
}

// Reads the scales of four tokens, for one of the (up to four) segments of K and V: the numbers of kv_scale.h, and 1
// without scales.
struct ScaleReader {
  uint32_t first, second;  // bytes from the beginning of a stage to the words that hold them
  uint32_t selectors[4], mask, lowest;
  uint32_t factor, bias;  // of a number's bits
  float unit;

  __device__ ScaleReader(uint32_t at, uint32_t bits, uint32_t g, float unit_)
      : first(bits == 0 ? 0 : 4 * (at + (bits == 16 ? 2 * g : g))),
        second(bits == 16 ? first + 4 : first),
        mask(bits == 16  ? 0xffffu
             : bits == 8 ? 0xffu
                         : 0u),
        lowest(bits == 16  ? 0x400u
               : bits == 8 ? 1u
                           : 0u),
        factor(bits == 16 ? 1u << 13 : 1u << 18),
        bias(bits == 16  ? 112u << 23
             : bits == 8 ? 123u << 23
                         : 127u << 23),
        unit(unit_) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      selectors[i] = bits == 16 ? 0x1010u + i * 0x2222u : i * 0x1111u;
      keep(selectors[i]);
    }
    keep(first), keep(second), keep(mask), keep(lowest), keep(factor), keep(bias);
  }

  // scale x unit
  __device__ __forceinline__ void read(uint32_t stage, float (&scales)[4]) const {
    const uint32_t word_0 = load_shared(stage + first), word_1 = load_shared(stage + second);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t code = permute(word_0, word_1, selectors[i]) & mask;
      scales[i] = code < lowest ? 0.0f : unit * __uint_as_float(code * factor + bias);
    }
  }
};

template <class K, class V>
uint32_t stage_words(const KvArguments& a) {
  return Stage<K, V>::kBiases + (a.bias != nullptr ? a.queries * KV_BLOCK : 0);
}

template <class K, class V>
__global__ void __launch_bounds__(kKvThreads, resident_blocks(K::kHeadDim))
    attend(const __grid_constant__ KvArguments a, uint32_t k_scale_bits, uint32_t v_scale_bits, uint32_t stage_size) {
  static_assert(K::kHeadDim == V::kHeadDim);
  using S = Stage<K, V>;
  constexpr uint32_t d = K::kHeadDim, kTables = K::kSegments + V::kSegments;
  extern __shared__ uint4 dynamic[];  // [warp] of kStages stages and kScaleWords
  __shared__ Table tables[4];
  __shared__ KvTail tail;

  const KvPlace place(a);
  const uint32_t thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, j = lane % 4;
  let_next_start();

  // Warp w rounds codebook w; none of what is read here is written by a kernel.
  if (warp < kTables) {
    const bool is_key = warp < K::kSegments;
    const bool is_second = is_key ? warp == 1 : warp == K::kSegments + 1;
    const uint32_t bits_0 = is_key ? K::bits(0) : V::bits(0), bits_1 = is_key ? K::bits(1) : V::bits(1);
    const float* codebook = is_key ? a.k_codebook + uint64_t(place.head) * a.k_codebook_step
                                   : a.v_codebook + uint64_t(place.head) * a.v_codebook_step;
    make_table(codebook + (is_second ? (2u << bits_0) - 1 : 0), is_second ? bits_1 : bits_0, tables[warp]);
  }
  if (a.transform != nullptr) {
    constexpr uint32_t kLine = 32;  // floats
    for (uint32_t i = thread * kLine; i < d * d; i += kKvThreads * kLine)
      prefetch(a.transform + uint64_t(place.head) * a.transform_step + i);
  }
  wait_for_inputs();

  // This warp's blocks: first + warp, then every kKvWarps-th.
  const uint32_t length = uint32_t(a.lengths[place.sequence]), used = (length + KV_BLOCK - 1) / KV_BLOCK;
  const uint32_t first = uint32_t(uint64_t(used) * place.split / a.splits);
  const uint32_t end = uint32_t(uint64_t(used) * (place.split + 1) / a.splits);

  const uint32_t stage_bytes = stage_size * 4;
  const uint32_t stages = shared_address(dynamic) + warp * (kStages * stage_bytes + kScaleWords * 4);
  const uint32_t scales_at = stages + kStages * stage_bytes;  // [segment of K, then of V][token] of scale x unit
  const uint32_t vectors = a.block_words / kCopyWords;
  uint32_t copy_to[S::kCopies];  // bytes from the beginning of a stage
#pragma unroll
  for (uint32_t i = 0; i < S::kCopies; ++i) {
    copy_to[i] = 4 * place_of_copy<K, V>(lane + i * kWarp, K::kSegments * k_scale_bits);
    keep(copy_to[i]);
  }
  // What this lane copies of the next block: vectors of codes and scales, and, of eight lanes a query, a vector of
  // biases. Those beyond the length are copied and not used.
  uint32_t copied_block = first + warp;
  const uint32_t* source =
      a.cache + (uint64_t(place.tile(a)) * a.blocks + copied_block) * a.block_words + lane * kCopyWords;
  const bool copies_bias = a.bias != nullptr && lane / 8 < a.queries;
  const float* bias_source =
      copies_bias ? a.bias + (place.row(a, lane / 8) * a.blocks + copied_block) * KV_BLOCK + lane % 8 * 4 : nullptr;
  const auto copy_next = [&](uint32_t stage) {
    if (copied_block < end) {
#pragma unroll
      for (uint32_t i = 0; i < S::kCopies; ++i) {
        if ((i + 1) * kWarp * kCopyWords <= K::kCodeWords + V::kCodeWords || lane + i * kWarp < vectors)
          copy_async(stage + copy_to[i], source + i * kWarp * kCopyWords);
      }
      if (copies_bias) copy_async(stage + 4 * S::kBiases + lane * kCopyBytes, bias_source);
      source += kKvWarps * a.block_words;
      bias_source += kKvWarps * KV_BLOCK;
      copied_block += kKvWarps;
    }
    commit_copies();
  };
#pragma unroll
  for (uint32_t i = 0; i + 1 < kStages; ++i) copy_next(stages + i * stage_bytes);

  // Digits of query g / 2, and what scores of query j are multiplied with.
  Keys<K> keys{.query = {},
               .table = {},
               .at = {},
               .tokens_at = 16 * K::kUnits * g,
               .shift = 2 * (j % 2),
               .high_bits = HighBits(j == 3)};
  float score_factor, offsets[K::kSegments];  // units of log 2 in a unit of products; what is added to these
  bool keys_have_offset = false;
  __syncthreads();  // the tables are there
  {
    const uint32_t query = g / 2;
    float x[K::kChunks][8], largest = 0;
#pragma unroll
    for (uint32_t c = 0; c < K::kChunks; ++c) {
#pragma unroll
      for (uint32_t i = 0; i < 8; ++i) {
        const uint32_t element =
            c / K::kUnits == 0 ? key_element<K::bits(0)>(j, i) : key_element<K::bits(K::kSegments - 1)>(j, i);
        x[c][i] = query < a.queries ? __ldg(a.q + place.row(a, query) * d + 32 * c + element) : 0.0f;
        largest = fmaxf(largest, fabsf(x[c][i]));
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float steps = largest > 0 ? kQuerySteps / largest : 0.0f;
    int32_t totals[K::kSegments] = {};
#pragma unroll
    for (uint32_t c = 0; c < K::kChunks; ++c) {
#pragma unroll
      for (uint32_t i = 0; i < 8; ++i) {
        const int32_t number = int32_t(rintf(x[c][i] * steps)), high = (number + 128) >> 8, low = number - high * 256;
        totals[c / K::kUnits] += number;
        keys.query[c][i / 4] |= (uint32_t(g % 2 == 0 ? high : low) & 0xffu) << (8 * (i % 4));
      }
    }
    score_factor = __shfl_sync(kAllLanes, largest, 8 * j) * (kLog2E / kQuerySteps);
#pragma unroll
    for (uint32_t s = 0; s < K::kSegments; ++s) {
      totals[s] += __shfl_xor_sync(kAllLanes, totals[s], 1);
      totals[s] += __shfl_xor_sync(kAllLanes, totals[s], 2);
      offsets[s] = tables[s].offset * float(__shfl_sync(kAllLanes, totals[s], 8 * j));
      keys_have_offset = keys_have_offset || tables[s].offset != 0;
      keys.table[s] = tables[s];
      const uint32_t bits = K::bits(s);
      keys.at[s] = 4 * S::key_row(s, bits == 4 ? j : bits == 3 ? (j == 3 ? 0 : j) : j / 2) + keys.tokens_at;
      keep(keys.at[s]);
    }
  }

  Values<V> values{.table = {},
                   .at = {},
                   .tokens_at = 32 * V::kUnits * j,
                   .shift = 2 * (g % 2),
                   .half = {},
                   .high_bits = HighBits(g >= 6)};
  bool values_have_offset = false;
#pragma unroll
  for (uint32_t s = 0; s < V::kSegments; ++s) {
    const uint32_t bits = V::bits(s), word = bits == 4 ? g / 2 : bits == 3 ? (g >= 6 ? 0 : g / 2) : g / 4;
    values.table[s] = tables[K::kSegments + s];
    values.at[s] = 4 * (S::kValues + s * V::kRow * V::bits(0) + word * V::kRow) + values.tokens_at;
    values.half[s] = (bits == 2 ? g / 2 : g) % 2 == 0 ? 0x5140u : 0x7362u;
    keep(values.at[s]), keep(values.half[s]);
    values_have_offset = values_have_offset || values.table[s].offset != 0;
  }

  const uint32_t scaled = min(j, kTables - 1);  // the segment whose scales this lane reads
  const bool scales_key = scaled < K::kSegments;
  const ScaleReader scale_reader(
      scales_key ? S::kKeyScales + scaled * k_scale_bits : S::kValueScales + (scaled - K::kSegments) * v_scale_bits,
      scales_key ? k_scale_bits : v_scale_bits, g, tables[scaled].unit);

  float largest = kLowestScore, total = 0;  // of query j; the sum over this lane's tokens
  float sums[V::kChunks][4] = {}, offset_sums[V::kSegments] = {};
  // Bytes to what lane (g, j) reads of a stage's biases, and of scales; it stores scales of segment j.
  uint32_t bias_at = 4 * (S::kBiases + (a.queries > j ? j : 0) * KV_BLOCK + 4 * g);
  uint32_t read_scales = scales_at + 16 * g, write_scales = read_scales + j * KV_BLOCK * 4;
  // Column g of B wants the high digits of query g / 2 if g is even, else the low ones, from lanes (2 j, g / 2) and
  // (2 j + 1, g / 2): an even lane's first message is its high digits, an odd lane's its low ones.
  uint32_t send_first = g % 2 == 0 ? 0x7632u : 0x5410u, send_second = g % 2 == 0 ? 0x5410u : 0x7632u;
  uint32_t source_first = 4 * (2 * j + g % 2) + g / 2, source_second = 4 * (2 * j + 1 - g % 2) + g / 2;
  keep(bias_at), keep(read_scales), keep(write_scales);
  keep(send_first), keep(send_second), keep(source_first), keep(source_second);

  uint32_t stage = stages, free_stage = stages + (kStages - 1) * stage_bytes;
  for (uint32_t block = first + warp; block < end; block += kKvWarps) {
    wait_for_copies<kStages - 2>();
    __syncwarp();  // all lanes' copies are there, and all have done with the block before
    copy_next(free_stage);

    {
      float scales[4];
      scale_reader.read(stage, scales);
      store_shared_vector(write_scales, scales);
    }
    int32_t dots[K::kSegments][2][4] = {};
    score<K, V, 0>(stage, keys, dots[0]);
    if constexpr (K::kSegments == 2) score<K, V, 1>(stage, keys, dots[1]);
    __syncwarp();  // the scales are there

    // Scores of query j with tokens 4 g + i, in units of log 2.
    float scores[4], bias[4] = {};
    if (a.bias != nullptr) load_numbers(stage + bias_at, bias);
    {
      float dot[4] = {};
#pragma unroll
      for (uint32_t s = 0; s < K::kSegments; ++s) {
        float scales[4];
        load_numbers(read_scales + s * KV_BLOCK * 4, scales);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
          const int32_t(&digits)[4] = dots[s][i / 2];
          dot[i] += scales[i] * float(digits[i % 2 * 2] * 256 + digits[i % 2 * 2 + 1]);
        }
        if (keys_have_offset) {
#pragma unroll
          for (uint32_t i = 0; i < 4; ++i) dot[i] += scales[i] * offsets[s];
        }
      }
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) scores[i] = score_factor * dot[i] + kLog2E * bias[i];
    }
    float value_scales[V::kSegments][4];
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s)
      load_numbers(read_scales + (K::kSegments + s) * KV_BLOCK * 4, value_scales[s]);
    if (length - block * KV_BLOCK < KV_BLOCK) {  // what lies beyond may be anything
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        if (block * KV_BLOCK + 4 * g + i < length) continue;
        scores[i] = 2 * kLowestScore;
#pragma unroll
        for (uint32_t s = 0; s < V::kSegments; ++s) value_scales[s][i] = 0;
      }
    }

    // Weights relative to the block's largest score.
    float highest = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
#pragma unroll
    for (uint32_t step = 4; step < kWarp; step *= 2)
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, step));
    highest = fmaxf(highest, kLowestScore);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) scores[i] = exp2_approximate(scores[i] - highest);
    if (__any_sync(kAllLanes, highest > largest + kSlack)) {
      const float higher = fmaxf(highest, largest), shrink = exp2_approximate(largest - higher);
      largest = higher;
      total *= shrink;
#pragma unroll
      for (uint32_t s = 0; s < V::kSegments; ++s) offset_sums[s] *= shrink;
#pragma unroll
      for (uint32_t c = 0; c < V::kChunks; ++c) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) sums[c][i] *= shrink;
      }
    }
    const float grow = exp2_approximate(highest - largest);
    total += grow * ((scores[0] + scores[1]) + (scores[2] + scores[3]));

    uint32_t weights[V::kSegments][2];
    float factors[V::kSegments];
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s) {
      float(&scales)[4] = value_scales[s];
      const float most =
          warp_max_positive(fmaxf(fmaxf(fmaxf(scales[0], scales[1]), fmaxf(scales[2], scales[3])), 1e-30f));
      const float steps = kWeightSteps * reciprocal_approximate(most);
      factors[s] = grow * most * (1 / kWeightSteps);
      uint32_t numbers[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        scales[i] *= scores[i];
        numbers[i] = __float_as_uint(scales[i] * steps + 8388608.0f);  // rounded, in the low 16 bits
      }
      if (values_have_offset) offset_sums[s] += grow * ((scales[0] + scales[1]) + (scales[2] + scales[3]));
      const uint32_t low = permute(numbers[0], numbers[1], 0x5140), high = permute(numbers[2], numbers[3], 0x5140);
      const uint32_t first_part = __shfl_sync(kAllLanes, permute(low, high, send_first), source_first);
      const uint32_t second_part = __shfl_sync(kAllLanes, permute(low, high, send_second), source_second);
      weights[s][0] = g % 2 == 0 ? first_part : second_part;
      weights[s][1] = g % 2 == 0 ? second_part : first_part;
    }
    add_values<K, V, 0>(stage, values, weights[0], factors[0], sums);
    if constexpr (V::kSegments == 2) add_values<K, V, 1>(stage, values, weights[1], factors[1], sums);

    free_stage = stage;
    stage = stage + stage_bytes == scales_at ? stages : stage + stage_bytes;
  }

  // This warp's share: [query][value], over the stages.
  wait_for_copies<0>();
#pragma unroll
  for (uint32_t step = 4; step < kWarp; step *= 2) {
    total += __shfl_xor_sync(kAllLanes, total, step);
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s) offset_sums[s] += __shfl_xor_sync(kAllLanes, offset_sums[s], step);
  }
  __syncthreads();
  float* const parts = reinterpret_cast<float*>(dynamic);
  if (j < a.queries) {
    if (g == 0) {
      tail.largest[warp][j] = largest;
      tail.total[warp][j] = total;
    }
#pragma unroll
    for (uint32_t c = 0; c < V::kChunks; ++c) {
      const uint32_t s = c / V::kUnits;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t element =
            s == 0 ? value_element<V::bits(0)>(g, i) : value_element<V::bits(V::kSegments - 1)>(g, i);
        parts[(warp * a.queries + j) * d + 32 * c + element] = sums[c][i] + values.table[s].offset * offset_sums[s];
      }
    }
  }
  finish<d, kKvWarps>(a, place, tail, parts, length == 0);
}

// ---- On the host ----------------------------------------------------------------------------------------------------

template <class K, class V>
void launch_sides(const KvAttention& a, KvArguments arguments, const Launch& l) {
  const uint32_t stage = stage_words<K, V>(arguments);
  const size_t stages = size_t(kKvWarps) * (kStages * stage + kScaleWords) * sizeof(uint32_t);
  const size_t parts = size_t(kKvWarps) * a.queries * a.head_dim * sizeof(float);
  const size_t bytes = stages > parts ? stages : parts;
  constexpr uint32_t kFixed = 8 << 10;  // of shared memory: static, and the system's
  const uint32_t resident = uint32_t(l.gpu.max_shared_bytes / (bytes + kFixed));
  constexpr uint32_t kMost = resident_blocks(K::kHeadDim);
  arguments.splits = kv_splits(a, l, resident < kMost ? (resident > 0 ? resident : 1) : kMost);
  const auto kernel = attend<K, V>;
  require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
          "cudaFuncSetAttribute");
  start(kernel, dim3(a.heads * arguments.splits, a.sequences), dim3(kKvThreads), bytes, l, arguments,
        a.format.k.scale_bits, a.format.v.scale_bits, stage);
}

bool has_bits(const KvSide& side, uint32_t bits_0, uint32_t bits_1) {
  return side.segments == (bits_1 != 0 ? 2 : 1) && side.bits[0] == bits_0 && (bits_1 == 0 || side.bits[1] == bits_1);
}

// Launches the kernel for these bits if they are the format's.
template <uint32_t n, uint32_t k_0, uint32_t k_1, uint32_t v_0, uint32_t v_1>
bool launch_if(const KvAttention& a, const KvArguments& arguments, const Launch& l) {
  if (!has_bits(a.format.k, k_0, k_1) || !has_bits(a.format.v, v_0, v_1)) return false;
  launch_sides<Side<n, k_0, k_1>, Side<n, v_0, v_1>>(a, arguments, l);
  return true;
}

// The bits that model/kv_codec.cpp's presets have; other pairs take the kernel for every format.
template <uint32_t head_dim>
bool launch_head_dim(const KvAttention& a, const KvArguments& arguments, const Launch& l) {
  if constexpr (head_dim >= 64) {
    constexpr uint32_t half = head_dim / 2;
    if (launch_if<half, 4, 3, 4, 2>(a, arguments, l) || launch_if<half, 4, 2, 4, 2>(a, arguments, l) ||
        launch_if<half, 4, 3, 4, 3>(a, arguments, l) || launch_if<half, 3, 2, 3, 2>(a, arguments, l))
      return true;
  }
  return launch_if<head_dim, 4, 0, 4, 0>(a, arguments, l) || launch_if<head_dim, 3, 0, 3, 0>(a, arguments, l) ||
         launch_if<head_dim, 2, 0, 2, 0>(a, arguments, l) || launch_if<head_dim, 4, 0, 3, 0>(a, arguments, l);
}

}  // namespace

bool launch_kv_attention_mma(const KvAttention& a, KvArguments arguments, const Launch& l) {
  constexpr int kNeeded = 80;  // compute capability: m16n8k32 of int8, cp.async
  if (!l.gpu.matrix_cores || l.gpu.compute_capability < kNeeded || a.out.dtype == DType::f32 || a.format.k.qjl)
    return false;
  switch (a.head_dim) {
    case 32: return launch_head_dim<32>(a, arguments, l);
    case 64: return launch_head_dim<64>(a, arguments, l);
    case 128: return launch_head_dim<128>(a, arguments, l);
    default: return false;
  }
}

}  // namespace turboesm::cuda
