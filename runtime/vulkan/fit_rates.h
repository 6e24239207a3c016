#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/vulkan/linear_rates.h"

namespace turboesm::vulkan {

// What a product took by a tile, and what it is to tile_microseconds().
struct TileTime {
  uint64_t workgroups;
  uint32_t units, steps;
  double microseconds;
  double weight = 1;  // of its squared error
};

struct RatesFit {
  double launch = 0;
  std::vector<TileRate> rates;  // of each tile in turn, without names
  double error = 0;             // root mean square of log(predicted / measured), by the times' weights
};

// The launch that all tiles share and the rates of each by which tile_microseconds() is nearest to their times. Errors
// are relative, so that short products count as much as long ones. Each tile has at least one time.
RatesFit fit_rates(std::span<const std::vector<TileTime>> tiles);

// How much longer, as a share of its time, the tile that the rates choose takes than the fastest, on average over the
// products. Each tile has a time of each product.
double choice_loss(std::span<const std::vector<TileTime>> tiles, std::span<const TileRate> rates);

}  // namespace turboesm::vulkan
