#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace turboesm {

// The numeric values are shared with the shaders (shaders/include/dtype.glsl).
enum class DType : uint32_t { f32 = 0, f16 = 1, bf16 = 2, i32 = 3 };

constexpr uint64_t size_of(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16 ? 2 : 4; }
std::string_view name_of(DType dtype);                    // "f32", "f16", "bf16", "i32"
std::optional<DType> parse_dtype(std::string_view name);  // the same spellings; nothing for any other

// IEEE 754 binary16 and bfloat16 <-> binary32, round to nearest even; subnormals, infinities and NaN preserved.
uint16_t f16_from_f32(float value);
float f32_from_f16(uint16_t bits);
uint16_t bf16_from_f32(float value);
float f32_from_bf16(uint16_t bits);

// Converts `count` elements between any two of f32, f16, bf16 (i32 only to itself). The ranges must not overlap;
// neither pointer needs to be aligned. Equal types copy bytes.
void convert(DType from, const void* source, DType to, void* destination, size_t count);

}  // namespace turboesm
