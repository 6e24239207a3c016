// What KvAttention on matrix cores (kv_attention_mma.cu, which says what all of this is for) is made of below the level
// of a block of tokens: instructions, where a block's words lie in shared memory, which lane takes which codes, and
// codebooks of 8-bit integers.
#pragma once

#include "runtime/cuda/kv_attention_parts.cuh"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kCopyBytes = 16, kCopyWords = kCopyBytes / 4;
constexpr uint32_t kMagic = 0x4b400000;  // the bits of kMagicValue; as a float, kMagic + i is kMagicValue + i
constexpr float kMagicValue = 12582912;  // 1.5 x 2^23, for |i| < 2^22

// ---- Instructions ---------------------------------------------------------------------------------------------------

// Four bytes out of the eight of (high, low), by the low 16 bits of `selector`; bit 3 of a nibble repeats the sign.
__device__ __forceinline__ uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}

__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The bits of `x` where `mask` has ones, those of `y` elsewhere.
__device__ __forceinline__ uint32_t select_bits(uint32_t mask, uint32_t x, uint32_t y) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(result) : "r"(mask), "r"(x), "r"(y));
  return result;
}

// Keeps `x` in its register; the compiler would rather compute what does not change anew for each block of tokens.
__device__ __forceinline__ void keep(uint32_t& x) { asm volatile("" : "+r"(x)); }

// sum += a b with a signed and b signed, or unsigned.
struct Fragment {
  uint32_t at[4];
};
__device__ __forceinline__ void multiply_signed(int32_t (&sum)[4], const Fragment& a, const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b[0]), "r"(b[1]));
#endif
}
__device__ __forceinline__ void multiply_unsigned(int32_t (&sum)[4], const Fragment& a, const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// sum = start + a b, both signed.
__device__ __forceinline__ void multiply_from(const uint32_t (&start)[4], int32_t (&sum)[4], const Fragment& a,
                                              const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(sum[0]), "=r"(sum[1]), "=r"(sum[2]), "=r"(sum[3])
      : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b[0]), "r"(b[1]), "r"(start[0]), "r"(start[1]),
        "r"(start[2]), "r"(start[3]));
#else
  for (uint32_t i = 0; i < 4; ++i) sum[i] = int32_t(start[i]);
#endif
}

