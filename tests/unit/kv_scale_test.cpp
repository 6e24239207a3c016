#include "shaders/include/kv_scale.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "runtime/dtype.h"

namespace turboesm {
namespace {

// All codes of a format in ascending order.
std::vector<uint32_t> codes_of(uint32_t scale_bits) {
  std::vector<uint32_t> codes{0};
  for (uint32_t code = kv_scale_lowest(scale_bits); code <= kv_scale_highest(scale_bits); ++code) codes.push_back(code);
  return codes;
}

// The code whose value is nearest in double precision.
uint32_t nearest(uint32_t scale_bits, const std::vector<uint32_t>& codes, double value) {
  uint32_t best = 0;
  for (const uint32_t code : codes)
    if (std::abs(double(kv_scale_value(scale_bits, code)) - value) <
        std::abs(double(kv_scale_value(scale_bits, best)) - value))
      best = code;
  return best;
}

}  // namespace

TEST_CASE("16-bit scales are halves without subnormal numbers", "[unit]") {
  for (uint32_t code = 0; code < 0x400; ++code) CHECK(kv_scale_value(16, code) == 0);
  bool same = true;
  for (uint32_t code = 0x400; code <= 0x7bff; ++code)
    same = same && kv_scale_value(16, code) == f32_from_f16(uint16_t(code));
  CHECK(same);
  CHECK(kv_scale_value(16, 0x7bff) == 65504);
}

TEST_CASE("8-bit scales are 3 bits of exponent and 5 of mantissa", "[unit]") {
  CHECK(kv_scale_value(8, 0) == 0);
  for (uint32_t code = 1; code < 256; ++code)
    CHECK(kv_scale_value(8, code) == std::ldexp(1 + float(code % 32) / 32, int(code / 32) - 4));
  CHECK(kv_scale_value(8, 255) == 15.75f);
}

TEST_CASE("scales ascend, and each is found from its value", "[unit]") {
  for (const uint32_t scale_bits : {8u, 16u}) {
    const std::vector<uint32_t> codes = codes_of(scale_bits);
    bool ascend = true, next = true, found = true, below = true, above = true, nearest_found = true;
    for (size_t i = 0; i < codes.size(); ++i) {
      const float value = kv_scale_value(scale_bits, codes[i]);
      found = found && kv_scale_below(scale_bits, value) == codes[i];
      nearest_found = nearest_found && kv_scale_nearest(scale_bits, value, value, 1, false) == codes[i];
      above = above && kv_scale_below(scale_bits, std::nextafter(value, 1e9f)) == codes[i];
      if (i == 0) continue;
      ascend = ascend && kv_scale_value(scale_bits, codes[i - 1]) < value;
      next = next && kv_scale_next(scale_bits, codes[i - 1]) == codes[i];
      below = below && kv_scale_below(scale_bits, std::nextafter(value, 0.0f)) == codes[i - 1];
    }
    CHECK(ascend);
    CHECK(next);
    CHECK(found);
    CHECK(below);
    CHECK(above);
    CHECK(nearest_found);
    CHECK(kv_scale_below(scale_bits, 1e30f) == kv_scale_highest(scale_bits));
    CHECK(kv_scale_below(scale_bits, std::numeric_limits<float>::infinity()) == kv_scale_highest(scale_bits));
    CHECK(kv_scale_below(scale_bits, 1e-30f) == 0);
  }
}

TEST_CASE("the nearest scale does not depend on how good the guess is", "[unit]") {
  std::mt19937 random(1);
  const auto uniform = [&](double begin, double end) { return begin + (end - begin) * double(random()) * 0x1p-32; };
  for (const uint32_t scale_bits : {8u, 16u}) {
    const std::vector<uint32_t> codes = codes_of(scale_bits);
    int differ = 0, wrong = 0;
    for (int i = 0; i < 2000; ++i) {
      const bool root = i % 2 == 1;
      const float a = float(std::exp2(uniform(-30, 30))), b = float(uniform(0.05, 300));
      const double exact = root ? std::sqrt(double(a) / double(b)) : double(a) / double(b);
      const uint32_t code = kv_scale_nearest(scale_bits, float(exact), a, b, root);
      for (const double error : {-0x1p-12, -0x1p-13, 0x1p-13, 0x1p-12})
        differ += kv_scale_nearest(scale_bits, float(exact * (1 + error)), a, b, root) != code;
      // Just at the middle of two codes the last bit of the f32 comparison may decide otherwise.
      const uint32_t want = nearest(scale_bits, codes, exact);
      const double got_off = std::abs(double(kv_scale_value(scale_bits, code)) - exact);
      const double want_off = std::abs(double(kv_scale_value(scale_bits, want)) - exact);
      wrong += code != want && got_off > want_off * (1 + 1e-3);
    }
    CHECK(differ == 0);
    CHECK(wrong == 0);
  }
}

TEST_CASE("no scale for nothing, the largest for too much", "[unit]") {
  for (const uint32_t scale_bits : {8u, 16u}) {
    CHECK(kv_scale_nearest(scale_bits, 0, 0, 16, true) == 0);
    CHECK(kv_scale_nearest(scale_bits, 0, 0, 16, false) == 0);
    CHECK(kv_scale_nearest(scale_bits, 1e6f, 1e6f, 1, false) == kv_scale_highest(scale_bits));
    CHECK(kv_scale_nearest(scale_bits, 1e6f, 1e12f, 1, true) == kv_scale_highest(scale_bits));
    CHECK(kv_scale_nearest(scale_bits, 1e-9f, 1e-9f, 1, false) == 0);
    // Half of the smallest scale rounds up.
    const float lowest = kv_scale_value(scale_bits, kv_scale_lowest(scale_bits));
    CHECK(kv_scale_nearest(scale_bits, 0.5f * lowest, 0.5f * lowest, 1, false) == kv_scale_lowest(scale_bits));
    CHECK(kv_scale_nearest(scale_bits, 0.49f * lowest, 0.49f * lowest, 1, false) == 0);
  }
}

}  // namespace turboesm
