// KvAttention (runtime/kv_operations.h) on int8 matrix cores: K and V of 2, 3 or 4 bits a value, output of 16 bits.
//   score_t = s_t (q . y_t) + bias_t,   out = transform (sum_t p_t s'_t y'_t / sum_t p_t) + mean,   p = softmax(score)
// with s, s' the scales of a token's key and value, y and y' their centroids; each segment has scales of its own.
//
// Centroids are rounded to c = unit (r + offset), r an integer of 8 bits; `unit` is chosen for each codebook to make
// that error least: well below a hundredth of the quantization's own. The other factors become integers of 16 bits, in
// two digits of 8: the query's values X = 256 hi + lo (its largest is 127 x 256), and the weights
//   N_t = 2^(score_t - reference) s'_t grow,   N_t <= 65535
// with a reference for each query and `grow` for each segment. These hold until a weight exceeds 65535, which a warp
// seldom meets after its first blocks: then sums are brought to a new reference. Sums stay integers until then.
//
// A warp takes a block of 32 tokens at a time, with a softmax of its own. With lane = 4 g + j, m16n8k32's operands are
//   A [16 x 32]  register 0: row g,     k = 4 j .. 4 j + 3      B [32 x 8]  register 0: column g, k = 4 j .. 4 j + 3
//                register 1: row g + 8, k = 4 j ..                          register 1: column g, k = 16 + 4 j ..
//                register 2: row g,     k = 16 + 4 j ..         C [16 x 8]  0, 1: row g,     columns 2 j, 2 j + 1
//                register 3: row g + 8, k = 16 + 4 j ..                     2, 3: row g + 8, columns 2 j, 2 j + 1
// and in either product columns 2 i and 2 i + 1 are the high and low digits of query i, 0 <= i < 4; of the one query,
// if there is but one.
//
//   Scores, tile n = 0, 1: rows g and g + 8 are tokens 4 g + 2 n and 4 g + 2 n + 1; along k are the 32 values of a unit
//     of codes, of which lane j has 8 of each token (key_element()). So C has, in lane (g, j), the products of query j
//     with tokens 4 g .. 4 g + 3, which that lane scores; or of the one query, which it scores with token 4 g + j.
//   Values, tile n = 0, 1: along k are the tokens, 8 j .. 8 j + 3 in register 0 and 8 j + 4 .. 8 j + 7 in register 1
//     (of A: 0 and 2); rows g and g + 8 are values value_element(g, 2 n) and value_element(g, 2 n + 1) of a unit. So C
//     has sums of query j. B comes through shared memory: [segment][column][token], a byte each.
//
// Codes become bytes by byte permutes: a selector of four nibbles looks four codes up in a table of eight bytes, where
// bit 3 of a nibble means that the byte's sign is to be repeated. Of a table of sixteen the lower half is kept below 0
// and the upper half, one higher, at 0 or above, so that the lookup in the half that a code does not belong to yields
// -1 or 0: the products with either half are summed. Tables of two or four repeat themselves, so that bits 1 and 2 of a
// nibble may be anything. For values, selectors take one code of each of four tokens, so nibbles are first exchanged
// between words. Integer products start at kMagic, the bits of a float: so they are floats without a conversion.
//
// What bounds this is the rate of bit operations, of which a multiprocessor does half as many as products and sums.
//
// What precedes and follows a sequence's blocks is as much work as eight of them. Where sequences are many, a block of
// threads therefore takes one head of two or four, with two warps or one for each: its codebooks are rounded once, its
// transform is read once, and each warp has more blocks for its query.
//
// Blocks come through shared memory by cp.async, kStages ahead; the rows of K's words are placed so that a quarter of a
// warp reads its vectors from different banks. Of 3-bit codes, each lane first makes the fourth row for some units.
#include "runtime/cuda/kv_attention_mma.h"

#include <algorithm>

#include "runtime/cuda/kv_attention_codes.cuh"
#include "runtime/cuda/kv_attention_softmax.cuh"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kStages = 4;  // blocks of the cache of each warp that are on their way or in use
constexpr float kQuerySteps = 127 * 256;
constexpr uint32_t kLog2Warps = 2;
static_assert(1u << kLog2Warps == kKvWarps);
// Of a warp, at most: sums of digits up to 255 x 128 over 32 tokens must stay below 2^31.
constexpr uint32_t kMostBlocks = 1024;

// Blocks of threads that a multiprocessor has registers for.
constexpr uint32_t resident_blocks(uint32_t head_dim, uint32_t segments, bool is_single) {
  if (head_dim == 128) return segments == 1 && is_single ? 4 : 3;
  return segments == 1 ? 5 : 4;
}

// ---- A block of tokens ----------------------------------------------------------------------------------------------

