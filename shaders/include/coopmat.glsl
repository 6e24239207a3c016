// What the cooperative-matrix kernels share. In those that have a bf16 twin the 16-bit float type occurs as the
// component of matrices and nowhere else: matrices are loaded from arrays of uvec4 (eight elements each, so offsets and
// strides count eights) and all conversion is integer code. One source thus serves float16 and, retyped
// (tools/retype_bf16.cpp), bfloat16.
#ifndef COOPMAT_GLSL
#define COOPMAT_GLSL

#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_control_flow_attributes : require

#include "dtype.glsl"

layout(constant_id = 0) const uint DTYPE = DTYPE_F16;  // of 16-bit results
layout(local_size_x_id = 1) in;                        // whole subgroups
layout(constant_id = 1) const uint THREADS = 128;      // the same
layout(constant_id = 2) const uint SUBGROUP = 32;      // invocations of a subgroup, as the pipeline asks: 32 or 64

const uint M = 16;      // rows, columns and depth of every matrix
const uint EIGHTS = 8;  // 16-bit elements in a uvec4
const uint FOURS = 4;   // fp32 elements in a uvec4

#define MatrixA coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseA>
#define MatrixB coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseB>
#define Sums coopmat<float, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>
#define ROW_MAJOR gl_CooperativeMatrixLayoutRowMajor
#define COLUMN_MAJOR gl_CooperativeMatrixLayoutColumnMajor

// Orders a subgroup's accesses to shared memory, and those alone: subgroupBarrier() would order buffers' as well.
void sync_subgroup() {
  controlBarrier(gl_ScopeSubgroup, gl_ScopeSubgroup, gl_StorageSemanticsShared, gl_SemanticsAcquireRelease);
}

// A 16-bit operand that is only read.
layout(buffer_reference, scalar, buffer_reference_align = 16) restrict readonly buffer Eights { uvec4 at[]; };

// The nearest bfloat16, ties to even, in the upper half of a word. In an epilogue the instructions of narrow2() count;
// what is left out is to make a NaN quiet, which every NaN is that arithmetic has made.
uint bf16_in_upper_half(float value) {
  const uint bits = floatBitsToUint(value);
  return (bits & 0x7fffffffu) > 0x7f800000u ? bits : bits + 0x7fffu + ((bits >> 16) & 1u);
}

// Two elements of type DTYPE in a word, the first in the lower half. float16 takes the one instruction that devices
// have for it, not dtype.glsl's exact steps: its rounding is the driver's choice, and may be an ulp off the nearest.
uint pack_pair(float first, float second) {
  if (DTYPE == DTYPE_F16) return packHalf2x16(vec2(first, second));
  return (bf16_in_upper_half(first) >> 16) | (bf16_in_upper_half(second) & 0xffff0000u);
}

// The same in type `dtype` for values that are no NaNs.
uint pack_numbers(uint dtype, vec2 values) {
  if (dtype == DTYPE_F16) return packHalf2x16(values);
  uvec2 bits = floatBitsToUint(values);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return (bits.x >> 16) | (bits.y & 0xffff0000u);
}

#endif  // COOPMAT_GLSL
