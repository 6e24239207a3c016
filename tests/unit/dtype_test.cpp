#include "runtime/dtype.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "runtime/error.h"

namespace turboesm {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool is_f16_nan(uint32_t bits) { return (bits & 0x7fffu) > 0x7c00u; }
bool is_bf16_nan(uint32_t bits) { return (bits & 0x7fffu) > 0x7f80u; }

// The value of a binary16, from the definition of the format.
double f16_value(uint32_t bits) {
  const int exponent = int(bits >> 10 & 31u);
  const int fraction = int(bits & 1023u);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000u ? -magnitude : magnitude;
}

TEST_CASE("every f16 has its value and comes back from f32", "[unit][dtype]") {
  size_t wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = f32_from_f16(uint16_t(bits));
    const uint16_t back = f16_from_f32(value);
    if (is_f16_nan(bits)) {
      wrong += !std::isnan(value) || !is_f16_nan(back) || ((back ^ bits) & 0x8000u);
    } else if ((bits & 0x7fffu) == 0x7c00u) {
      wrong += value != (bits & 0x8000u ? -kInfinity : kInfinity) || back != bits;
    } else {
      wrong += double(value) != f16_value(bits) || back != bits;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("every bf16 is the upper half of an f32 and comes back", "[unit][dtype]") {
  size_t wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = f32_from_bf16(uint16_t(bits));
    const uint16_t back = bf16_from_f32(value);
    wrong += std::bit_cast<uint32_t>(value) != bits << 16;
    wrong += is_bf16_nan(bits) ? !is_bf16_nan(back) || ((back ^ bits) & 0x8000u) : back != bits;
  }
  CHECK(wrong == 0);
}

// Between each two neighbours of a 16-bit format: the middle goes to the even one, and what is nearer goes there.
template <class Widen, class Narrow>
size_t count_wrong_roundings(uint32_t infinity, Widen widen, Narrow narrow) {
  size_t wrong = 0;
  for (uint32_t low = 0; low + 1 < infinity; ++low) {
    const uint32_t high = low + 1;
    const float below = widen(uint16_t(low));
    const float above = widen(uint16_t(high));
    const float middle = below + (above - below) / 2;  // exact: f32 has the bits for it
    const uint32_t even = low % 2 == 0 ? low : high;
    wrong += narrow(middle) != even;
    wrong += narrow(std::nextafter(middle, 0.0f)) != low;
    wrong += narrow(std::nextafter(middle, kInfinity)) != high;
    wrong += narrow(-middle) != (even | 0x8000u);
  }
  return wrong;
}

TEST_CASE("f16 rounds to nearest even, subnormals too", "[unit][dtype]") {
  CHECK(count_wrong_roundings(0x7c00, f32_from_f16, f16_from_f32) == 0);
}

TEST_CASE("bf16 rounds to nearest even, subnormals too", "[unit][dtype]") {
  CHECK(count_wrong_roundings(0x7f80, f32_from_bf16, bf16_from_f32) == 0);
}

TEST_CASE("what is too large becomes infinity", "[unit][dtype]") {
  CHECK(f16_from_f32(65504.0f) == 0x7bff);
  CHECK(f16_from_f32(std::nextafter(65520.0f, 0.0f)) == 0x7bff);
  CHECK(f16_from_f32(65520.0f) == 0x7c00);
  CHECK(f16_from_f32(-1e30f) == 0xfc00);
  CHECK(bf16_from_f32(std::numeric_limits<float>::max()) == 0x7f80);
  CHECK(f16_from_f32(0x1p-25f) == 0);  // half of the least subnormal goes to even
  CHECK(f16_from_f32(-0.0f) == 0x8000);
}

TEST_CASE("a NaN whose payload lies in the dropped bits stays a NaN", "[unit][dtype]") {
  const float nan = std::bit_cast<float>(0x7f800001u);
  CHECK(is_f16_nan(f16_from_f32(nan)));
  CHECK(is_bf16_nan(bf16_from_f32(nan)));
}

TEST_CASE("convert() agrees with the scalar conversions for every pair", "[unit][dtype]") {
  const std::vector<float> values = {0.0f, -1.5f, 3.14159265f, 65504.0f, 1e-7f, -2e20f, kInfinity};
  const size_t count = values.size();
  std::vector<uint16_t> halves(count), brains(count), result(count);
  std::vector<float> wide(count);
  convert(DType::f32, values.data(), DType::f16, halves.data(), count);
  convert(DType::f32, values.data(), DType::bf16, brains.data(), count);
  for (size_t i = 0; i < count; ++i) {
    CHECK(halves[i] == f16_from_f32(values[i]));
    CHECK(brains[i] == bf16_from_f32(values[i]));
  }
  convert(DType::f16, halves.data(), DType::f32, wide.data(), count);
  for (size_t i = 0; i < count; ++i) CHECK(wide[i] == f32_from_f16(halves[i]));
  convert(DType::bf16, brains.data(), DType::f32, wide.data(), count);
  for (size_t i = 0; i < count; ++i) CHECK(wide[i] == f32_from_bf16(brains[i]));
  convert(DType::f16, halves.data(), DType::bf16, result.data(), count);
  for (size_t i = 0; i < count; ++i) CHECK(result[i] == bf16_from_f32(f32_from_f16(halves[i])));
  convert(DType::bf16, brains.data(), DType::f16, result.data(), count);
  for (size_t i = 0; i < count; ++i) CHECK(result[i] == f16_from_f32(f32_from_bf16(brains[i])));
}

TEST_CASE("convert() between equal types copies the bits", "[unit][dtype]") {
  const std::vector<uint32_t> bits = {0x7f800001u, 0xffffffffu, 0u, 0x80000000u};
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i32}) {
    std::vector<uint32_t> copy(bits.size());
    convert(dtype, bits.data(), dtype, copy.data(), bits.size() * 4 / size_of(dtype));
    CHECK(copy == bits);
  }
}

TEST_CASE("convert() needs no alignment", "[unit][dtype]") {
  const float value = 2.5f;
  std::byte source[5], destination[3];
  std::memcpy(source + 1, &value, sizeof(value));
  convert(DType::f32, source + 1, DType::f16, destination + 1, 1);
  uint16_t half;
  std::memcpy(&half, destination + 1, sizeof(half));
  CHECK(half == f16_from_f32(value));
}

TEST_CASE("i32 converts to nothing else", "[unit][dtype]") {
  const int32_t value = 7;
  float result;
  CHECK_THROWS_AS(convert(DType::i32, &value, DType::f32, &result, 1), Error);
  CHECK_THROWS_AS(convert(DType::f32, &result, DType::i32, &result, 1), Error);
}

TEST_CASE("dtype names are read back and others are not", "[unit][dtype]") {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i32}) CHECK(parse_dtype(name_of(dtype)) == dtype);
  CHECK_FALSE(parse_dtype("F32"));
  CHECK_FALSE(parse_dtype(""));
  CHECK(size_of(DType::bf16) == 2);
  CHECK(size_of(DType::i32) == 4);
}

}  // namespace
}  // namespace turboesm
