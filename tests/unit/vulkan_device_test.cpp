// The Vulkan back end's own promises, on the first device of the machine (ctest: Mesa's software driver).
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "runtime/registry.h"
#include "tests/options.h"
#include "tests/unit/files.h"

namespace turboesm {
namespace {

constexpr uint64_t kMiB = uint64_t(1) << 20;

std::unique_ptr<Device> open_vulkan(const std::filesystem::path& cache_dir = {}) {
  DeviceOptions options;
  options.validation = test_options().validation;
  options.cache_dir = cache_dir;
  return open_device("vulkan:0", options).device;
}

}  // namespace

TEST_CASE("vulkan:0 is listed with what it can do", "[unit]") {
  std::string problem;
  const std::vector<DeviceListing> listings = find_backend("vulkan")->list(problem);
  CHECK(problem == "");
  REQUIRE_FALSE(listings.empty());
  const DeviceInfo& info = listings[0].info;
  CHECK(listings[0].problem == "");
  CHECK(info.spec == "vulkan:0");
  CHECK(info.name != "");
  CHECK(info.driver != "");
  CHECK(info.memory_bytes > 0);
  CHECK(info.subgroup_size >= 4);
  CHECK_FALSE(info.features.empty());
}

TEST_CASE("a Vulkan device that does not exist is an error that says how many do", "[unit]") {
  test::check_error(ErrorKind::device, {"vulkan:99 does not exist", "device"}, [] { open_device("vulkan:99", {}); });
}

TEST_CASE("opening a device allocates nothing", "[unit]") { CHECK(open_vulkan()->memory().total.count == 0); }

TEST_CASE("staging memory is bounded, however large the copy", "[unit]") {
  const auto device = open_vulkan();
  const uint64_t size = 50 * kMiB + 3;
  const auto buffer = device->allocate(size, MemoryLabel::weights);
  CHECK(device->memory()[MemoryLabel::weights].bytes >= size);
  uint64_t expected = 0;
  device->upload(*buffer, 0, size, [&](std::span<std::byte> chunk, uint64_t offset) {
    CHECK(offset == expected);
    expected += chunk.size();
    for (size_t i = 0; i < chunk.size(); ++i) chunk[i] = std::byte((offset + i) * 2654435761u >> 24);
  });
  CHECK(expected == size);
  std::vector<std::byte> back(size);
  device->download(*buffer, 0, back);
  uint64_t wrong = 0;
  for (size_t i = 0; i < size; ++i) wrong += back[i] != std::byte(i * 2654435761u >> 24);
  CHECK(wrong == 0);
  CHECK(device->memory()[MemoryLabel::staging].bytes <= 32 * kMiB);
}

TEST_CASE("a callback that throws in the middle of an upload leaves a device that works", "[unit]") {
  const auto device = open_vulkan();
  {
    const auto buffer = device->allocate(40 * kMiB, MemoryLabel::weights);
    const auto fail_at_second = [](std::span<std::byte>, uint64_t offset) {
      if (offset > 0) throw Error(ErrorKind::input, "the file ends here");
    };
    test::check_error(ErrorKind::input, {"the file ends here"},
                      [&] { device->upload(*buffer, 0, buffer->size(), fail_at_second); });
  }
  const auto buffer = device->allocate(16, MemoryLabel::weights);
  const std::array<uint32_t, 4> values{1, 2, 3, 4};
  std::array<uint32_t, 4> back{};
  device->upload(*buffer, 0, std::as_bytes(std::span(values)));
  device->download(*buffer, 0, std::as_writable_bytes(std::span(back)));
  CHECK(back == values);
}

TEST_CASE("a copy outside a buffer, or of another device's buffer, is refused", "[unit]") {
  const auto device = open_vulkan(), other = open_vulkan();
  const auto buffer = device->allocate(64, MemoryLabel::kv);
  const auto foreign = other->allocate(64, MemoryLabel::kv);
  std::array<std::byte, 65> bytes{};
  const auto refused = [&](Buffer& target, uint64_t offset, size_t size, std::string_view words) {
    test::check_error(ErrorKind::usage, {words}, [&] { device->upload(target, offset, std::span(bytes).first(size)); });
    test::check_error(ErrorKind::usage, {words},
                      [&] { device->download(target, offset, std::span(bytes).first(size)); });
  };
  refused(*buffer, 0, 65, "65 bytes at 0");
  refused(*buffer, 1, 64, "64 bytes at 1");
  refused(*buffer, ~uint64_t(0), 2, "outside a buffer of 64");
  refused(*foreign, 0, 64, "not of vulkan:0");
  const std::array<Operation, 1> fill{Fill{{foreign.get(), 0, 16, DType::f32}, 1.0f}};
  test::check_error(ErrorKind::usage, {"not of vulkan:0"}, [&] { device->record(fill); });
}

TEST_CASE("a buffer larger than the device allows is out of memory, with the sizes", "[unit]") {
  const auto device = open_vulkan();
  test::check_error(ErrorKind::out_of_memory, {"vulkan:0", "1125899906842624 bytes for activations"},
                    [&] { device->allocate(uint64_t(1) << 50, MemoryLabel::activations); });
  CHECK(device->memory().total.count == 0);
}

TEST_CASE("a recording counts its operations' seconds only when asked", "[unit]") {
  const auto device = open_vulkan();
  const auto buffer = device->allocate(kMiB, MemoryLabel::activations);
  const Tensor tensor{buffer.get(), 0, kMiB / 4, DType::f32};
  const std::array<Operation, 3> fills{Fill{tensor, 1.0f}, Fill{tensor, 2.0f}, Fill{tensor, 3.0f}};
  const auto plain = device->record(fills), profiled = device->record(fills, {.profile = true});
  CHECK(profiled->operation_seconds().empty());  // never submitted
  device->submit(*plain);
  device->wait(device->submit(*profiled));
  CHECK(plain->operation_seconds().empty());
  CHECK(plain->device_seconds() > 0);
  REQUIRE(profiled->operation_seconds().size() == 3);
  double sum = 0;
  for (const double seconds : profiled->operation_seconds()) sum += seconds;
  CHECK(sum > 0);
  CHECK(sum <= profiled->device_seconds() * 1.0001);
}

TEST_CASE("compiled pipelines are kept on disk and survive a damaged file", "[unit]") {
  const test::TemporaryFolder folder;
  const auto fill_once = [&] {
    const auto device = open_vulkan(folder.path());
    const auto buffer = device->allocate(1024, MemoryLabel::activations);
    const std::array<Operation, 1> fill{Fill{{buffer.get(), 0, 256, DType::f32}, 5.0f}};
    device->run(fill);
    std::vector<float> values(256);
    device->download(Tensor{buffer.get(), 0, 256, DType::f32}, std::span(values));
    CHECK(values == std::vector<float>(256, 5.0f));
  };
  fill_once();
  const std::vector<std::string> files = folder.list();
  REQUIRE(files.size() == 1);
  CHECK(files[0].starts_with("vulkan-"));
  folder.write(files[0], "damaged");
  fill_once();
  CHECK(test::read_file(folder / files[0]) != "damaged");
}

}  // namespace turboesm
