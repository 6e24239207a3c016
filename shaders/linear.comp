#version 450
// y = epilogue(x weight^T + bias) + residual, epilogue nothing or GELU; or, with ROPE, RoPE.
//
//   x [rows, inputs] D, weight [outputs, inputs] D, bias [outputs] f32 and residual [rows, outputs] f32 where present
//   -> y [rows, outputs] any; inputs is even, outputs too when y is a 16-bit type
//   With ROPE the outputs are those of q, k and v, each a third: q is scaled by q_scale, pairs of neighbours of q
//   and k are turned by their row's position, and y is [3, rows, outputs / 3]. positions [rows] i32, table
//   [*, head_dim] f32: row p has a cosine and a sine for each pair of a head at position p
//
// A workgroup computes a tile of BM x BN outputs, walking over the inputs in steps of BK through shared memory as fp32,
// each invocation TM x TN of them in registers. The next step's words are on their way from memory while this one's
// products are made. Rows beyond the last are computed from the last one again and not stored. Each output is one chain
// of fused multiply-adds over ascending inputs, whatever the tile: a row's result does not depend on the batch.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"
#include "gelu.glsl"
#include "rope.glsl"

layout(local_size_x_id = 0) in;  // (BM / TM) (BN / TN)

layout(constant_id = 1) const uint DTYPE = DTYPE_F32;
layout(constant_id = 2) const uint Y_DTYPE = DTYPE_F32;
layout(constant_id = 3) const bool FOURS = true;  // inputs is a multiple of 4: rows can be read by fours
layout(constant_id = 4) const uint BM = 64;
layout(constant_id = 5) const uint BN = 64;
layout(constant_id = 6) const uint BK = 32;  // a multiple of 8
layout(constant_id = 7) const uint TM = 4;
layout(constant_id = 8) const uint TN = 4;  // even: neighbouring columns are stored together
layout(constant_id = 9) const bool ROPE = false;

layout(push_constant, scalar) uniform Push {
  Words x;
  Words weight;
  Floats bias;
  Floats residual;
  Words y;
  Ints positions;
  Words table;
  uint rows;
  uint inputs;
  uint outputs;
  uint has_bias;
  uint has_residual;
  uint has_gelu;
  float q_scale;
  uint head_dim;
};

const uint kThreadRows = BM / TM, kThreadColumns = BN / TN;
const uint kThreads = kThreadRows * kThreadColumns;
const uint kSums = TM * TN;  // per invocation
const uint kFours = BK / 4;      // of a tile's row, in vec4 along the inputs
const uint kPitch = kFours + 1;  // odd: neighbouring rows lie in different banks
const uint kLoadsX = (BM * kFours + kThreads - 1) / kThreads;  // per invocation
const uint kLoadsW = (BN * kFours + kThreads - 1) / kThreads;
shared vec4 x_tile[BM * kPitch];
shared vec4 w_tile[BN * kPitch];  // even columns first, then the odd ones: see w_slot

// An invocation owns pairs of neighbouring columns; with the even columns stored apart from the odd ones, the
// invocations beside it read the rows beside its own.
uint w_slot(uint column) { return column / 2 + (column % 2) * (BN / 2); }

// Inputs k .. k + 3 of a row of x or weight, zeros beyond the last input.
vec4 load_four(Words matrix, uint row, uint k) {
  const uint at = row * inputs + k;
  if (FOURS) return k < inputs ? load4(matrix, DTYPE, at) : vec4(0.0);
  return vec4(k < inputs ? load2(matrix, DTYPE, at) : vec2(0.0),
              k + 2 < inputs ? load2(matrix, DTYPE, at + 2) : vec2(0.0));
}

void fetch(uint row0, uint column0, uint k0, out vec4 next_x[kLoadsX], out vec4 next_w[kLoadsW]) {
  for (uint i = 0; i < kLoadsX; ++i) {
    const uint item = gl_LocalInvocationID.x + i * kThreads;
    next_x[i] = load_four(x, min(row0 + item / kFours, rows - 1), k0 + 4 * (item % kFours));
  }
  for (uint i = 0; i < kLoadsW; ++i) {
    const uint item = gl_LocalInvocationID.x + i * kThreads;
    next_w[i] = load_four(weight, min(column0 + item / kFours, outputs - 1), k0 + 4 * (item % kFours));
  }
}

void place(vec4 next_x[kLoadsX], vec4 next_w[kLoadsW]) {
  for (uint i = 0; i < kLoadsX; ++i) {
    const uint item = gl_LocalInvocationID.x + i * kThreads;
    if (item < BM * kFours) x_tile[(item / kFours) * kPitch + item % kFours] = next_x[i];
  }
  for (uint i = 0; i < kLoadsW; ++i) {
    const uint item = gl_LocalInvocationID.x + i * kThreads;
    if (item < BN * kFours) w_tile[w_slot(item / kFours) * kPitch + item % kFours] = next_w[i];
  }
}

