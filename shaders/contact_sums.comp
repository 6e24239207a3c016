#version 450
// The contact head's first half (Rao et al. 2020). With S = A + A^T over the residues of an attention map A (first and
// last row and column dropped; n = length - 2): sums[h, i] = sum_j S[i, j] for i < n, and sums[h, n] = sum_i sums[h,
// i].
//
//   maps [heads, length, length] f32 -> sums [heads, length - 1] f32
//
// One workgroup per head, one invocation per i: it walks down column i, where neighbours read neighbouring words, and
// along row i, which its cache line serves.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"
#include "reduce.glsl"

layout(local_size_x = 256) in;

layout(push_constant, scalar) uniform Push {
  Floats maps;
  Floats sums;
  uint heads;
  uint length;
};

// sum_j S[i - 1, j], with i a row of the map itself.
float sum_of_row(uint map, uint i) {
  float along = 0.0, down = 0.0;
  for (uint j = 1; j + 1 < length; ++j) {
    along += maps.at[map + i * length + j];
    down += maps.at[map + j * length + i];
  }
  return along + down;
}

void main() {
  for (uint head = gl_WorkGroupID.x; head < heads; head += gl_NumWorkGroups.x) {
    float total = 0.0;
    for (uint i = gl_LocalInvocationID.x + 1; i + 1 < length; i += gl_WorkGroupSize.x) {
      const float sum = sum_of_row(head * length * length, i);
      sums.at[head * (length - 1) + i - 1] = sum;
      total += sum;
    }
    total = workgroup_sum(total);
    if (gl_LocalInvocationID.x == 0) sums.at[head * (length - 1) + length - 2] = total;
  }
}
