#version 450
// y = x weight^T + bias for few outputs of few rows, such as the LM head's 33 logits: tiles would leave most of a device
// idle for as long as one sum over the inputs takes.
//
//   x [rows, inputs] D, weight [outputs, inputs] D, bias [outputs] f32 (optional) -> y [rows, outputs] f32
//   inputs is a multiple of 4
//
// A workgroup takes one row of x, in shared memory as fp32, and OUTPUTS outputs (grid: rows, blocks of outputs); each
// subgroup makes one output at a time, its lanes reading neighbouring fours of the weight's row.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#include "dtype.glsl"

layout(local_size_x = 256) in;

layout(constant_id = 0) const uint DTYPE = DTYPE_F32;
layout(constant_id = 1) const uint FOURS = 320;  // of a row of x
layout(constant_id = 2) const uint OUTPUTS = 16;

layout(push_constant, scalar) uniform Push {
  Words x;
  Words weight;
  Floats bias;
  Floats y;
  uint outputs;
  uint has_bias;
};

shared vec4 row_of_x[FOURS];

void main() {
  const uint row = gl_WorkGroupID.x;
  for (uint i = gl_LocalInvocationID.x; i < FOURS; i += gl_WorkGroupSize.x) {
    row_of_x[i] = load4(x, DTYPE, (row * FOURS + i) * 4);
  }
  barrier();
  const uint first = gl_WorkGroupID.y * OUTPUTS;
  for (uint n = first + gl_SubgroupID; n < min(first + OUTPUTS, outputs); n += gl_NumSubgroups) {
    vec4 sum = vec4(0.0);
    for (uint i = gl_SubgroupInvocationID; i < FOURS; i += gl_SubgroupSize) {
      sum = fma(row_of_x[i], load4(weight, DTYPE, (n * FOURS + i) * 4), sum);
    }
    const float total = subgroupAdd((sum.x + sum.y) + (sum.z + sum.w));
    if (subgroupElect()) y.at[row * outputs + n] = has_bias != 0 ? total + bias.at[n] : total;
  }
}
