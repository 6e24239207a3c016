#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

// Vectors of as many floats as the instruction set holds in a register, by the vector types of GCC and Clang: operators
// work lane by lane, and a product and a sum become one instruction where the file is compiled so. One source thus
// serves every instruction set. Local to the file that includes it, as kernel_tools.h is.
namespace turboesm::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVector = 16;
#elif defined(__AVX__)
constexpr int kVector = 8;
#else
constexpr int kVector = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kVector)));
typedef int32_t IntVector __attribute__((vector_size(4 * kVector)));

inline Vector load_vector(const float* source) {
  Vector v;
  std::memcpy(&v, source, sizeof v);
  return v;
}

inline void store_vector(float* destination, Vector v) { std::memcpy(destination, &v, sizeof v); }

inline Vector splat(float value) { return Vector{} + value; }

// `bits` as floats, and back.
inline Vector as_floats(IntVector bits) { return (Vector)bits; }
inline IntVector as_ints(Vector v) { return (IntVector)v; }

inline Vector larger(Vector a, Vector b) { return a < b ? b : a; }
inline Vector smaller(Vector a, Vector b) { return b < a ? b : a; }

// Lane i of the result is lane i ^ kDistance of v.
template <int kDistance, int... kLane>
inline Vector across(Vector v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, (kLane ^ kDistance)...);
}

// Both fold the vector in halves, so that the order of the sum is fixed.
template <int kDistance = kVector / 2>
inline float sum_of(Vector v) {
  v += across<kDistance>(v, std::make_integer_sequence<int, kVector>());
  if constexpr (kDistance > 1) return sum_of<kDistance / 2>(v);
  return v[0];
}
template <int kDistance = kVector / 2>
inline float max_of(Vector v) {
  v = larger(v, across<kDistance>(v, std::make_integer_sequence<int, kVector>()));
  if constexpr (kDistance > 1) return max_of<kDistance / 2>(v);
  return v[0];
}

// e^x for x <= 88, within 1.2 units in the last place; 0 where the result would be below the smallest normal number.
// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by a polynomial (a minimax fit of the relative error, 2.6e-9), after
// Cody & Waite 1980.
inline Vector exp(Vector x) {
  constexpr float kLowest = -87.3f, kRounding = 0x1.8p23f;  // adding the latter rounds to an integer
  const Vector shifted = x * 1.44269504089f + kRounding, n = shifted - kRounding;
  const Vector r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts, the products with n exact
  Vector p = splat(0.0014061423f);
  for (const float c : {0.008379059f, 0.04166477f, 0.16666365f, 0.50000006f, 1.0f, 1.0f}) p = p * r + c;
  const Vector power = as_floats((as_ints(shifted) << 23) + (127 << 23));  // 2^n; a product, so that NaN stays NaN
  return x < kLowest ? Vector{} : p * power;
}

// The lanes of two rows of a square of which blocks of kHalf change places: lane i of a below, of b beside.
template <int kHalf, int... kLane>
inline void swap_blocks(Vector& a, Vector& b, std::integer_sequence<int, kLane...>) {
  const Vector above = __builtin_shufflevector(a, b, (kLane & kHalf ? kVector + kLane - kHalf : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kHalf ? kVector + kLane : kLane + kHalf)...);
  a = above;
}

// Transposes a square by swapping blocks of half its size, then of half theirs in each, and so on.
template <int kHalf = kVector / 2>
inline void transpose(Vector (&rows)[kVector]) {
#pragma GCC unroll 16
  for (int i = 0; i < kVector; ++i)
    if ((i & kHalf) == 0) swap_blocks<kHalf>(rows[i], rows[i + kHalf], std::make_integer_sequence<int, kVector>());
  if constexpr (kHalf > 1) transpose<kHalf / 2>(rows);
}

}  // namespace
}  // namespace turboesm::cpu