// What every lane keeps.
struct Constants {
  uint32_t selector_mask = 0x77777777u, low_nibbles = 0x0f0f0f0fu, high_bits = 0x88888888u;
  uint32_t start[4];  // kMagic
  __device__ explicit Constants(uint32_t magics) {
    keep(selector_mask), keep(low_nibbles), keep(high_bits);
    const uint4 v = load_shared_vector(magics);  // or they would be moved into place for each block of tokens
    start[0] = v.x, start[1] = v.y, start[2] = v.z, start[3] = v.w;
  }
};

// The fourth row of a segment with 3 bits, whose codes are the high bits of the nibbles of the others. `row(w)` is
// where row w begins, in words. Bit 3 of its nibbles may be anything.
template <uint32_t units, class Row>
__device__ __forceinline__ void make_fourth_row(uint32_t stage, uint32_t lane, const Constants& constants, Row row) {
#pragma unroll
  for (uint32_t i = 0; i < units; ++i) {
    const uint32_t at = stage + 4 * (lane + i * kWarp);
    uint32_t x = load_shared(at + 4 * row(0)) >> 1;
    x = select_bits(constants.high_bits, load_shared(at + 4 * row(1)), x) >> 1;
    x = select_bits(constants.high_bits, load_shared(at + 4 * row(2)), x) >> 1;
    store_shared(at + 4 * row(3), x);
  }
}

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
  uint32_t at[K::kSegments];     // bytes from the beginning of a stage to this lane's words
  uint32_t shift[K::kSegments];  // to the lane's codes of 1 or 2 bits
};

// What lane j of four takes of a query, or zeros if there is none.
template <class K>
__device__ __forceinline__ void load_query(const float* query, bool is_one, uint32_t j, float (&to)[K::kChunks][8]) {
#pragma unroll
  for (uint32_t c = 0; c < K::kChunks; ++c) {
    const auto load = [&]<uint32_t bits>() {
      if constexpr (bits >= 3) {  // neighbours
#pragma unroll
        for (uint32_t i = 0; i < 8; i += 4) {
          const float4 v = is_one ? load4(query + 32 * c + key_element<bits>(j, i)) : float4{0, 0, 0, 0};
          to[c][i] = v.x, to[c][i + 1] = v.y, to[c][i + 2] = v.z, to[c][i + 3] = v.w;
        }
      } else {
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) to[c][i] = is_one ? query[32 * c + key_element<bits>(j, i)] : 0.0f;
      }
    };
    if (c < K::kUnits)
      load.template operator()<K::bits(0)>();
    else
      load.template operator()<K::bits(K::kSegments - 1)>();
  }
}

// dots[tile] = kMagic + products of one segment with the queries.
template <class K, uint32_t segment>
__device__ __forceinline__ void score(uint32_t stage, const Keys<K>& keys, const Constants& constants,
                                      int32_t (&dots)[2][4]) {
  constexpr uint32_t bits = K::bits(segment), units = K::kUnits;
  const Table& table = keys.table[segment];
  uint32_t words[4 * units];  // [token][unit]
  load_vectors<units>(stage + keys.at[segment], words);
#pragma unroll
  for (uint32_t u = 0; u < units; ++u) {
    const uint32_t(&query)[2] = keys.query[segment * units + u];
#pragma unroll
    for (uint32_t tile = 0; tile < 2; ++tile) {
      Fragment low, high;
#pragma unroll
      for (uint32_t k = 0; k < 2; ++k) {  // rows g and g + 8
        uint32_t selector = words[(2 * tile + k) * units + u];
        if constexpr (bits == 4) {
          const uint32_t other = selector ^ constants.high_bits;
          high.at[k] = permute(table.high[0], table.high[1], other);
          high.at[k + 2] = permute(table.high[0], table.high[1], other >> 16);
        } else if constexpr (bits == 3) {
          selector = selector & constants.selector_mask;
        } else {
          selector = selector >> keys.shift[segment] & constants.selector_mask;
        }
        const uint32_t last = table.low[bits >= 3 ? 1 : 0];
        low.at[k] = permute(table.low[0], last, selector);
        low.at[k + 2] = permute(table.low[0], last, selector >> 16);
      }
      if (u == 0)
        multiply_from(constants.start, dots[tile], low, query);
      else
        multiply_signed(dots[tile], low, query);
      if constexpr (bits == 4) multiply_signed(dots[tile], high, query);
    }
  }
}

// What a lane keeps of a sequence's values.
template <class V>
struct Values {
  Table table[V::kSegments];
  uint32_t at[V::kSegments];    // bytes from the beginning of a stage to this lane's words
  uint32_t pick[V::kSegments];  // selector of what it takes of two words
  uint32_t shift, other_shift;  // to the lane's codes of 1 bit in a byte, and 4 - shift
};

