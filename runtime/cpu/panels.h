#pragma once

#include "runtime/cpu/kernel_tools.h"
#include "runtime/cpu/vector.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

// Products of small matrices whose right side has been laid out in panels: the inner loops of Linear, QkvRope and
// Attention. A panel is [depth, kPanel]: kPanel columns of the result, for each step k the factors of all of them side
// by side. The rows of the left side are read where they are, one value at a time for a whole panel (after Goto & van
// de Geijn 2008). Each element of a result is one chain of sums over ascending k, whichever rows are computed with it.
//
// A "word" is 32 bits of an operand: a float, or two neighbouring bf16 where the processor multiplies and adds those.
namespace turboesm::cpu {
namespace {

constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kVector;
// With two vectors each, sums for most of the registers: 32, or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBlockRows = 12;
#else
constexpr int kBlockRows = 6;
#endif
constexpr int kFewRows = 4;

// What happens to a sum at a step, for one word of a row and a vector of a panel.
struct MultiplyFloats {
  static Vector step(Vector sum, Vector panel, float x) { return sum + panel * x; }
};
#if defined(__AVX512BF16__)
struct MultiplyPairs {
  static Vector step(Vector sum, Vector panel, float x) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)panel, (__m512bh)splat(x));
  }
};
#endif

// sums [kRows, kPanel], rows sums_stride apart, = or, with `add`, += x [kRows, depth] times panel [depth, kPanel].
template <class Multiply, int kRows>
inline void multiply_rows(const float* x, uint64_t x_stride, const float* panel, uint64_t depth, float* sums,
                          uint64_t sums_stride, bool add) {
  constexpr int kThree = 3, kPointers = (kRows + kThree - 1) / kThree;  // an address has room for strides 0, 1 and 2
  const float* rows[kPointers];
  for (int i = 0; i < kPointers; ++i) rows[i] = x + uint64_t(kThree * i) * x_stride;
  Vector sum[kRows][kPanelVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v)
      sum[r][v] = add ? load_vector(sums + uint64_t(r) * sums_stride + v * kVector) : Vector{};
  for (uint64_t k = 0; k < depth; ++k) {
    Vector factors[kPanelVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) factors[v] = load_vector(panel + k * kPanel + v * kVector);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const float word = rows[r / kThree][uint64_t(r % kThree) * x_stride];
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) sum[r][v] = Multiply::step(sum[r][v], factors[v], word);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kPointers; ++i) ++rows[i];
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) store_vector(sums + uint64_t(r) * sums_stride + v * kVector, sum[r][v]);
}

// The same for any number of rows up to kBlockRows, and for `panel_count` panels, one behind the other in memory and
// their results side by side.
template <class Multiply>
inline void multiply_block(const float* x, uint64_t x_stride, uint64_t rows, const float* panels, uint64_t panel_count,
                           uint64_t depth, float* sums, uint64_t sums_stride, bool add) {
  for (uint64_t p = 0; p < panel_count; ++p) {
    const float* panel = panels + p * depth * kPanel;
    float* out = sums + p * kPanel;
    if (rows == kBlockRows) {
      multiply_rows<Multiply, kBlockRows>(x, x_stride, panel, depth, out, sums_stride, add);
      continue;
    }
    uint64_t r = 0;
    for (; r + kFewRows <= rows; r += kFewRows)
      multiply_rows<Multiply, kFewRows>(x + r * x_stride, x_stride, panel, depth, out + r * sums_stride, sums_stride,
                                        add);
    for (; r < rows; ++r)
      multiply_rows<Multiply, 1>(x + r * x_stride, x_stride, panel, depth, out + r * sums_stride, sums_stride, add);
  }
}

constexpr uint64_t panels_of(uint64_t columns) { return (columns + kPanel - 1) / kPanel; }

// Panels of the transpose of `rows` rows of `depth` words: row_at(i) is where row i < rows lies, until its next call
// but kVector - 1. Columns beyond the last row repeat it.
template <class RowAt>
inline void pack_transposed(uint64_t rows, uint64_t depth, float* panels, RowAt&& row_at) {
  for (uint64_t first = 0; first < panels_of(rows) * kPanel; first += kVector) {
    const float* sources[kVector];
    for (int i = 0; i < kVector; ++i) sources[i] = row_at(min_of(first + uint64_t(i), rows - 1));
    float* out = panels + first / kPanel * depth * kPanel + first % kPanel;
    uint64_t k = 0;
    for (; k + kVector <= depth; k += kVector) {
      Vector square[kVector];
#pragma GCC unroll 16
      for (int i = 0; i < kVector; ++i) square[i] = load_vector(sources[i] + k);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kVector; ++i) store_vector(out + (k + uint64_t(i)) * kPanel, square[i]);
    }
    for (; k < depth; ++k)
      for (int i = 0; i < kVector; ++i) out[k * kPanel + uint64_t(i)] = sources[i][k];
  }
}

}  // namespace
}  // namespace turboesm::cpu
