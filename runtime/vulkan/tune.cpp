#include "runtime/vulkan/tune.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <fmt/format.h>

#include "runtime/error.h"
#include "runtime/vulkan/fit_rates.h"
#include "runtime/vulkan/linear_rates.h"

namespace turboesm::vulkan {
namespace {

// The layers of 8M, 650M and 3B, of batches, of long sequences and of short ones. Many rows come first: they bring a
// device to its clock.
constexpr uint32_t kHidden[] = {320, 1280, 2560};
constexpr uint32_t kRows[] = {16384, 4096, 1024, 512, 145, 34};
constexpr struct {
  uint32_t inputs, outputs;  // times hidden
} kLayers[] = {{1, 3}, {1, 1}, {1, 4}, {4, 1}};

// What keeps the measurement short.
struct Limits {
  double flops;  // of a layer, and of a recording that has more than one
  uint32_t copies, repeats;
};
constexpr Limits kGpuLimits{2.2e11, 64, 7}, kSoftwareLimits{1.2e8, 2, 3};
constexpr double kMostSeconds = 0.25;           // of a recording's repeats
constexpr uint64_t kCacheBytes = 128ull << 20;  // no cache holds the weights of a recording that has as many

// Without tensors.
std::vector<Linear> layers_within(double flops) {
  std::vector<Linear> all;
  for (const uint32_t rows : kRows)
    for (const uint32_t hidden : kHidden)
      for (const auto& [inputs, outputs] : kLayers) {
        Linear op{};
        op.rows = rows, op.inputs = inputs * hidden, op.outputs = outputs * hidden;
        op.gelu = outputs == 4;
        if (op.flops() <= flops) all.push_back(op);
      }
  return all;
}

class Measurement {
 public:
  Measurement(Device& device, const Traits& traits, const RecordBy& record)
      : device_(device), traits_(traits), record_(record), limits_(traits.software ? kSoftwareLimits : kGpuLimits) {}

  // The times of all tiles for this dtype, behind those that are there.
  void add(DType dtype) {
    const size_t first = names_.size();
    for (const Linear& layer : layers_within(limits_.flops)) time_layer(layer, dtype, first);
    if (first < names_.size()) dtypes_.push_back({dtype, first, names_.size()});
  }

  std::string fitted(std::string_view device_class, std::string_view command, std::string_view device) const {
    const RatesFit fit = fit_rates(times_);
    LinearRates rates{device_class, fit.launch, {}};
    for (size_t i = 0; i < names_.size(); ++i) rates.tiles[i] = {names_[i], fit.rates[i].alone, fit.rates[i].busy};
    std::string about = fmt::format("{}: within {:.1f} % (root mean square) of {} times", device, 100 * fit.error,
                                    times_.size() * times_[0].size());
    for (const auto& [dtype, first, end] : dtypes_)
      about += fmt::format(", choices of {} {:.1f} % from the fastest", name_of(dtype),
                           100 * choice_loss(std::span(times_).subspan(first, end - first),
                                             std::span(fit.rates).subspan(first, end - first)));
    return to_text(rates, command, about);
  }

 private:
  // Its tiles are those from names_[first] on.
  void time_layer(const Linear& layer, DType dtype, size_t first) {
    const std::vector<Linear> ops = with_tensors(layer, dtype);
    std::vector<std::vector<ProductTile>> tiles;  // of each operation
    for (const Linear& op : ops) tiles.push_back(product_tiles(op, traits_));
    const std::vector<Operation> operations(ops.begin(), ops.end());
    double fastest = 0;
    for (size_t i = 0; i < tiles[0].size(); ++i) {
      std::vector<Dispatch> by;
      for (const auto& of_operation : tiles) by.push_back(of_operation[i].dispatch);
      const double microseconds = 1e6 * median_seconds(*record_(operations, by)) / double(ops.size());
      const ProductTile& tile = tiles[0][i];
      if (first + i == names_.size()) names_.push_back(tile.name), times_.emplace_back();
      if (names_[first + i] != tile.name || names_.size() > LinearRates{}.tiles.size())
        throw_error(ErrorKind::device, "the tiles of layers differ, or are too many: {}", tile.name);
      const auto [x, y, z] = tile.dispatch.groups;
      times_[first + i].push_back({uint64_t(x) * y * z, tile.units, tile.steps, microseconds});
      if (i == 0 || microseconds < fastest) fastest = microseconds;
    }
    // Where a tile is far from the fastest, nobody asks how far.
    for (size_t i = first; i < times_.size(); ++i) times_[i].back().weight = fastest / times_[i].back().microseconds;
    buffers_.clear();
  }