// sums[chunk][n] += sum over the tokens of weights x value_element(g, 2 n) and value_element(g, 2 n + 1), for one
// segment.
template <class V, uint32_t segment>
__device__ __forceinline__ void add_values(uint32_t stage, const Values<V>& values, const Constants& constants,
                                           const uint32_t (&weights)[2], int32_t (&sums)[V::kChunks][2][4]) {
  constexpr uint32_t bits = V::bits(segment), units = V::kUnits;
  const Table& table = values.table[segment];
  uint32_t words[8 * units];  // [token][unit]
  load_vectors<2 * units>(stage + values.at[segment], words);
#pragma unroll
  for (uint32_t u = 0; u < units; ++u) {
    Fragment low[2], high[2];  // of tile n
    if constexpr (bits >= 3) {
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        // The nibbles of values 0 to 3 in the halves of two words: x of tokens 0 and 2, y of tokens 1 and 3, as
        // bytes (x: token 0 values 0 1, token 2 values 0 1, token 0 values 2 3, token 2 values 2 3).
        const auto halves = [&](uint32_t token) {
          const uint32_t at = (4 * half + token) * units + u;
          return permute(words[at], words[at + 2 * units], values.pick[segment]);
        };
        uint32_t x = halves(0), y = halves(1);
        if constexpr (bits == 3) x = x & constants.selector_mask, y = y & constants.selector_mask;
        // Nibbles of tokens 0 1 2 3, value 0 and then 2; value 1 and then 3.
        const uint32_t even = select_bits(constants.low_nibbles, x, y << 4);
        const uint32_t odd = select_bits(constants.low_nibbles, x >> 4, y);
        const uint32_t selectors[4] = {even, odd, even >> 16, odd >> 16};
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
          low[i / 2].at[i % 2 + 2 * half] = permute(table.low[0], table.low[1], selectors[i]);
        if constexpr (bits == 4) {
          const uint32_t other_even = even ^ constants.high_bits, other_odd = odd ^ constants.high_bits;
          const uint32_t others[4] = {other_even, other_odd, other_even >> 16, other_odd >> 16};
#pragma unroll
          for (uint32_t i = 0; i < 4; ++i)
            high[i / 2].at[i % 2 + 2 * half] = permute(table.high[0], table.high[1], others[i]);
        }
      }
    } else {
      // A byte of each of four tokens: x of tokens 0 2 4 6, y of tokens 1 3 5 7.
      const auto bytes = [&](uint32_t token) {
        const auto pair = [&](uint32_t t) {
          return permute(words[t * units + u], words[(t + 2) * units + u], values.pick[segment]);
        };
        return permute(pair(token), pair(token + 4), 0x5410);
      };
      const uint32_t x = bytes(0), y = bytes(1);
      // Nibbles of tokens 0 to 7, and in their low bits the code of value i.
      uint32_t selectors[4];
      if constexpr (bits == 2) {
        const uint32_t even = select_bits(constants.low_nibbles, x, y << 4);
        const uint32_t odd = select_bits(constants.low_nibbles, x >> 4, y);
        selectors[0] = even, selectors[1] = even >> 2, selectors[2] = odd, selectors[3] = odd >> 2;
      } else {
        const uint32_t all = select_bits(constants.low_nibbles, x >> values.shift, y << values.other_shift);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) selectors[i] = all >> i;
      }
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t selector = selectors[i] & constants.selector_mask;
        low[i / 2].at[i % 2] = permute(table.low[0], table.low[0], selector);
        low[i / 2].at[i % 2 + 2] = permute(table.low[0], table.low[0], selector >> 16);
      }
    }
#pragma unroll
    for (uint32_t n = 0; n < 2; ++n) {
      multiply_unsigned(sums[segment * units + u][n], low[n], weights);
      if constexpr (bits == 4) multiply_unsigned(sums[segment * units + u][n], high[n], weights);
    }
  }
}

// Words of shared memory of a warp behind its stages: digits of weights [segment][column][KV_BLOCK] in bytes; with
// several queries, scales of four segments; sums [value of a lane][lane].
template <class V, bool is_single>
constexpr uint32_t kWeightWords = V::kSegments* KV_BLOCK*(is_single ? 2 : 8) / 4;
constexpr uint32_t kScaleWords = 4 * KV_BLOCK;
template <class V, bool is_single>
constexpr uint32_t kOtherWords = kWeightWords<V, is_single> + (is_single ? 0 : kScaleWords) + V::kChunks * 4 * kWarp;

