#pragma once

#include "runtime/cpu/panels.h"

#if defined(__AMX_BF16__) && defined(__x86_64__)
#define TURBOESM_AMX 1

// Products of bf16 by AMX's registers (Intel SDM, TDPBF16PS), which hold 16 rows of 64 bytes: 16 words (panels.h) or 16
// sums. One instruction adds to 16 x 16 sums the products of 16 rows and 16 columns over 16 words, so that a panel's
// words, which lie by step and column, are two registers side by side. It adds up even and odd inputs of the 16 words
// by themselves, then both to the sum: an order that depends on the number of inputs alone.
namespace turboesm::cpu {
namespace {

constexpr uint64_t kAmx = 16;  // rows of a register, and words of a row
constexpr uint64_t kAmxBlockRows = 2 * kAmx;
static_assert(kPanel == 2 * kAmx);

// LDTILECFG's operand: eight registers of that shape.
struct alignas(64) AmxConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {kAmx, kAmx, kAmx, kAmx, kAmx, kAmx, kAmx, kAmx};
};

// As long as this lives the thread's registers are so.
class AmxRegisters {
 public:
  AmxRegisters() {
    static constexpr AmxConfiguration kConfiguration;  // in memory before: the compiler knows of 8 bytes that are read
    _tile_loadconfig(&kConfiguration);
  }
  ~AmxRegisters() { _tile_release(); }
  AmxRegisters(const AmxRegisters&) = delete;
  AmxRegisters& operator=(const AmxRegisters&) = delete;
};

// sums [kCount x kAmx, kPanel] = or, with `add`, += x [the same rows, depth] times panel [depth, kPanel]; depth is a
// multiple of kAmx, strides count words.
template <int kCount>
inline void multiply_by_amx(const float* x, uint64_t x_stride, const float* panel, uint64_t depth, float* sums,
                            uint64_t sums_stride, bool add) {
  static_assert(kCount == 1 || kCount == 2);
  const uint64_t x_bytes = 4 * x_stride, sums_bytes = 4 * sums_stride, panel_bytes = 4 * kPanel;
  float* lower_sums = sums + kAmx * sums_stride;
  const float* lower_x = x + kAmx * x_stride;
  __asm__ volatile("" ::: "memory");  // what is loaded has been written: the loads do not say that they read memory
  if (add) {
    _tile_loadd(0, sums, sums_bytes);
    _tile_loadd(1, sums + kAmx, sums_bytes);
    if constexpr (kCount == 2) {
      _tile_loadd(2, lower_sums, sums_bytes);
      _tile_loadd(3, lower_sums + kAmx, sums_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kCount == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (uint64_t k = 0; k < depth; k += kAmx) {
    _tile_loadd(4, panel + k * kPanel, panel_bytes);
    _tile_loadd(5, panel + k * kPanel + kAmx, panel_bytes);
    _tile_loadd(6, x + k, x_bytes);
    _tile_dpbf16ps(0, 6, 4);
    _tile_dpbf16ps(1, 6, 5);
    if constexpr (kCount == 2) {
      _tile_loadd(7, lower_x + k, x_bytes);
      _tile_dpbf16ps(2, 7, 4);
      _tile_dpbf16ps(3, 7, 5);
    }
  }
  _tile_stored(0, sums, sums_bytes);
  _tile_stored(1, sums + kAmx, sums_bytes);
  if constexpr (kCount == 2) {
    _tile_stored(2, lower_sums, sums_bytes);
    _tile_stored(3, lower_sums + kAmx, sums_bytes);
  }
}

}  // namespace
}  // namespace turboesm::cpu

#endif  // TURBOESM_AMX
