#include "runtime/vulkan/linear_rates.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace turboesm::vulkan {
namespace {

constexpr LinearRates kRates[] = {
#include "runtime/vulkan/rates/nvidia.inc"
#include "runtime/vulkan/rates/software.inc"
};

}  // namespace

const TileRate* LinearRates::find(std::string_view tile) const {
  const auto found = std::ranges::find(tiles, tile, &TileRate::tile);
  return found != tiles.end() ? &*found : nullptr;
}

std::span<const LinearRates> all_linear_rates() { return kRates; }

std::string_view device_class_of(uint32_t vendor_id, bool software) {
  if (software) return "software";
  switch (vendor_id) {
    case 0x10de: return "nvidia";
    case 0x1002: return "amd";
    case 0x8086: return "intel";
    default: return "other";
  }
}

const LinearRates& linear_rates(std::string_view device_class) {
  const auto found = std::ranges::find(kRates, device_class, &LinearRates::device_class);
  return found != std::end(kRates) ? *found : kRates[0];
}

const TileRate* find_rate(std::string_view device_class, std::string_view tile) {
  const TileRate* rate = linear_rates(device_class).find(tile);
  return rate ? rate : kRates[0].find(tile);
}

double tile_microseconds(double launch, const TileRate& rate, uint64_t workgroups, uint32_t units, uint32_t steps) {
  constexpr double kTail = 0.86;  // share of the last, incomplete round that is lost
  const double rounds = double(workgroups) / units;
  const double full = rounds * steps * rate.busy;
  return launch + std::max(steps * rate.alone, full * (1 + kTail * (std::ceil(rounds) / rounds - 1)));
}

std::string to_text(const LinearRates& rates, std::string_view command, std::string_view device) {
  std::string text = fmt::format("// {} > runtime/vulkan/rates/{}.inc\n// {}\n{{\"{}\",\n {:.2f},\n {{{{\n", command,
                                 rates.device_class, device, rates.device_class, rates.launch);
  for (const TileRate& rate : rates.tiles)
    if (!rate.tile.empty()) text += fmt::format("     {{\"{}\", {:.4f}, {:.4f}}},\n", rate.tile, rate.alone, rate.busy);
  return text + " }}},\n";
}

}  // namespace turboesm::vulkan