template <class K, class V, uint32_t scale_bits, bool is_single>
__global__ void __launch_bounds__(kKvThreads, resident_blocks(K::kHeadDim, K::kSegments, is_single))
    attend(const __grid_constant__ KvArguments a, uint32_t stage_bytes) {
  static_assert(K::kHeadDim == V::kHeadDim);
  using S = Stage<K, V, scale_bits>;
  constexpr uint32_t d = K::kHeadDim, kTables = K::kSegments + V::kSegments, kColumns = is_single ? 2 : 8;
  extern __shared__ uint4 dynamic[];  // [warp] of kStages stages, weights and scales
  __shared__ Table tables[4];
  __shared__ uint4 magic_vector;
  __shared__ KvTail tail;

  const KvPlace place(a);
  const uint32_t thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, j = lane % 4;
  let_next_start();

  // Warp w rounds codebook w; none of what is read here is written by a kernel.
  const float* const k_codebook = a.k_codebook + uint64_t(place.head) * a.k_codebook_step;
  const float* const v_codebook = a.v_codebook + uint64_t(place.head) * a.v_codebook_step;
  const auto second = [](uint32_t bits) { return (2u << bits) - 1; };  // where a second segment's centroids begin
  if (warp == 0) make_table<K::bits(0)>(k_codebook, tables[0]);
  if (warp == K::kSegments) make_table<V::bits(0)>(v_codebook, tables[K::kSegments]);
  if constexpr (K::kSegments == 2) {
    if (warp == 1) make_table<K::bits(1)>(k_codebook + second(K::bits(0)), tables[1]);
    if (warp == 3) make_table<V::bits(1)>(v_codebook + second(V::bits(0)), tables[3]);
  }
  if (a.transform != nullptr) {
    constexpr uint32_t kLine = 32;  // floats
    for (uint32_t i = thread * kLine; i < d * d; i += kKvThreads * kLine)
      prefetch(a.transform + uint64_t(place.head) * a.transform_step + i);
  }
  if (thread == 0) magic_vector = {kMagic, kMagic, kMagic, kMagic};
  const ScaleDecoder<scale_bits> decode;

  // This warp's sequence, and its blocks: `begin`, then every team-th. Behind the last sequence there are none.
  const uint32_t log2_team = kLog2Warps - a.log2_together, team = 1u << log2_team;
  KvPlace own = place;
  own.sequence = min(place.sequence + (warp >> log2_team), a.sequences - 1);
  const uint32_t length = place.sequence + (warp >> log2_team) < a.sequences ? uint32_t(a.lengths[own.sequence]) : 0;
  uint32_t begin = 0, end = (length + KV_BLOCK - 1) / KV_BLOCK;
  if (a.splits > 1) {
    begin = end * place.split / a.splits;
    end = end * (place.split + 1) / a.splits;
  }
  begin += warp & (team - 1);

  const uint32_t warp_bytes = kStages * stage_bytes + 4 * kOtherWords<V, is_single>;
  const uint32_t stages = shared_address(dynamic) + warp * warp_bytes;
  const uint32_t stages_end = stages + kStages * stage_bytes;
  const uint32_t weights_at = stages_end, scales_at = weights_at + 4 * kWeightWords<V, is_single>;

  // What this lane copies of the next block: kCopies vectors that all lanes take, then, as extra ones, what is left and
  // a vector of biases of eight lanes a query. What lies beyond the length is copied and not used.
  constexpr uint32_t kExtras = (S::kRest + (is_single ? 8 : 32) + kWarp - 1) / kWarp;
  uint32_t copy_to[S::kCopies], extra_to[kExtras], extra_step[kExtras];  // bytes from the beginning of a stage
  const std::byte* extra_source[kExtras];
#pragma unroll
  for (uint32_t i = 0; i < S::kCopies; ++i) {
    copy_to[i] = 4 * place_of_copy<K, V, scale_bits>(lane + i * kWarp);
    keep(copy_to[i]);
  }
  uint32_t left = end > begin ? (end - begin + team - 1) >> log2_team : 0;
  const uint64_t first_block = uint64_t(own.tile(a)) * a.blocks + begin;
  const std::byte* source =
      reinterpret_cast<const std::byte*>(a.cache + first_block * S::kBlockWords + lane * kCopyWords);
  uint32_t source_step = team * S::kBlockWords * 4;
  keep(source_step);
#pragma unroll
  for (uint32_t i = 0; i < kExtras; ++i) {
    const uint32_t extra = lane + i * kWarp, bias_vector = extra - S::kRest;
    extra_step[i] = 0, extra_to[i] = 0, extra_source[i] = source;
    if (int32_t(extra) < int32_t(S::kRest)) {
      extra_step[i] = source_step;
      extra_to[i] = 4 * place_of_copy<K, V, scale_bits>(S::kCopies * kWarp + extra);
      extra_source[i] = source + (S::kCopies + i) * kWarp * kCopyBytes;
    } else if (a.bias != nullptr && bias_vector / 8 < a.queries) {
      extra_step[i] = team * KV_BLOCK * sizeof(float);
      extra_to[i] = 4 * S::kBiases + bias_vector * kCopyBytes;
      extra_source[i] = reinterpret_cast<const std::byte*>(
          a.bias + (own.row(a, bias_vector / 8) * a.blocks + begin) * KV_BLOCK + bias_vector % 8 * 4);
    }
    keep(extra_step[i]), keep(extra_to[i]);
  }
  const auto copy_next = [&](uint32_t stage, bool is_one) {
    if (is_one) {
#pragma unroll
      for (uint32_t i = 0; i < S::kCopies; ++i) copy_async(stage + copy_to[i], source + i * kWarp * kCopyBytes);
#pragma unroll
      for (uint32_t i = 0; i < kExtras; ++i) {
        if (extra_step[i] != 0) copy_async(stage + extra_to[i], extra_source[i]);
        extra_source[i] += extra_step[i];
      }
      source += source_step;
    }
    commit_copies();
  };
  wait_for_inputs();
  // Query g / 2, or the one.
  float query[K::kChunks][8];
  load_query<K>(a.q + own.row(a, is_single ? 0 : g / 2) * d, is_single || g / 2 < a.queries, j, query);
#pragma unroll
  for (uint32_t i = 0; i + 1 < kStages; ++i) copy_next(stages + i * stage_bytes, left > i);

  // Its digits, and what products of query j are multiplied with.
  Keys<K> keys{};
  float score_factors[K::kSegments], magics[K::kSegments];  // units of log 2 in a unit of products; kMagic - offset
  __syncthreads();                                          // the tables are there
  {
    float largest = 0;
#pragma unroll
    for (uint32_t i = 0; i < K::kChunks * 8; ++i) largest = fmaxf(largest, fabsf(query[i / 8][i % 8]));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float steps = largest > 0 ? __fdividef(kQuerySteps, largest) : 0.0f;
    // Columns of even g take the second byte, rounded by what is added, columns of odd g the first.
    const uint32_t round = g % 2 == 0 ? 128 : 0, two = g % 2 == 0 ? 0x5151 : 0x4040;
    const float start = kMagicValue + float(round);
    int32_t totals[K::kSegments] = {};
#pragma unroll
    for (uint32_t c = 0; c < K::kChunks; ++c) {
      uint32_t numbers[8];  // in the low 16 bits
#pragma unroll
      for (uint32_t i = 0; i < 8; ++i) {
        numbers[i] = __float_as_uint(fmaf(query[c][i], steps, start));
        totals[c / K::kUnits] += int32_t(numbers[i] - (kMagic + round));
      }
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i)
        keys.query[c][i] = permute(permute(numbers[4 * i], numbers[4 * i + 1], two),
                                   permute(numbers[4 * i + 2], numbers[4 * i + 3], two), 0x5410);
    }
    const float score_factor = __shfl_sync(kAllLanes, largest, 8 * j) * (kLog2E / kQuerySteps);
#pragma unroll
    for (uint32_t s = 0; s < K::kSegments; ++s) {
      totals[s] += __shfl_xor_sync(kAllLanes, totals[s], 1);
      totals[s] += __shfl_xor_sync(kAllLanes, totals[s], 2);
      magics[s] = tables[s].offset * float(__shfl_sync(kAllLanes, totals[s], 8 * j)) - kMagicValue;
      keys.table[s] = tables[s];
      score_factors[s] = tables[s].unit * score_factor;
      const uint32_t bits = K::bits(s);
      keys.at[s] = 4 * S::key_row(s, bits >= 3 ? j : bits == 2 ? j / 2 : 0) + 16 * K::kUnits * g;
      keys.shift[s] = bits == 2 ? 2 * (j % 2) : j;
      keep(keys.at[s]), keep(keys.shift[s]);
    }
  }

  Values<V> values{};
  values.shift = 4 * (g % 2), values.other_shift = 4 - values.shift;