  // The layer as often as its weights fit the limits. All write the same y, so that each waits for the one before.
  std::vector<Linear> with_tensors(Linear op, DType dtype) {
    const uint64_t weights = uint64_t(op.inputs) * op.outputs, results = uint64_t(op.rows) * op.outputs;
    const double beyond_cache = std::ceil(double(kCacheBytes) / double(weights * size_of(dtype)));
    const double most = std::min(limits_.flops / op.flops(), double(limits_.copies));
    const uint64_t copies = uint64_t(std::max(1.0, std::min(beyond_cache, most)));
    const bool adds = op.outputs <= op.inputs;  // to what residual layers add up
    op.x = make(dtype, uint64_t(op.rows) * op.inputs, 1.0f), op.weight = make(dtype, copies * weights, 0.02f);
    op.bias = make(DType::f32, op.outputs, 1.0f), op.y = make(adds ? DType::f32 : dtype, results, 1.0f);
    if (adds) op.residual = op.y;
    std::vector<Linear> ops(copies, op);
    for (uint64_t i = 0; i < copies; ++i)
      ops[i].weight = {op.weight.buffer, i * weights * size_of(dtype), weights, dtype};
    return ops;
  }

  Tensor make(DType dtype, uint64_t count, float stddev) {
    buffers_.push_back(device_.allocate(count * size_of(dtype), MemoryLabel::activations));
    const Tensor tensor{buffers_.back().get(), 0, count, dtype};
    const Operation fill = RandomNormal{tensor, 1, stddev};
    device_.run({&fill, 1});
    return tensor;
  }

  double median_seconds(Recording& recording) {
    std::vector<double> seconds;
    double sum = 0;
    for (uint32_t i = 0; i <= limits_.repeats && (i < 2 || sum < kMostSeconds); ++i) {
      device_.wait(device_.submit(recording));
      if (i > 0) seconds.push_back(recording.device_seconds());  // the first may still page in
      sum += recording.device_seconds();
    }
    const auto middle = seconds.begin() + std::ptrdiff_t(seconds.size() / 2);
    std::ranges::nth_element(seconds, middle);
    if (*middle <= 0) throw_error(ErrorKind::device, "{} does not measure time", device_.info().spec);
    return *middle;
  }

  Device& device_;
  const Traits& traits_;
  const RecordBy& record_;
  Limits limits_;
  struct Tiles {
    DType dtype;
    size_t first, end;
  };
  std::vector<Tiles> dtypes_;                 // the tiles [first, end) of each
  std::vector<std::string> names_;            // of the tiles
  std::vector<std::vector<TileTime>> times_;  // of each of them, by all layers
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace

std::string measure_linear_rates(Device& device, const Traits& traits, const RecordBy& record) {
  Measurement measurement(device, traits, record);
  if (traits.matrix_f16 || traits.matrix_bf16) measurement.add(traits.matrix_f16 ? DType::f16 : DType::bf16);
  measurement.add(DType::f32);
  const DeviceInfo& info = device.info();
  return measurement.fitted(traits.device_class, fmt::format("turboesm bench linear --tune --device {}", info.spec),
                            fmt::format("{}, {}", info.name, info.driver));
}

}  // namespace turboesm::vulkan
