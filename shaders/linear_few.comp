#version 450
// y = epilogue(x weight^T + bias) + residual for one to eight rows of x, as in a step of decoding: what takes time is
// the way of the weights from memory, which are read once.
//
//   x [ROWS, inputs] D, weight [outputs, inputs] D, bias [outputs] f32, residual [ROWS, outputs] f32 -> y [ROWS, outputs]
//
// With ROPE the epilogue is RoPE instead, and y [3, ROWS, outputs / 3], as linear_coopmat.comp says.
//
// A workgroup makes two neighbouring outputs of all rows. Its invocations read neighbouring 16 bytes of the two rows of
// weight, all that they need at a time before they use any, and the same columns of x, which the caches have. Their sums
// are added up by subgroup, then in shared memory; then invocation r finishes row r. The order of additions depends on
// the device, but not on the rows that run beside.
// Needs rows of x and weight of whole 16 bytes; outputs even unless y is fp32.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#include "dtype.glsl"
#include "gelu.glsl"
#include "rope.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint DTYPE = DTYPE_F32;  // of x and weight
layout(constant_id = 2) const uint RESULT_DTYPE = DTYPE_F32;
layout(constant_id = 3) const uint ROWS = 1;
layout(constant_id = 4) const bool ROPE = false;

layout(push_constant, scalar) uniform Push {
  WordQuads x;
  WordQuads weight;
  Floats bias;
  Floats residual;
  Words y;  // may be the residual
  Ints positions;
  Floats table;
  uint inputs, outputs, has_bias, has_residual, has_gelu;
  float q_scale;
  uint head_dim;
};

const uint OUTPUTS = 2;
const uint VALUES = DTYPE == DTYPE_F32 ? 4 : 8;  // in 16 bytes
const uint AT_ONCE = 4;                          // columns of 16 bytes that an invocation asks for at a time

shared vec2 partial[ROWS * THREADS];  // [row][subgroup]: at most as many as there are invocations

// Values 2 i and 2 i + 1 of 16 bytes.
vec2 pair_of(uvec4 words, uint i) {
  if (DTYPE != DTYPE_F32) return widen2(DTYPE, words[i]);
  return uintBitsToFloat(i == 0 ? words.xy : words.zw);
}

float dot_of(uvec4 a, uvec4 b) {
  vec2 sum = vec2(0.0);
  [[unroll]] for (uint i = 0; i < VALUES / 2; ++i) sum = fma(pair_of(a, i), pair_of(b, i), sum);
  return sum.x + sum.y;
}

void finish(uint row, uint column, vec2 value) {
  const bool both = column + 1 < outputs;
  if (has_bias != 0) value += vec2(bias.at[column], both ? bias.at[column + 1] : 0.0);
  uint at = row * outputs + column;
  if (ROPE) {
    const uint width = outputs / 3;
    if (column < width) value *= q_scale;
    if (column < 2 * width) {
      const uint angle = uint(positions.at[row]) * head_dim + column % head_dim;
      value = turn(value, vec2(table.at[angle], table.at[angle + 1]));
    }
    at = place_in_qkv(ROWS, width, row, column);
  }
  if (has_gelu != 0) value = vec2(gelu(value.x), gelu(value.y));
  if (has_residual != 0) value += vec2(residual.at[at], both ? residual.at[at + 1] : 0.0);
  if (RESULT_DTYPE != DTYPE_F32) {
    y.at[at / 2] = narrow2(RESULT_DTYPE, value);
  } else {
    y.at[at] = floatBitsToUint(value.x);
    if (both) y.at[at + 1] = floatBitsToUint(value.y);
  }
}

void main() {
  const uint column = gl_WorkGroupID.x * OUTPUTS;
  const uint pitch = inputs / VALUES;
  const uint first_weight = column * pitch;
  const uint second_weight = min(column + 1, outputs - 1) * pitch;
  vec2 sums[ROWS];
  [[unroll]] for (uint r = 0; r < ROWS; ++r) sums[r] = vec2(0.0);
  for (uint begin = gl_LocalInvocationIndex; begin < pitch; begin += AT_ONCE * THREADS) {
    uvec4 first[AT_ONCE];
    uvec4 second[AT_ONCE];
    [[unroll]] for (uint i = 0; i < AT_ONCE; ++i) {
      const uint k = begin + i * THREADS;
      first[i] = k < pitch ? weight.at[first_weight + k] : uvec4(0);
      second[i] = k < pitch ? weight.at[second_weight + k] : uvec4(0);
    }
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
      uvec4 values[AT_ONCE];
      [[unroll]] for (uint i = 0; i < AT_ONCE; ++i) values[i] = x.at[r * pitch + min(begin + i * THREADS, pitch - 1)];
      [[unroll]] for (uint i = 0; i < AT_ONCE; ++i) {
        sums[r] += vec2(dot_of(values[i], first[i]), dot_of(values[i], second[i]));
      }
    }
  }
  [[unroll]] for (uint r = 0; r < ROWS; ++r) {
    const vec2 sum = subgroupAdd(sums[r]);
    if (subgroupElect()) partial[r * THREADS + gl_SubgroupID] = sum;
  }
  barrier();
  const uint row = gl_LocalInvocationIndex;
  if (row >= ROWS) return;
  vec2 total = vec2(0.0);
  for (uint i = 0; i < gl_NumSubgroups; ++i) total += partial[row * THREADS + i];
  finish(row, column, total);
}
