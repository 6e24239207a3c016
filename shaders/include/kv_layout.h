// Where the bits of a quantized KV cache lie: the one statement of it, for C++, GLSL and CUDA alike.
//
// A cache holds, for each (sequence, head), a row of blocks of KV_BLOCK = 32 tokens. A block is a run of 32-bit words,
// first those of K, then those of V. Either side is, with d = head_dim in S = 1 or 2 segments of n = d / S values each:
//
//   codes of segment 0     n x bits_0 words     (b bits for each of n values of 32 tokens: n x b words, no padding)
//   codes of segment 1     n x bits_1 words     (only with two segments)
//   scales                 S x scale_bits words (one of scale_bits bits for each token and segment)
//   residual signs         d words              (only with QJL: one bit a value)
//   residual norms         16 words             (only with QJL: 16 bits a token)
//
// Codes. G = 32 / gcd(n, 32) tokens form a group, the least number whose n x G codes make whole units of 32 codes. Code
// number c = (token in group) x n + (value) belongs to unit c / 32 as its element e = c % 32. A unit is b words; word w
// of unit u of group g is word (w x groups + g) x units + u of the segment's codes, so that neighbouring lanes, each
// with a unit, read neighbouring words. Within a unit:
//   b = 1, 2, 4, 8, 16, 32   element e is bits [e b % 32, e b % 32 + b) of word e b / 32
//   b = 3                    elements 0 to 23 are the three low bits of the nibbles, element e nibble e % 8 of word
//                            e / 8; bit w of element 24 + i is the high bit of nibble i of word w
// so that 3-bit codes are as easily taken out as 4-bit ones, and 32 of them take 12 bytes. Signs are laid out as 1-bit
// codes. Scales and residual norms follow one another, token by token, the first in the lowest bits of a word.
#ifndef TURBOESM_KV_LAYOUT_H
#define TURBOESM_KV_LAYOUT_H

#ifdef __cplusplus
#include <bit>
#include <cstdint>
namespace turboesm {
using kv_uint = uint32_t;
// `static`: files compiled for several instruction sets include this, and the linker must not mix their copies.
#if defined(__CUDACC__)
#define KV_FUNCTION static __host__ __device__ constexpr
#else
#define KV_FUNCTION static constexpr
#endif
#else
#define kv_uint uint
#define KV_FUNCTION
#endif

#define KV_BLOCK 32u

KV_FUNCTION kv_uint kv_group_tokens(kv_uint n) {
  const kv_uint power = n & (~n + 1u);  // the largest power of two that divides n
  return power >= 32u ? 1u : 32u / power;
}

KV_FUNCTION kv_uint kv_group_units(kv_uint n) { return kv_group_tokens(n) * n / 32u; }

// Word `w` of the unit of value `i` of token `t` of the block, among the words of a segment of n values.
KV_FUNCTION kv_uint kv_code_word(kv_uint n, kv_uint t, kv_uint i, kv_uint w) {
  const kv_uint tokens = kv_group_tokens(n);
  const kv_uint unit = (t % tokens * n + i) / 32u;
  return (w * (KV_BLOCK / tokens) + t / tokens) * kv_group_units(n) + unit;
}

// Which element of its unit that value is.
KV_FUNCTION kv_uint kv_element(kv_uint n, kv_uint t, kv_uint i) { return (t % kv_group_tokens(n) * n + i) % 32u; }

// What element e with this code contributes to word w of its unit; all contributions are joined by `or`.
KV_FUNCTION kv_uint kv_deposit(kv_uint bits, kv_uint e, kv_uint w, kv_uint code) {
  if (bits == 3u) {
    if (e < 24u) return e / 8u == w ? code << (4u * (e % 8u)) : 0u;
    return (code >> w & 1u) << (4u * (e - 24u) + 3u);
  }
  return e * bits / 32u == w ? code << (e * bits % 32u) : 0u;
}

// The first word of each part of a side's block, and the words of the whole; scale_bits is 0 without scales.
KV_FUNCTION kv_uint kv_codes_at(kv_uint n, kv_uint bits_0, kv_uint segment) { return segment * n * bits_0; }
KV_FUNCTION kv_uint kv_scales_at(kv_uint n, kv_uint segments, kv_uint bits_0, kv_uint bits_1) {
  return n * bits_0 + (segments == 2u ? n * bits_1 : 0u);
}
KV_FUNCTION kv_uint kv_signs_at(kv_uint n, kv_uint segments, kv_uint bits_0, kv_uint bits_1, kv_uint scale_bits) {
  return kv_scales_at(n, segments, bits_0, bits_1) + segments * scale_bits;
}
KV_FUNCTION kv_uint kv_side_words(kv_uint n, kv_uint segments, kv_uint bits_0, kv_uint bits_1, kv_uint scale_bits,
                                  kv_uint qjl) {
  return kv_signs_at(n, segments, bits_0, bits_1, scale_bits) + (qjl != 0u ? segments * n + 16u : 0u);
}

// The word of token t's scale among the scales of its segment, and its first bit there.
KV_FUNCTION kv_uint kv_scale_word(kv_uint scale_bits, kv_uint t) { return t * scale_bits / 32u; }
KV_FUNCTION kv_uint kv_scale_shift(kv_uint scale_bits, kv_uint t) { return t * scale_bits % 32u; }

#ifdef __cplusplus
}  // namespace turboesm
#endif

#endif  // TURBOESM_KV_LAYOUT_H
