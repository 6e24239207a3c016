#version 450
// out[b] = mean of the rows of sequence b without its first and last (<cls> and <eos>); 0 when none is left.
//
//   x [tokens, width] f32, cu_seqlens [sequences + 1] i32 -> out [sequences, width] f32
//
// A workgroup takes 32 columns of one sequence; 8 invocations share a column and take every eighth row, so that the
// order of the additions depends on the sequence alone.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"

const uint kColumns = 32, kRowLanes = 8;
layout(local_size_x = 256) in;

layout(push_constant, scalar) uniform Push {
  Floats x;
  Ints cu_seqlens;
  Floats result;
  uint width;
};

shared float partial[kRowLanes][kColumns];

void main() {
  const uint lane = gl_LocalInvocationID.x / kColumns, local_column = gl_LocalInvocationID.x % kColumns;
  const uint column = gl_WorkGroupID.x * kColumns + local_column, b = gl_WorkGroupID.y;
  const uint begin = uint(cu_seqlens.at[b]), end = uint(cu_seqlens.at[b + 1]);
  const uint residues = end - begin > 2 ? end - begin - 2 : 0;

  float sum = 0.0;
  if (column < width) {
    for (uint i = lane; i < residues; i += kRowLanes) sum += x.at[(begin + 1 + i) * width + column];
  }
  partial[lane][local_column] = sum;
  barrier();
  if (lane != 0 || column >= width) return;
  for (uint i = 1; i < kRowLanes; ++i) sum += partial[i][local_column];
  result.at[b * width + column] = residues == 0 ? 0.0 : sum / float(residues);
}