float fma_dot(vec4 a, vec4 b, float sum) {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

void multiply(uint thread_row, uint thread_column, inout float sums[kSums]) {
  for (uint c = 0; c < kFours; ++c) {
    vec4 w[TN];
    for (uint j = 0; j < TN; ++j) {
      const uint slot = thread_column + (j / 2) * kThreadColumns + (j % 2) * (BN / 2);
      w[j] = w_tile[slot * kPitch + c];
    }
    for (uint i = 0; i < TM; ++i) {
      const vec4 xs = x_tile[(thread_row + i * kThreadRows) * kPitch + c];
      for (uint j = 0; j < TN; ++j) sums[i * TN + j] = fma_dot(xs, w[j], sums[i * TN + j]);
    }
  }
}

// An invocation's j-th column.
uint column_of(uint column0, uint j) {
  return column0 + 2 * (gl_LocalInvocationID.x % kThreadColumns + (j / 2) * kThreadColumns) + j % 2;
}

void add_bias(uint column0, inout float sums[kSums]) {
  for (uint j = 0; j < TN; ++j) {
    const float value = bias.at[min(column_of(column0, j), outputs - 1)];
    for (uint i = 0; i < TM; ++i) sums[i * TN + j] += value;
  }
}

// RoPE of what belongs to q and k.
void turn_pairs(uint row0, uint column0, inout float sums[kSums]) {
  const uint width = outputs / 3;
  for (uint i = 0; i < TM; ++i) {
    const uint row = row0 + gl_LocalInvocationID.x / kThreadColumns + i * kThreadRows;
    const uint angles = uint(positions.at[min(row, rows - 1)]) * head_dim;
    for (uint j = 0; j < TN; j += 2) {
      const uint column = column_of(column0, j);
      if (column >= 2 * width) continue;
      const vec2 pair = vec2(sums[i * TN + j], sums[i * TN + j + 1]) * (column < width ? q_scale : 1.0);
      const vec2 turned = turn(pair, load2(table, DTYPE_F32, angles + column % head_dim));
      sums[i * TN + j] = turned.x;
      sums[i * TN + j + 1] = turned.y;
    }
  }
}

// Columns column and column + 1; the second may lie beyond the last one only when y is f32.
void store_pair(uint row, uint column, float first, float second) {
  if (row >= rows || column >= outputs) return;
  const uint at = ROPE ? place_in_qkv(rows, outputs / 3, row, column) : row * outputs + column;
  const bool both = column + 1 < outputs;
  if (has_residual != 0) {
    first += residual.at[at];
    if (both) second += residual.at[at + 1];
  }
  if (Y_DTYPE != DTYPE_F32) {
    store2(y, Y_DTYPE, at, vec2(first, second));
    return;
  }
  y.at[at] = floatBitsToUint(first);
  if (both) y.at[at + 1] = floatBitsToUint(second);
}

void compute_tile(uint row0, uint column0) {
  const uint thread_row = gl_LocalInvocationID.x / kThreadColumns;
  const uint thread_column = gl_LocalInvocationID.x % kThreadColumns;
  float sums[kSums];
  for (uint i = 0; i < kSums; ++i) sums[i] = 0.0;

  vec4 next_x[kLoadsX], next_w[kLoadsW];
  fetch(row0, column0, 0, next_x, next_w);
  for (uint k0 = 0; k0 < inputs; k0 += BK) {
    barrier();  // the previous step's tiles have been used
    place(next_x, next_w);
    barrier();
    if (k0 + BK < inputs) fetch(row0, column0, k0 + BK, next_x, next_w);
    multiply(thread_row, thread_column, sums);
  }

  if (has_bias != 0) add_bias(column0, sums);
  if (has_gelu != 0) {
    for (uint i = 0; i < kSums; ++i) sums[i] = gelu(sums[i]);
  }
  if (ROPE) turn_pairs(row0, column0, sums);
  for (uint i = 0; i < TM; ++i) {
    for (uint j = 0; j < TN; j += 2) {
      store_pair(row0 + thread_row + i * kThreadRows, column_of(column0, j), sums[i * TN + j], sums[i * TN + j + 1]);
    }
  }
}

void main() {
  for (uint row0 = gl_WorkGroupID.y * BM; row0 < rows; row0 += gl_NumWorkGroups.y * BM) {
    compute_tile(row0, gl_WorkGroupID.x * BN);
  }
}
