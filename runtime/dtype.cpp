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

uint16_t f16_from_f32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to 65536 or more: infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal: adding 0.5 lines the float's last bit up with 2^-24 and rounds to even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return uint16_t(sign | ((rounded - 0x38000000u) >> 13));
}

float f32_from_f16(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude < 0x400u) {
    const float value = float(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

uint16_t bf16_from_f32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
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
  const auto widen = [from](uint16_t bits) { return from == DType::f16 ? f32_from_f16(bits) : f32_from_bf16(bits); };
  if (from == DType::f32 && to == DType::f16)
    return convert_each<float, uint16_t>(source, destination, count, f16_from_f32);
  if (from == DType::f32 && to == DType::bf16)
    return convert_each<float, uint16_t>(source, destination, count, bf16_from_f32);
  if (to == DType::f32 && from != DType::i32) return convert_each<uint16_t, float>(source, destination, count, widen);
  if (from == DType::f16 && to == DType::bf16)
    return convert_each<uint16_t, uint16_t>(source, destination, count,
                                            [](uint16_t b) { return bf16_from_f32(f32_from_f16(b)); });
  if (from == DType::bf16 && to == DType::f16)
    return convert_each<uint16_t, uint16_t>(source, destination, count,
                                            [](uint16_t b) { return f16_from_f32(f32_from_bf16(b)); });
  throw_error(ErrorKind::usage, "[convert] no conversion from {} to {}", name_of(from), name_of(to));
}

}  // namespace turboesm
