#pragma once

#include "runtime/cpu/panels.h"

#if defined(__AMX_BF16__)

// Products of bf16 by the tiles of AMX (Intel SDM, TDPBF16PS). A tile has 16 rows of 64 bytes, 16 words (panels.h) or
// sums. One instruction adds to 16 x 16 sums the products of 16 rows and 16 columns over 16 words, so that a panel's
// words, which lie by step and column, are two tiles side by side. Each sum is one chain over ascending inputs.
namespace turboesm::cpu {
namespace {

constexpr uint64_t kTile = 16;              // rows, and words of a row
constexpr uint64_t kTilesRows = 2 * kTile;  // that are multiplied at a time
static_assert(kPanel == 2 * kTile);

// As long as this lives the thread's tiles are of that shape.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {  // LDTILECFG's operand
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = 4 * kTile, config.rows[tile] = kTile;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// sums [kRowTiles x kTile, kPanel] = or, with `add`, += x [the same rows, depth] times panel [depth, kPanel]; depth is
// a multiple of kTile, strides count words.
template <int kRowTiles>
inline void multiply_tiles(const float* x, uint64_t x_stride, const float* panel, uint64_t depth, float* sums,
                           uint64_t sums_stride, bool add) {
  const uint64_t x_bytes = 4 * x_stride, sums_bytes = 4 * sums_stride, panel_bytes = 4 * kPanel;
  float* lower_sums = sums + kTile * sums_stride;
  const float* lower_x = x + kTile * x_stride;
  __asm__ volatile("" ::: "memory");  // what tiles are loaded from has been written
  if (add) {
    _tile_loadd(0, sums, sums_bytes);
    _tile_loadd(1, sums + kTile, sums_bytes);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(2, lower_sums, sums_bytes);
      _tile_loadd(3, lower_sums + kTile, sums_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (uint64_t k = 0; k < depth; k += kTile) {
    _tile_loadd(4, panel + k * kPanel, panel_bytes);
    _tile_loadd(5, panel + k * kPanel + kTile, panel_bytes);
    _tile_loadd(6, x + k, x_bytes);
    _tile_dpbf16ps(0, 6, 4);
    _tile_dpbf16ps(1, 6, 5);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(7, lower_x + k, x_bytes);
      _tile_dpbf16ps(2, 7, 4);
      _tile_dpbf16ps(3, 7, 5);
    }
  }
  _tile_stored(0, sums, sums_bytes);
  _tile_stored(1, sums + kTile, sums_bytes);
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, lower_sums, sums_bytes);
    _tile_stored(3, lower_sums + kTile, sums_bytes);
  }
}

}  // namespace
}  // namespace turboesm::cpu

#endif  // __AMX_BF16__