#pragma unroll
  for (uint32_t s = 0; s < V::kSegments; ++s) {
    const uint32_t bits = V::bits(s), byte = bits == 2 ? g % 4 : g / 2;
    values.table[s] = tables[K::kSegments + s];
    values.at[s] = 4 * S::value_row(s, bits >= 3 ? g / 2 : bits == 2 ? g / 4 : 0) + 32 * V::kUnits * j;
    values.pick[s] = bits >= 3 ? (g % 2 == 0 ? 0x5140u : 0x7362u) : byte + (byte + 4) * 16;
    keep(values.at[s]), keep(values.pick[s]);
  }

  constexpr uint32_t kTokens = is_single ? 1 : 4;  // that this lane scores
  Softmax<V, kTokens> softmax(scales_at + (is_single ? 0 : 4 * kScaleWords) + 4 * lane);
  // One where i = j, else zero: picks a number by products and sums.
  float is_own[4];
  uint32_t own_scale_at = 0, write_weights = 0, scale_row = 0;
  if constexpr (is_single) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      uint32_t one = __float_as_uint(i == j ? 1.0f : 0.0f);
      keep(one);
      is_own[i] = __uint_as_float(one);
    }
    own_scale_at = lane * (scale_bits / 8);
    write_weights = weights_at + lane;
  } else {
    const uint32_t s = min(j, kTables - 1);  // the segment whose scales this lane decodes
    scale_row =
        4 * (s < K::kSegments ? S::kKeyScales + s * scale_bits : S::kValueScales + (s - K::kSegments) * scale_bits) +
        g * (scale_bits / 2);
    write_weights = weights_at + 2 * j * KV_BLOCK + 4 * g;
  }
  uint32_t read_weights = weights_at + (is_single ? g % 2 : g) * KV_BLOCK + 8 * j;
  uint32_t bias_at = 4 * S::kBiases + (is_single ? 4 * lane : 4 * ((a.queries > j ? j : 0) * KV_BLOCK + 4 * g));
  keep(bias_at), keep(read_weights), keep(write_weights), keep(scale_row), keep(own_scale_at);
  uint32_t has_bias = a.bias != nullptr ? 1 : 0;
  keep(has_bias);

  uint32_t stage = stages, free_stage = stages + (kStages - 1) * stage_bytes;
  const Constants constants(shared_address(&magic_vector));
  // Tokens of the sequence from this lane's first of the block on; without any it is not above 0.
  int32_t tokens_left = int32_t(length - begin * KV_BLOCK - (is_single ? lane : 4 * g));
  for (; left > 0; --left) {
    wait_for_copies<kStages - 2>();
    __syncwarp();  // all lanes' copies are there, and all have done with the block before
    copy_next(free_stage, left >= kStages);

    // Rows and scales that lanes make for one another.
#pragma unroll
    for (uint32_t s = 0; s < K::kSegments; ++s) {
      if (K::bits(s) == 3)
        make_fourth_row<K::kUnits>(stage, lane, constants, [&](uint32_t w) { return S::key_row(s, w); });
    }
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s) {
      if (V::bits(s) == 3)
        make_fourth_row<V::kUnits>(stage, lane, constants, [&](uint32_t w) { return S::value_row(s, w); });
    }
    if constexpr (!is_single && scale_bits != 0) {
      const uint32_t word_0 = load_shared(stage + scale_row),
                     word_1 = scale_bits == 16 ? load_shared(stage + scale_row + 4) : 0;
      float scales[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        scales[i] = decode(scale_bits == 8 ? permute(word_0, 0, 0x4440 + i)
                                           : permute(i < 2 ? word_0 : word_1, 0, 0x4410 + i % 2 * 0x22));
      store_shared_vector(scales_at + j * KV_BLOCK * 4 + 16 * g, scales);
    }
    int32_t dots[K::kSegments][2][4];
    if constexpr (K::bits(0) != 3) score<K, 0>(stage, keys, constants, dots[0]);
    __syncwarp();  // what lanes have made is there
    if constexpr (K::bits(0) == 3) score<K, 0>(stage, keys, constants, dots[0]);
    if constexpr (K::kSegments == 2) score<K, 1>(stage, keys, constants, dots[1]);

    // Scores, in units of log 2, and scales of the values.
    float scores[kTokens] = {}, value_scales[V::kSegments][kTokens];
    if constexpr (is_single) {
      const auto scale_of = [&](uint32_t row) {
        if constexpr (scale_bits == 8) return decode(load_shared_byte(stage + own_scale_at + 4 * row));
        if constexpr (scale_bits == 16) return decode(load_shared_half(stage + own_scale_at + 4 * row));
        return 1.0f;
      };
      if (has_bias != 0) scores[0] = kLog2E * __uint_as_float(load_shared(stage + bias_at));
#pragma unroll
      for (uint32_t s = 0; s < K::kSegments; ++s) {
        float high = -kMagicValue, low = magics[s];
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
          high += is_own[i] * __uint_as_float(uint32_t(dots[s][i / 2][i % 2 * 2]));
          low += is_own[i] * __uint_as_float(uint32_t(dots[s][i / 2][i % 2 * 2 + 1]));
        }
        scores[0] += scale_of(S::kKeyScales + s * scale_bits) * (score_factors[s] * (256 * high + low));
      }
#pragma unroll
      for (uint32_t s = 0; s < V::kSegments; ++s) value_scales[s][0] = scale_of(S::kValueScales + s * scale_bits);
    } else {
      if (has_bias != 0) {
        load_numbers(stage + bias_at, scores);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) scores[i] *= kLog2E;
      }
      const auto load_scales = [&](uint32_t s, float(&scales)[4]) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) scales[i] = 1;
        if (scale_bits != 0) load_numbers(scales_at + s * KV_BLOCK * 4 + 16 * g, scales);
      };
