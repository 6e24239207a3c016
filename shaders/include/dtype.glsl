// Tensors in memory, without any 16-bit or 64-bit extension. A 16-bit tensor is read and written as 32-bit words of two
// elements each, the one at the lower address in the lower half. Arithmetic is fp32 always.
//
// Include this first in a shader. An operand's type is one of the DTYPE_ values below, as a specialization constant, so
// that the branches on it vanish when the pipeline is compiled. Tensors start at multiples of 16 bytes.
#ifndef DTYPE_GLSL
#define DTYPE_GLSL

#extension GL_EXT_buffer_reference : require
#extension GL_EXT_scalar_block_layout : require

// runtime/dtype.h's values.
#define DTYPE_F32 0u
#define DTYPE_F16 1u
#define DTYPE_BF16 2u

layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Words { uint at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer WordPairs { uvec2 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer WordQuads { uvec4 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Floats { float at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Ints { int at[]; };

// The address of element `count` of those of `bytes` bytes that begin at an address; a buffer reference is made of it.
uvec2 advance(uvec2 address, uint count, uint bytes) {
  uint high, low, carry;
  umulExtended(count, bytes, high, low);
  low = uaddCarry(address.x, low, carry);
  return uvec2(low, address.y + high + carry);
}

// fp32 to the 16 bits of the nearest binary16 or bfloat16, ties to even, NaN kept: the steps of runtime/dtype.cpp.
// Integer code, because Vulkan leaves the rounding of packHalf2x16 to the driver.
uint f16_bits(float value) {
  const uint bits = floatBitsToUint(value);
  const uint magnitude = bits & 0x7fffffffu;
  const uint normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // Below 2^-14 the result is subnormal: adding 0.5 lines the float's last bit up with 2^-24 and rounds to even.
  const uint subnormal = floatBitsToUint(uintBitsToFloat(magnitude) + 0.5) - 0x3f000000u;
  uint result = magnitude < 0x38800000u ? subnormal : normal;
  if (magnitude >= 0x477ff000u) result = 0x7c00u;  // rounds to 65536 or more: infinity
  if (magnitude > 0x7f800000u) result = 0x7e00u;   // NaN
  return ((bits >> 16) & 0x8000u) | result;
}

uint bf16_bits(float value) {
  const uint bits = floatBitsToUint(value);
  const uint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;  // a NaN is made quiet
}

// Two elements of a 16-bit type in a word, and back.
uint narrow2(uint dtype, vec2 v) {
  if (dtype == DTYPE_F16) return f16_bits(v.x) | (f16_bits(v.y) << 16);
  return bf16_bits(v.x) | (bf16_bits(v.y) << 16);
}

vec2 widen2(uint dtype, uint word) {
  if (dtype == DTYPE_F16) return unpackHalf2x16(word);
  return uintBitsToFloat(uvec2(word << 16, word & 0xffff0000u));
}

// Elements i, i + 1 and so on: i is a multiple of 2 for load2 and store2, of 4 for load4 and store4. One access of 4 to
// 16 bytes each.
vec2 load2(Words tensor, uint dtype, uint i) {
  if (dtype == DTYPE_F32) return uintBitsToFloat(WordPairs(tensor).at[i >> 1]);
  return widen2(dtype, tensor.at[i >> 1]);
}

vec4 load4(Words tensor, uint dtype, uint i) {
  if (dtype == DTYPE_F32) return uintBitsToFloat(WordQuads(tensor).at[i >> 2]);
  const uvec2 words = WordPairs(tensor).at[i >> 2];
  return vec4(widen2(dtype, words.x), widen2(dtype, words.y));
}

void store2(Words tensor, uint dtype, uint i, vec2 v) {
  if (dtype == DTYPE_F32) {
    WordPairs(tensor).at[i >> 1] = floatBitsToUint(v);
  } else {
    tensor.at[i >> 1] = narrow2(dtype, v);
  }
}

void store4(Words tensor, uint dtype, uint i, vec4 v) {
  if (dtype == DTYPE_F32) {
    WordQuads(tensor).at[i >> 2] = floatBitsToUint(v);
  } else {
    WordPairs(tensor).at[i >> 2] = uvec2(narrow2(dtype, v.xy), narrow2(dtype, v.zw));
  }
}

#endif  // DTYPE_GLSL