// Shared memory by addresses of its own, in bytes.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}
__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}
__device__ __forceinline__ uint4 load_shared_vector(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}
__device__ __forceinline__ uint2 load_shared_pair(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}
__device__ __forceinline__ uint32_t load_shared_byte(uint32_t address) {
  uint32_t byte;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(byte) : "r"(address));
  return byte;
}
__device__ __forceinline__ uint32_t load_shared_half(uint32_t address) {
  uint16_t half;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(half) : "r"(address));
  return half;
}
__device__ __forceinline__ void store_shared(uint32_t address, uint32_t word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
__device__ __forceinline__ void store_shared_byte(uint32_t address, uint32_t word) {
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
__device__ __forceinline__ void store_shared_vector(uint32_t address, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
}

// Starts to copy 16 bytes to shared memory.
__device__ __forceinline__ void copy_async(uint32_t shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
#endif
}
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `pending` of this thread's groups are on their way.
template <uint32_t pending>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

__device__ __forceinline__ void prefetch(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

// ---- Formats --------------------------------------------------------------------------------------------------------

// K or V: one segment of n values with bits_1 = 0, else two.
template <uint32_t n, uint32_t bits_0, uint32_t bits_1>
struct Side {
  static constexpr uint32_t kSegments = bits_1 != 0 ? 2 : 1, kHeadDim = n * kSegments;
  static constexpr uint32_t kUnits = n / 32;  // of a token and segment
  static constexpr uint32_t kChunks = kHeadDim / 32;
  __host__ __device__ static constexpr uint32_t bits(uint32_t segment) { return segment == 0 ? bits_0 : bits_1; }
  static constexpr uint32_t kCodeWords = n * (bits_0 + bits_1);
  static constexpr uint32_t kRow = n;  // words: word w of all units of a segment
  // Rows of a segment in shared memory: with 3 bits a fourth is made of the high bits of the others.
  __host__ __device__ static constexpr uint32_t rows(uint32_t segment) {
    return bits(segment) == 3 ? 4 : bits(segment);
  }
  // Where word `word` of the codes of all segments is to be found.
  __device__ static uint32_t segment_of(uint32_t word) { return word >= kRow * bits_0 ? 1 : 0; }
  __device__ static uint32_t within(uint32_t word) { return word - segment_of(word) * kRow * bits_0; }
};

// How far row w of a segment of K's codes is moved, so that vectors of four words at 4 units x g of rows 0 to 3 and two
// neighbouring g lie in different banks.
__host__ __device__ constexpr uint32_t row_shift(uint32_t units, uint32_t w) {
  return units == 1 ? 8 * w : units == 2 ? w % 2 * 4 + w / 2 * 16 : 4 * w;
}

// Words of a block in shared memory: K's codes, K's scales, V's codes, V's scales, biases [queries][KV_BLOCK].
template <class K, class V, uint32_t scale_bits>
struct Stage {
  __host__ __device__ static constexpr uint32_t key_row(uint32_t segment, uint32_t w) {
    return segment * (K::kRow * K::rows(0) + row_shift(K::kUnits, K::rows(0) - 1)) + w * K::kRow +
           row_shift(K::kUnits, w);
  }
  static constexpr uint32_t kKeyScales = key_row(K::kSegments - 1, K::rows(K::kSegments - 1) - 1) + K::kRow;
  static constexpr uint32_t kValues = kKeyScales + K::kSegments * scale_bits;
  __host__ __device__ static constexpr uint32_t value_row(uint32_t segment, uint32_t w) {
    return kValues + (segment * V::rows(0) + w) * V::kRow;
  }
  static constexpr uint32_t kValueScales = value_row(V::kSegments - 1, V::rows(V::kSegments - 1));
  static constexpr uint32_t kBiases = kValueScales + V::kSegments * scale_bits;
  // Of the block in global memory: words, copies of 16 bytes, and how many of these each lane, or some lanes, take.
  static constexpr uint32_t kBlockWords = K::kCodeWords + V::kCodeWords + (K::kSegments + V::kSegments) * scale_bits;
  static constexpr uint32_t kVectors = kBlockWords / kCopyWords, kCopies = kVectors / kWarp, kRest = kVectors % kWarp;
};

// Where vector `index` of a block goes.
template <class K, class V, uint32_t scale_bits>
__device__ uint32_t place_of_copy(uint32_t index) {
  using S = Stage<K, V, scale_bits>;
  uint32_t word = index * kCopyWords;
  if (word < K::kCodeWords) return S::key_row(K::segment_of(word), K::within(word) / K::kRow) + word % K::kRow;
  word -= K::kCodeWords;
  if (int32_t(word) < int32_t(K::kSegments * scale_bits)) return S::kKeyScales + word;
  word -= K::kSegments * scale_bits;
  if (word < V::kCodeWords) return S::value_row(V::segment_of(word), V::within(word) / V::kRow) + word % V::kRow;
  return S::kValueScales + word - V::kCodeWords;
}

// Which of a unit's 32 values lane j of four has as its i-th of 8: those of its row with 3 or 4 bits; with 2 every
// other one of a word, with 1 every fourth.
template <uint32_t bits>
__device__ uint32_t key_element(uint32_t j, uint32_t i) {
  return bits == 1 ? 4 * i + j : bits == 2 ? 16 * (j / 2) + 2 * i + j % 2 : 8 * j + i;
}
// The same for lane g of eight and its i-th of 4.
__device__ inline uint32_t value_element(uint32_t g, uint32_t i) { return 4 * g + i; }

// 1, and the compiler does not know it: of a constant it would make a comparison and a selection, or moves.
__device__ __forceinline__ uint32_t unknown_one() { return blockDim.y; }

// A scale: the number of kv_scale.h. `factor` and `bias` are kept constants.
template <uint32_t scale_bits>
struct ScaleDecoder {
  uint32_t factor = scale_bits == 16 ? 1u << 13 : 1u << 18, bias = scale_bits == 16 ? 112u << 23 : 123u << 23;
  __device__ ScaleDecoder() { keep(factor), keep(bias); }
  __device__ __forceinline__ float operator()(uint32_t code) const {
    if constexpr (scale_bits == 8) return __uint_as_float(code * factor + min(code, unknown_one()) * bias);
    if constexpr (scale_bits == 16) return code < 0x400u ? 0.0f : __uint_as_float(code * factor + bias);
    return 1;
  }
};

// ---- Codebooks ------------------------------------------------------------------------------------------------------

// The integers r of c = unit (r + offset), byte by byte. With 4 bits `low` is that of codes 0 to 7 and `high` that of
// codes 8 to 15, plus 1; else `low` holds all.
struct Table {
  uint32_t low[2], high[2];
  float unit, offset;
};

// The integer nearest to the product, which is below 2^22, within what the code's byte holds.
template <uint32_t bits>
__device__ __forceinline__ float rounded(float x, float factor, uint32_t code) {
  const float r = fmaf(x, factor, kMagicValue) - kMagicValue;
  if (bits < 4) return fminf(fmaxf(r, -127.0f), 127.0f);
  return code < 8 ? fminf(fmaxf(r, -128.0f), -1.0f) : fminf(fmaxf(r, -1.0f), 126.0f);
}

// The largest and the least of all lanes' numbers, which are not below 0: their bits are ordered as they are.
__device__ __forceinline__ float positive_max(float x) {
#if __CUDA_ARCH__ >= 800
  return __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(x)));
#else
  return warp_max(x);
#endif
}
__device__ __forceinline__ uint32_t warp_min(uint32_t x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(kAllLanes, x);
#else
  return x;  // not launched
#endif
}

// By one warp, from 2^bits centroids in ascending order. Each lane tries a unit.
template <uint32_t bits>
__device__ __forceinline__ void make_table(const float* codebook, Table& table) {
  constexpr float kMost = 126, kStep = 1;  // the largest |r| that lane 0 tries, and by how much the next one's is less
  constexpr uint32_t kCodes = 1u << bits;
  const uint32_t lane = threadIdx.x % kWarp, code = lane % kCodes;
  float x = codebook[code], offset = 0, largest = positive_max(fabsf(x));
  if (bits == 4) {
    const float below = __shfl_sync(kAllLanes, x, 7), above = __shfl_sync(kAllLanes, x, 8),
                unit = largest * (1 / kMost);
    if (below > -0.5f * unit || above < -0.5f * unit) offset = 0.5f * (below + above);
    x -= offset;
    largest = positive_max(fabsf(x));
  }
  largest = fmaxf(largest, 1e-20f);
  const float most = (bits == 4 ? kMost : kMost + 1) - kStep * float(lane);
  float unit = __fdividef(largest, most), inverse = __fdividef(most, largest), error = 0;
#pragma unroll
  for (uint32_t i = 0; i < kCodes; ++i) {
    const float y = __shfl_sync(kAllLanes, x, i), difference = y - unit * rounded<bits>(y, inverse, i);
    error += difference * difference;
  }
  // The least error's lane: errors are compared without their lowest bits, which hold the lane.
  const uint32_t best = warp_min((__float_as_uint(error) & ~(kWarp - 1)) | lane) % kWarp;
  unit = __shfl_sync(kAllLanes, unit, best), inverse = __shfl_sync(kAllLanes, inverse, best);
  const int32_t r = int32_t(rounded<bits>(x, inverse, code)) + (code >= 8 ? 1 : 0);
  uint32_t word = (uint32_t(r) & 0xffu) << (8 * (lane % 4));
  word |= __shfl_xor_sync(kAllLanes, word, 1);
  word |= __shfl_xor_sync(kAllLanes, word, 2);
  if (lane % 4 == 0 && lane < 16) (lane < 8 ? table.low : table.high)[lane / 4 % 2] = word;
  if (lane == 0) {
    table.unit = unit;
    table.offset = offset * inverse;
  }
}

}  // namespace
}  // namespace turboesm::cuda