#pragma unroll
      for (uint32_t s = 0; s < K::kSegments; ++s) {
        float scales[4];
        load_scales(s, scales);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
          const float high = __uint_as_float(uint32_t(dots[s][i / 2][i % 2 * 2])) - kMagicValue;
          const float low = __uint_as_float(uint32_t(dots[s][i / 2][i % 2 * 2 + 1])) + magics[s];
          scores[i] += scales[i] * (score_factors[s] * (256 * high + low));
        }
      }
#pragma unroll
      for (uint32_t s = 0; s < V::kSegments; ++s) load_scales(K::kSegments + s, value_scales[s]);
    }
    if (tokens_left < int32_t(kTokens)) {  // what lies beyond may be anything, but scales are finite
#pragma unroll
      for (uint32_t i = 0; i < kTokens; ++i)
        if (tokens_left <= int32_t(i)) scores[i] = 2 * kLowestScore;
    }

    uint32_t numbers[V::kSegments][kTokens];
    softmax.weigh(scores, value_scales, numbers);
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s) {
      const uint32_t to = write_weights + s * kColumns * KV_BLOCK;
      if constexpr (is_single) {
        store_shared_byte(to, numbers[s][0] >> 8);
        store_shared_byte(to + KV_BLOCK, numbers[s][0]);
      } else {
        const uint32_t two = permute(numbers[s][0], numbers[s][1], 0x5140);
        const uint32_t next_two = permute(numbers[s][2], numbers[s][3], 0x5140);
        store_shared(to, permute(two, next_two, 0x7632));
        store_shared(to + KV_BLOCK, permute(two, next_two, 0x5410));
      }
    }
    __syncwarp();  // the weights are there
    const auto load_weights = [&](uint32_t s, uint32_t(&weights)[2]) {
      const uint2 both = load_shared_pair(read_weights + s * kColumns * KV_BLOCK);
      weights[0] = both.x, weights[1] = both.y;
    };
    uint32_t weights[2];
    load_weights(0, weights);
    add_values<V, 0>(stage, values, constants, weights, softmax.sums);
    if constexpr (V::kSegments == 2) {
      load_weights(1, weights);
      add_values<V, 1>(stage, values, constants, weights, softmax.sums);
    }

    tokens_left -= int32_t(team * KV_BLOCK);
    free_stage = stage;
    stage = stage + stage_bytes == stages_end ? stages : stage + stage_bytes;
  }

  // This warp's share, over the first warp's stages: [query][warp][value].
  static_assert(kKvWarps * kKvQueries * d <= kStages * S::kBiases);
  wait_for_copies<0>();
