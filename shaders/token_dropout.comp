#version 450
// scale[b] = (1 - 0.12) / (1 - m / n) for sequence b of n tokens, m of them <mask>; 0 when all are. ESM-2's token
// dropout (Lin et al. 2022; fair-esm, esm2.py), which rescales at inference too.
//
//   ids [tokens] i32, cu_seqlens [sequences + 1] i32 -> scale [sequences] f32
//
// One workgroup per sequence.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"
#include "reduce.glsl"

layout(local_size_x = 128) in;

layout(push_constant, scalar) uniform Push {
  Ints ids;
  Ints cu_seqlens;
  Floats scale;
  uint sequences;
  int mask_id;
};

const float kKeptInTraining = 1.0 - 0.15 * 0.8;

void main() {
  for (uint b = gl_WorkGroupID.x; b < sequences; b += gl_NumWorkGroups.x) {
    const uint begin = uint(cu_seqlens.at[b]), end = uint(cu_seqlens.at[b + 1]);
    float masked = 0.0;  // exact: counts stay below 2^24
    for (uint t = begin + gl_LocalInvocationID.x; t < end; t += gl_WorkGroupSize.x) {
      if (ids.at[t] == mask_id) masked += 1.0;
    }
    masked = workgroup_sum(masked);
    const float length = float(end - begin);
    if (gl_LocalInvocationID.x == 0) {
      scale.at[b] = masked == length ? 0.0 : kKeptInTraining / (1.0 - masked / length);
    }
  }
}
