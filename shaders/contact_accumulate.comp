#version 450
// The contact head's second half: logits[i, j] += sum_h weight[h] (S_h[i, j] - sums[h, i] sums[h, j] / sums[h, n]), the
// average product correction (Dunn et al. 2008), with S_h and sums as in contact_sums.comp.
//
//   maps [heads, length, length] f32, sums [heads, length - 1] f32, weight [heads] f32
//   -> logits [n, n] f32, read and written; n = length - 2
//
// A workgroup takes a square of 16 x 16 logits, so that the transposed reads use whole cache lines too.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"

layout(local_size_x = 16, local_size_y = 16) in;

layout(push_constant, scalar) uniform Push {
  Floats maps;
  Floats sums;
  Floats weight;
  Floats logits;
  uint heads;
  uint length;
};

void main() {
  const uint j = gl_GlobalInvocationID.x, i = gl_GlobalInvocationID.y, n = length - 2;
  if (i >= n || j >= n) return;
  float sum = 0.0;
  for (uint h = 0; h < heads; ++h) {
    const uint map = h * length * length, row = h * (length - 1);
    const float symmetric = maps.at[map + (i + 1) * length + j + 1] + maps.at[map + (j + 1) * length + i + 1];
    const float expected = sums.at[row + i] * sums.at[row + j] / sums.at[row + n];
    sum += weight.at[h] * (symmetric - expected);
  }
  logits.at[i * n + j] += sum;
}
