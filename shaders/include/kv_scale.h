// A token's scale in 16 or 8 bits, for C++, GLSL and CUDA alike, by operations that every back end rounds equally
// (products, sums and comparisons; no fused ones, no quotient, no root) so that all pack the same bits.
//
//   16 bits  the positive half of IEEE binary16, subnormal numbers read as 0: up to 65,504
//    8 bits  3 bits of exponent and 5 of mantissa, 33/512 to 15.75, and 0: steps of 1.6 to 3 %, for calibrated presets,
//            whose transform makes the average scale 1
#ifndef TURBOESM_KV_SCALE_H
#define TURBOESM_KV_SCALE_H

#include "kv_layout.h"

#ifdef __cplusplus
namespace turboesm {
#if defined(__CUDACC__)  // whose device code may not call std::bit_cast
#define KV_FLOAT(bits) __builtin_bit_cast(float, kv_uint(bits))
#define KV_BITS(value) __builtin_bit_cast(kv_uint, float(value))
#else
#define KV_FLOAT(bits) std::bit_cast<float>(kv_uint(bits))
#define KV_BITS(value) std::bit_cast<kv_uint>(float(value))
#endif
#define KV_PRECISE
#else
#define KV_FLOAT(bits) uintBitsToFloat(bits)
#define KV_BITS(value) floatBitsToUint(value)
#define KV_PRECISE precise
#endif

KV_FUNCTION float kv_scale_value(kv_uint scale_bits, kv_uint code) {
  if (scale_bits == 8u) return code == 0u ? 0.0f : KV_FLOAT((code << 18) + (123u << 23));
  return code < 0x400u ? 0.0f : KV_FLOAT((code << 13) + (112u << 23));
}

KV_FUNCTION kv_uint kv_scale_lowest(kv_uint scale_bits) { return scale_bits == 8u ? 1u : 0x400u; }  // above 0
KV_FUNCTION kv_uint kv_scale_highest(kv_uint scale_bits) { return scale_bits == 8u ? 0xffu : 0x7bffu; }

// The code whose value lies nearest below `value` or is equal to it, 0 or a code from lowest to highest.
KV_FUNCTION kv_uint kv_scale_below(kv_uint scale_bits, float value) {
  const kv_uint bits = KV_BITS(value);
  const kv_uint bias = scale_bits == 8u ? 123u << 23 : 112u << 23;
  const kv_uint lowest = kv_scale_lowest(scale_bits);
  const kv_uint highest = kv_scale_highest(scale_bits);
  if (bits < bias) return 0u;
  const kv_uint code = (bits - bias) >> (scale_bits == 8u ? 18 : 13);
  return code < lowest ? 0u : code > highest ? highest : code;
}

KV_FUNCTION kv_uint kv_scale_next(kv_uint scale_bits, kv_uint code) {
  return code == 0u ? kv_scale_lowest(scale_bits) : code + 1u;
}

// Whether x <= (a / b)^(1 / power), for a, b >= 0 and power 1 or 2.
KV_FUNCTION bool kv_scale_is_below(float x, float a, float b, bool square_root) {
  KV_PRECISE const float left = square_root ? x * x : x;
  KV_PRECISE const float product = left * b;
  return product <= a;
}

// The code nearest to sqrt(a / b), or to a / b: `guess` is an approximation of it, good to 2^-12, that may differ from
// device to device; the comparisons decide.
KV_FUNCTION kv_uint kv_scale_nearest(kv_uint scale_bits, float guess, float a, float b, bool square_root) {
  const kv_uint first = kv_scale_below(scale_bits, guess * 0.998f);
  const kv_uint highest = kv_scale_highest(scale_bits);
  kv_uint code = first;
  for (kv_uint i = 0u; i < 6u; ++i) {
    if (code >= highest) break;
    const kv_uint next = kv_scale_next(scale_bits, code);
    KV_PRECISE const float sum = kv_scale_value(scale_bits, code) + kv_scale_value(scale_bits, next);
    if (!kv_scale_is_below(0.5f * sum, a, b, square_root)) break;
    code = next;
  }
  return code;
}

// What KvScale::searched multiplies |y| / sqrt(n) with: of the first two candidates one is better, and the third lies
// beyond it.
KV_FUNCTION float kv_search_factor(kv_uint candidate, bool second_is_better) {
  return candidate == 0u ? 0.95f : candidate == 1u ? 1.05f : second_is_better ? 1.14f : 0.88f;
}

#ifdef __cplusplus
}  // namespace turboesm
#endif

#endif  // TURBOESM_KV_SCALE_H
