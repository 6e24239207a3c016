#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace turboesm::vulkan {

// How fast the tiles of linear layers are on a class of devices, by which lower() chooses among them. The files of
// rates/ hold what `turboesm bench linear --tune` printed, one for each class.
struct TileRate {
  std::string_view tile;  // its kernel, sizes and subgroups: ProductTile::name
  // Microseconds that a step of its inputs takes, as fitted to the times of layers
  double alone;  //   in a workgroup that has a compute unit to itself: the latency of a step
  double busy;   //   for each workgroup of a compute unit that has many of them: the reciprocal of its throughput
};

struct LinearRates {
  std::string_view device_class;
  double launch;                   // microseconds of a dispatch besides its steps
  std::array<TileRate, 16> tiles;  // the rest have no name

  const TileRate* find(std::string_view tile) const;  // nullptr: not measured
};

// What one file of rates/ holds, for each class.
std::span<const LinearRates> all_linear_rates();

// "software" for drivers that run on the CPU, else whose card it is: "nvidia", "amd", "intel" or "other".
std::string_view device_class_of(uint32_t vendor_id, bool software);

// Those of the class; of a class that nobody measured, and of all that know nothing of a tile, NVIDIA's, for on other
// devices the order of tiles is still the best guess.
const LinearRates& linear_rates(std::string_view device_class);
const TileRate* find_rate(std::string_view device_class, std::string_view tile);

// Microseconds that `workgroups` of `steps` steps each take on `units` compute units. A workgroup alone is bound by the
// latency of its steps, a full device by products and copies.
double tile_microseconds(double launch, const TileRate& rate, uint64_t workgroups, uint32_t units, uint32_t steps);

// A file of rates/; `command` wrote it, and `device` is what was measured.
std::string to_text(const LinearRates& rates, std::string_view command, std::string_view device);

}  // namespace turboesm::vulkan
