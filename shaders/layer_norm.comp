#version 450
// y = (x - mean) / sqrt(var + epsilon) weight + bias over each row (Ba et al. 2016), var = mean((x - mean)^2) from the
// deviations: E[x^2] - mean^2 would cancel where |mean| is large.
//
//   x [rows, width] f32, weight [width] f32, bias [width] f32 -> y [rows, width] any; width is even
//
// One workgroup per row, which its invocations keep in registers: x is read once, so y may be x. weight and bias are
// asked for together with x, to arrive while the sums are made.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"
#include "reduce.glsl"

layout(local_size_x_id = 0) in;

layout(constant_id = 1) const uint Y_DTYPE = DTYPE_F32;
layout(constant_id = 2) const uint PAIRS = 1;  // per invocation: ceil(width / (2 x workgroup size))
layout(constant_id = 3) const bool ONE_SUBGROUP = false;  // the workgroup is one: sums need no barrier

layout(push_constant, scalar) uniform Push {
  Words x;
  Words weight;
  Words bias;
  Words y;
  uint rows;
  uint width;
  float epsilon;
};

float sum_of_row(float own) {
  if (ONE_SUBGROUP) return subgroupAdd(own);
  return workgroup_sum(own);
}

uint column_of(uint pair) { return 2 * (gl_LocalInvocationID.x + pair * gl_WorkGroupSize.x); }

void normalize_row(uint begin) {
  vec2 held[PAIRS];
  vec2 weights[PAIRS];
  vec2 biases[PAIRS];
  vec2 sum = vec2(0.0);
  for (uint i = 0; i < PAIRS; ++i) {
    const uint column = column_of(i);
    held[i] = column < width ? load2(x, DTYPE_F32, begin + column) : vec2(0.0);
    weights[i] = column < width ? load2(weight, DTYPE_F32, column) : vec2(0.0);
    biases[i] = column < width ? load2(bias, DTYPE_F32, column) : vec2(0.0);
    sum += held[i];
  }
  const float mean = sum_of_row(sum.x + sum.y) / float(width);

  vec2 squares = vec2(0.0);
  for (uint i = 0; i < PAIRS; ++i) {
    held[i] -= mean;
    if (column_of(i) < width) squares += held[i] * held[i];
  }
  const float variance = sum_of_row(squares.x + squares.y) / float(width);
  const float factor = 1.0 / sqrt(variance + epsilon);

  for (uint i = 0; i < PAIRS; ++i) {
    const uint column = column_of(i);
    if (column >= width) continue;
    store2(y, Y_DTYPE, begin + column, fma(held[i] * factor, weights[i], biases[i]));
  }
}

void main() {
  for (uint row = gl_WorkGroupID.x; row < rows; row += gl_NumWorkGroups.x) normalize_row(row * width);
}
