#include "tests/golden/golden.h"

#include <algorithm>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/registry.h"
#include "tests/options.h"

namespace turboesm::golden {

std::unique_ptr<Device> open_fresh_device(bool matrix_cores) {
  DeviceOptions options;
  options.matrix_cores = matrix_cores;
  options.arbitrary_products = test_options().arbitrary_products;
  options.validation = test_options().validation && test_options().device.starts_with("vulkan");
  return open_device(test_options().device, options).device;
}

std::unique_ptr<Device> open_oracle() { return open_device("cpu", {}).device; }

namespace {

// Closed when the run ends: a Vulkan driver's own statics are gone once main has returned.
std::unique_ptr<Device> devices[2];

class CloseDevices final : public Catch::EventListenerBase {
 public:
  using EventListenerBase::EventListenerBase;
  void testRunEnded(const Catch::TestRunStats&) override {
    for (std::unique_ptr<Device>& device : devices) device.reset();
  }
};
CATCH_REGISTER_LISTENER(CloseDevices)

}  // namespace

Device& device(bool matrix_cores) {
  std::unique_ptr<Device>& device = devices[matrix_cores];
  if (!device) device = open_fresh_device(matrix_cores);
  return *device;
}

std::filesystem::path fixtures() { return test_options().source_dir / "tests" / "fixtures" / "golden"; }

std::filesystem::path model_directory(const std::string& name) {
  if (name == "swissprot_t8_14M") return test_options().source_dir / "model" / "pretrained" / name;
  return fixtures() / name;
}

Values read_floats(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry* entry = file.find(name);
  if (!entry || entry->dtype != FileDType::f32) throw std::runtime_error(name + " is not in the golden file as f32");
  Values values{entry->shape, std::vector<float>(entry->elements())};
  std::memcpy(values.data.data(), entry->data.data(), entry->data.size());
  return values;
}

std::vector<int32_t> read_ids(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry* entry = file.find(name);
  if (!entry || entry->dtype != FileDType::i32) throw std::runtime_error(name + " is not in the golden file as i32");
  std::vector<int32_t> ids(entry->elements());
  std::memcpy(ids.data(), entry->data.data(), entry->data.size());
  return ids;
}

double relative_error(std::span<const float> actual, std::span<const float> expected) {
  if (actual.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double d = double(actual[i]) - double(expected[i]);
    difference += d * d;
    norm += double(expected[i]) * double(expected[i]);
  }
  const double error = std::sqrt(difference / norm);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

int wrong_argmax(std::span<const float> actual, std::span<const float> expected, uint32_t width) {
  int wrong = 0;
  for (size_t row = 0; row + width <= expected.size(); row += width) {
    const float* a = actual.data() + row;
    const float* e = expected.data() + row;
    double deviation = 0;
    for (uint32_t i = 0; i < width; ++i) deviation = std::max(deviation, std::abs(double(a[i]) - double(e[i])));
    const auto best = std::max_element(e, e + width) - e;
    float second = -std::numeric_limits<float>::infinity();
    for (uint32_t i = 0; i < width; ++i)
      if (i != uint32_t(best)) second = std::max(second, e[i]);
    if (double(e[best]) - double(second) > 2 * deviation && std::max_element(a, a + width) - a != best) ++wrong;
  }
  return wrong;
}

Batch batch_of(const std::vector<std::vector<int32_t>>& sequences) {
  Batch batch;
  for (const auto& sequence : sequences) batch.add(sequence);
  return batch;
}

}  // namespace turboesm::golden