#pragma unroll
  for (uint32_t step = is_single ? 1 : 4; step < kWarp; step *= 2) {
    softmax.total += __shfl_xor_sync(kAllLanes, softmax.total, step);
#pragma unroll
    for (uint32_t s = 0; s < V::kSegments; ++s)
      softmax.offset_sums[s] += __shfl_xor_sync(kAllLanes, softmax.offset_sums[s], step);
  }
  __syncthreads();
  float* const parts = reinterpret_cast<float*>(dynamic);
  if (j < a.queries) {
    if (g == 0) {
      tail.largest[j * kKvWarps + warp] = softmax.reference;
      tail.total[j * kKvWarps + warp] = softmax.total;
    }
#pragma unroll
    for (uint32_t c = 0; c < V::kChunks; ++c) {
      const uint32_t s = c / V::kUnits;
      const float factor = __fdividef(tables[K::kSegments + s].unit, softmax.grow[s]);
      float sums[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        sums[i] = factor * (softmax.sum(c, i) + values.table[s].offset * softmax.offset_sums[s]);
      store4(parts + (j * kKvWarps + warp) * d + 32 * c + value_element(g, 0), {sums[0], sums[1], sums[2], sums[3]});
    }
  }
  finish<d, kKvWarps>(a, place, tail, parts);
}

// ---- On the host ----------------------------------------------------------------------------------------------------

