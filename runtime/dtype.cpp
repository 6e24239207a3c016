#include "runtime/dtype.h"

#include <bit>
#include <cstring>

#include "runtime/error.h"

namespace turboesm {

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::f16: return "f16";
    case DType::bf16: return "bf16";
    case DType::i32: return "i32";
  }
  return "?";
}

std::optional<DType> parse_dtype(std::string_view name) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i32})
    if (name == name_of(dtype)) return dtype;
  return std::nullopt;
}

namespace {

// `yes` where `condition`, else `no`, without a branch: compilers turn loops over the conversions into vector code
// then, which they do not where a floating-point sum is in one branch only.
uint32_t pick(bool condition, uint32_t yes, uint32_t no) { return no ^ ((yes ^ no) & (0u - uint32_t(condition))); }

}  // namespace

uint16_t f16_from_f32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t rounded = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // Below 2^-14 the result is subnormal: adding 0.5 lines the float's last bit up with 2^-24 and rounds to even.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = pick(magnitude < 0x38800000u, subnormal, rounded);
  const uint32_t special = pick(magnitude > 0x7f800000u, 0x7e00u, 0x7c00u);  // NaN, infinity
  return uint16_t(sign | pick(magnitude >= 0x477ff000u, special, finite));   // 65520 and more round to infinity
}

float f32_from_f16(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t subnormal = std::bit_cast<uint32_t>(float(int32_t(magnitude)) * 0x1p-24f);
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  const uint32_t special = 0x7f800000u | (magnitude << 13);  // infinity, NaN
  const uint32_t finite = pick(magnitude < 0x400u, subnormal, normal);
  return std::bit_cast<float>(sign | pick(magnitude >= 0x7c00u, special, finite));
}

uint16_t bf16_from_f32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u), quiet = bits | 0x400000u;
  return uint16_t(pick((bits & 0x7fffffffu) > 0x7f800000u, quiet, rounded) >> 16);
}

float f32_from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

namespace {

template <class From, class To, class F>
void convert_each(const void* source, void* destination, size_t count, F f) {
  const auto* in = static_cast<const std::byte*>(source);
  auto* out = static_cast<std::byte*>(destination);
  for (size_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, in + i * sizeof(From), sizeof(From));
    const To result = f(value);
    std::memcpy(out + i * sizeof(To), &result, sizeof(To));
  }
}

}  // namespace

void convert(DType from, const void* source, DType to, void* destination, size_t count) {
  if (count == 0) return;  // null pointers are fine then
  if (from == to) {
    std::memcpy(destination, source, count * size_of(from));
    return;
  }
  const auto is = [&](DType a, DType b) { return from == a && to == b; };
  if (is(DType::f32, DType::f16)) return convert_each<float, uint16_t>(source, destination, count, f16_from_f32);
  if (is(DType::f32, DType::bf16)) return convert_each<float, uint16_t>(source, destination, count, bf16_from_f32);
  if (is(DType::f16, DType::f32)) return convert_each<uint16_t, float>(source, destination, count, f32_from_f16);
  if (is(DType::bf16, DType::f32)) return convert_each<uint16_t, float>(source, destination, count, f32_from_bf16);
  if (is(DType::f16, DType::bf16))
    return convert_each<uint16_t, uint16_t>(source, destination, count,
                                            [](uint16_t b) { return bf16_from_f32(f32_from_f16(b)); });
  if (is(DType::bf16, DType::f16))
    return convert_each<uint16_t, uint16_t>(source, destination, count,
                                            [](uint16_t b) { return f16_from_f32(f32_from_bf16(b)); });
  throw_error(ErrorKind::usage, "[convert] no conversion from {} to {}", name_of(from), name_of(to));
}

}  // namespace turboesm
