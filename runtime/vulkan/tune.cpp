#include "runtime/vulkan/tune.h"

#include <algorithm>
#include <array>
#include <deque>
#include <limits>
#include <vector>

#include <fmt/format.h>

#include "runtime/vulkan/linear_rates.h"

namespace turboesm::vulkan {
namespace {

// Sizes of the products that are timed. A rate is the difference of two numbers of inputs, so that what a dispatch
// takes besides its steps drops out.
struct Sizes {
  uint32_t units, few_inputs, many_inputs;
  uint32_t rounds;  // workgroups of a compute unit when the device is full
  uint32_t repeats;
};
Sizes sizes_on(const Traits& traits) {
  constexpr uint32_t kTypicalUnits = 64;
  const uint32_t units = traits.compute_units ? traits.compute_units : kTypicalUnits;
  if (traits.software) return {units, 128, 640, 1, 5};
  return {units, 1024, 4096, 16, 9};
}

class Measurement {
 public:
  Measurement(Device& device, const Traits& traits, const RecordBy& record)
      : device_(device), traits_(traits), record_(record), sizes_(sizes_on(traits)) {}

  // Of all tiles for this dtype, behind those that `rates` has.
  void add(DType dtype, LinearRates& rates) {
    Linear any{};
    any.rows = any.outputs = 1, any.inputs = sizes_.few_inputs;
    any.x.dtype = any.weight.dtype = dtype;
    any.y.dtype = DType::f32;
    for (const ProductTile& tile : product_tiles(any, traits_)) {
      const auto slot = std::ranges::find(rates.tiles, std::string_view(), &TileRate::tile);
      if (slot == rates.tiles.end()) break;
      const uint32_t steps = (sizes_.many_inputs - sizes_.few_inputs) / tile.bk;
      const uint32_t half = std::max(sizes_.units / 2, 1u);
      const double few_alone = microseconds(tile, dtype, 1, half, sizes_.few_inputs);
      const double alone = (microseconds(tile, dtype, 1, half, sizes_.many_inputs) - few_alone) / steps;
      const double few_busy = microseconds(tile, dtype, sizes_.rounds, sizes_.units, sizes_.few_inputs);
      const double busy = (microseconds(tile, dtype, sizes_.rounds, sizes_.units, sizes_.many_inputs) - few_busy) /
                          steps / sizes_.rounds;
      names_.push_back(tile.name);
      *slot = {names_.back(), std::max(alone, 0.0), std::max(busy, 0.0)};
      launch_ = std::min(launch_, few_alone - alone * (sizes_.few_inputs / tile.bk));
    }
    rates.launch = std::max(launch_, 0.0);
  }

 private:
  // Of a product of rows x columns whole tiles; the median.
  double microseconds(const ProductTile& tile, DType dtype, uint32_t rows, uint32_t columns, uint32_t inputs) {
    Linear op{};
    op.rows = rows * tile.bm, op.inputs = inputs, op.outputs = columns * tile.bn;
    op.x = make(dtype, uint64_t(op.rows) * inputs), op.weight = make(dtype, uint64_t(op.outputs) * inputs);
    op.y = make(DType::f32, uint64_t(op.rows) * op.outputs);
    device_.run(std::array<Operation, 2>{RandomNormal{op.x, 1, 1.0f}, RandomNormal{op.weight, 2, 0.02f}});
    std::vector<double> seconds;
    for (const ProductTile& same : product_tiles(op, traits_)) {
      if (same.name != tile.name) continue;
      const auto recording = record_(op, same.dispatch);
      for (uint32_t i = 0; i < sizes_.repeats + 1; ++i) {
        device_.wait(device_.submit(*recording));
        if (i > 0) seconds.push_back(recording->device_seconds());  // the first may still page in
      }
    }
    buffers_.clear();
    std::ranges::nth_element(seconds, seconds.begin() + std::ptrdiff_t(seconds.size() / 2));
    return 1e6 * seconds[seconds.size() / 2];
  }

  Tensor make(DType dtype, uint64_t count) {
    buffers_.push_back(device_.allocate(count * size_of(dtype), MemoryLabel::activations));
    return {buffers_.back().get(), 0, count, dtype};
  }

  Device& device_;
  const Traits& traits_;
  const RecordBy& record_;
  Sizes sizes_;
  double launch_ = std::numeric_limits<double>::infinity();
  std::deque<std::string> names_;  // whose addresses stay
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace

std::string measure_linear_rates(Device& device, const Traits& traits, const RecordBy& record) {
  Measurement measurement(device, traits, record);
  LinearRates rates{traits.device_class, 0, {}};
  if (traits.matrix_f16 || traits.matrix_bf16) measurement.add(traits.matrix_f16 ? DType::f16 : DType::bf16, rates);
  measurement.add(DType::f32, rates);
  const DeviceInfo& info = device.info();
  return to_text(rates, fmt::format("turboesm bench linear --tune --device {}", info.spec),
                 fmt::format("{}, {}", info.name, info.driver));
}

}  // namespace turboesm::vulkan
