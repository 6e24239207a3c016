#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "tests/conformance/harness.h"

namespace turboesm::conformance {
namespace {

// Odd ones only where the operation takes them.
constexpr uint64_t kCounts[] = {1,  2,  3,  4,  6,   7,    8,    14,   15,   16,   17,
                                62, 63, 64, 66, 130, 1022, 1024, 1026, 4095, 4098, 70002};

void add_fill(Harness& harness, DType dtype, uint64_t count, float value) {
  harness.add(fmt::format("{} elements of {}", count, value),
              [&](Case& c) -> Operation { return Fill{.out = c.output(dtype, count, kExact), .value = value}; });
}

void add_copy(Harness& harness, DType dtype, uint64_t count) {
  harness.add(fmt::format("{} elements", count), [&](Case& c) -> Operation {
    const Tensor source = c.random_bits(dtype, count);
    return Copy{.source = source, .destination = c.output(dtype, count, kExact)};
  });
}

void add_random_normal(Harness& harness, DType dtype, uint64_t count, uint32_t seed, float stddev) {
  harness.add(fmt::format("{} elements, seed {}, stddev {}", count, seed, stddev), [&](Case& c) -> Operation {
    // Vulkan's sin, cos and log are right to some 2^-21 only; the radius sqrt(-2 log u), near u = 1, to the root of
    // that. A wrong hash gives another number altogether.
    Tolerance tolerance = rounded(dtype, count, 1e-5, stddev);
    tolerance.stragglers = std::max(tolerance.stragglers, 1e-3 / tolerance.relative);
    return RandomNormal{.out = c.output(dtype, count, tolerance), .seed = seed, .stddev = stddev};
  });
}

}  // namespace

TEST_CASE("fill agrees with the oracle", "[conformance]") {
  conform(30, Units::any, [](Harness& harness) {
    for (const DType dtype : kFloatTypes)
      for (const uint64_t count : kCounts) {
        if (dtype != DType::f32 && count % 2 != 0) continue;
        add_fill(harness, dtype, count, harness.rng().pick({0.0f, -0.0f, 1.0f, -2.5f, 65504.0f}));
        add_fill(harness, dtype, count, harness.rng().uniform(-3, 3));
      }
    add_fill(harness, DType::f32, 3'000'000, 0.5f);
  });
}

TEST_CASE("copy agrees with the oracle", "[conformance]") {
  conform(31, Units::any, [](Harness& harness) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i32})
      for (const uint64_t count : kCounts)
        if (count * size_of(dtype) % 4 == 0)
          for (int repeat = 0; repeat < 2; ++repeat) add_copy(harness, dtype, count);
    add_copy(harness, DType::f32, 3'000'001);
  });
}

TEST_CASE("random_normal agrees with the oracle", "[conformance]") {
  conform(32, Units::any, [](Harness& harness) {
    for (const DType dtype : kFloatTypes)
      for (const uint64_t count : kCounts)
        if (count % 2 == 0)
          add_random_normal(harness, dtype, count, harness.rng().next(), harness.rng().pick({1.0f, 0.02f, 3.0f}));
    for (const uint32_t seed : {0u, 1u, 0xffffffffu}) add_random_normal(harness, DType::f32, 100'000, seed, 1);
  });
}

TEST_CASE("random_normal has the moments of a normal distribution", "[conformance]") {
  constexpr uint64_t kCount = 1 << 20;
  const auto device = open_device_under_test();
  const auto buffer = device->allocate(4 * kCount, MemoryLabel::activations);
  const Tensor out{buffer.get(), 0, kCount, DType::f32};
  const Operation operation = RandomNormal{.out = out, .seed = 7, .stddev = 1};
  device->run({&operation, 1});
  std::vector<float> values(kCount);
  device->download<float>(out, values);

  double moments[5] = {}, neighbours = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    for (int power = 1; power <= 4; ++power) moments[power] += std::pow(double(values[i]), power) / double(kCount);
    neighbours += double(values[i]) * values[i ^ 1] / double(kCount);
  }
  // Five standard deviations of each estimate: the n-th moment's variance is (E x^2n - (E x^n)^2) / count.
  const double deviation = 5 / std::sqrt(double(kCount));
  CHECK(std::abs(moments[1]) < deviation);
  CHECK(std::abs(moments[2] - 1) < deviation * std::sqrt(2.0));
  CHECK(std::abs(moments[3]) < deviation * std::sqrt(15.0));
  CHECK(std::abs(moments[4] - 3) < deviation * std::sqrt(96.0));
  CHECK(std::abs(neighbours) < deviation * std::sqrt(2.0));  // the two of a pair, each product counted twice
}

}  // namespace turboesm::conformance