// How many sequences, as a power of two, share what a block of threads does once for a head, its codebooks and its
// transform: the number that is expected to take the least time. `resident` blocks fit on a multiprocessor.
uint32_t log2_together(const KvAttention& a, const Launch& l, uint32_t resident) {
  // In units of what a warp of a full multiprocessor takes for a block of the cache, as in kv_splits().
  constexpr double kFixed = 4;
  constexpr double kWorthIt = 0.95;  // for lengths differ, and a block takes as long as its longest sequence
  uint32_t best = 0;
  double least = 0;
  for (uint32_t log2 = 0; log2 <= kLog2Warps && a.queries << log2 <= kKvQueries; ++log2) {
    const uint64_t blocks = uint64_t(blocks_of(a.sequences, 1u << log2)) * a.heads;
    const double time =
        kv_waves(blocks, resident, l.gpu) * (kFixed + blocks_of(uint64_t(a.capacity / KV_BLOCK) << log2, kKvWarps));
    if (log2 == 0 || time < kWorthIt * least) best = log2, least = time;
  }
  return best;
}

template <class K, class V, uint32_t scale_bits, bool is_single>
bool launch_sides(const KvAttention& a, KvArguments arguments, const Launch& l) {
  const uint32_t stage = 4 * (Stage<K, V, scale_bits>::kBiases + (a.bias ? a.queries * KV_BLOCK : 0));
  const size_t bytes = size_t(kKvWarps) * (kStages * stage + 4 * kOtherWords<V, is_single>);
  constexpr uint32_t kFixed = 4 << 10;  // of shared memory: static, and the system's
  constexpr uint32_t kMost = resident_blocks(K::kHeadDim, K::kSegments, is_single);
  const uint32_t resident = std::clamp(uint32_t(l.gpu.max_shared_bytes / (bytes + kFixed)), 1u, kMost);
  constexpr double kMerge = 8;  // an H200; blocks are quick here
  arguments.splits = kv_splits(a, l, resident, false, kMerge);
  if (arguments.splits == 1) arguments.log2_together = log2_together(a, l, resident);
  const uint32_t team = kKvWarps >> arguments.log2_together;
  if (arguments.blocks / arguments.splits / team >= kMostBlocks) return false;
  const dim3 grid(a.heads, blocks_of(a.sequences, 1u << arguments.log2_together), arguments.splits);
  start(attend<K, V, scale_bits, is_single>, grid, dim3(kKvThreads), bytes, l, arguments, stage);
  return true;
}

bool has_bits(const KvSide& side, uint32_t bits_0, uint32_t bits_1, uint32_t scale_bits) {
  return side.segments == (bits_1 != 0 ? 2 : 1) && side.bits[0] == bits_0 && (bits_1 == 0 || side.bits[1] == bits_1) &&
         side.scale_bits == scale_bits;
}

// Launches the kernel for these bits if they are the format's.
template <uint32_t n, uint32_t k_0, uint32_t k_1, uint32_t v_0, uint32_t v_1, uint32_t scale_bits>
bool launch_if(const KvAttention& a, const KvArguments& arguments, const Launch& l) {
  if (!has_bits(a.format.k, k_0, k_1, scale_bits) || !has_bits(a.format.v, v_0, v_1, scale_bits)) return false;
  using K = Side<n, k_0, k_1>;
  using V = Side<n, v_0, v_1>;
  return a.queries == 1 ? launch_sides<K, V, scale_bits, true>(a, arguments, l)
                        : launch_sides<K, V, scale_bits, false>(a, arguments, l);
}

// The formats that model/kv_codec.cpp's presets have; others take the kernel for every format.
template <uint32_t head_dim>
bool launch_head_dim(const KvAttention& a, const KvArguments& arguments, const Launch& l) {
  if constexpr (head_dim >= 64) {
    constexpr uint32_t half = head_dim / 2;
    if (launch_if<half, 4, 2, 4, 2, 8>(a, arguments, l) || launch_if<half, 3, 1, 3, 1, 8>(a, arguments, l) ||
        launch_if<half, 4, 3, 4, 3, 16>(a, arguments, l) || launch_if<half, 3, 2, 3, 2, 16>(a, arguments, l) ||
        launch_if<half, 4, 3, 4, 2, 8>(a, arguments, l))
      return true;
  }
  return launch_if<head_dim, 4, 0, 4, 0, 8>(a, arguments, l) || launch_if<head_dim, 4, 0, 4, 0, 16>(a, arguments, l) ||
         launch_if<head_dim, 3, 0, 3, 0, 16>(a, arguments, l) || launch_if<head_dim, 2, 0, 2, 0, 16>(a, arguments, l) ||
         launch_if<head_dim, 3, 0, 3, 0, 0>(a, arguments, l) || launch_if<head_dim, 4, 0, 3, 0, 0>(a, arguments, l);
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
