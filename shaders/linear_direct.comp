#version 450
// linear.comp's product and epilogues, for devices whose invocations are the lanes of a processor's vectors (software
// drivers). Shared memory and barriers, which save a GPU's loads, cost such a device more than loads from its caches do.
//
//   x [rows, inputs] D, weight [outputs, inputs] D, bias [outputs] f32 and residual [rows, outputs] f32 where present
//   -> y [rows, outputs] any; with ROPE q, k and v turned by their positions, as linear.comp says
//   A row of inputs is a multiple of 8 LANES bytes.
//
// A workgroup is one subgroup. It computes TM rows by TN LANES outputs; an invocation keeps the sums of its own TN
// columns for all TM rows. At each step it fetches LANES x 8 bytes of its columns' weights, which serve all rows, and 8
// bytes of each row of x, whose values go to all others by broadcast. Each output is one chain of sums over ascending
// inputs from the bias on, so a row's result does not depend on the batch.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"
#include "gelu.glsl"
#include "rope.glsl"

layout(local_size_x_id = 0) in;  // LANES

layout(constant_id = 0) const uint LANES = 8;  // the subgroup's size
layout(constant_id = 1) const uint DTYPE = DTYPE_F32;
layout(constant_id = 2) const uint Y_DTYPE = DTYPE_F32;
layout(constant_id = 3) const uint TM = 32;
layout(constant_id = 4) const uint TN = 4;  // even: an invocation stores pairs of neighbouring columns
layout(constant_id = 5) const bool ROPE = false;

#include "lanes.glsl"

layout(push_constant, scalar) uniform Push {
  Words x;
  Words weight;
  Floats bias;
  Words residual;
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

const uint kSums = TM * TN;
const uint kFactors = LANES * kValues * TN;
const uint kRowBlock = 4;  // rows at a time: chains of sums for the latency of additions; divides TM
// An invocation's j-th column.
uint column_of(uint column0, uint j) {
  return column0 + 2 * (gl_SubgroupInvocationID + j / 2 * LANES) + j % 2;
}

void multiply(uint row0, uint column0, inout float sums[kSums]) {
  const uint longs = inputs / kValues;
  uint w_at[TN];
  [[unroll]] for (uint j = 0; j < TN; ++j) w_at[j] = min(column_of(column0, j), outputs - 1) * longs;
  [[dont_unroll]] for (uint k = 0; k < longs; k += LANES) {
    float w[kFactors];
    [[unroll]] for (uint j = 0; j < TN; ++j) {
      [[unroll]] for (uint l = 0; l < LANES; ++l) {
        const vec4 values = widen(Longs(weight).at[w_at[j] + k + l]);
        [[unroll]] for (uint v = 0; v < kValues; ++v) w[(l * kValues + v) * TN + j] = values[v];
      }
    }
    [[unroll]] for (uint first = 0; first < TM; first += kRowBlock) {
      vec4 values[kRowBlock];
      [[unroll]] for (uint i = 0; i < kRowBlock; ++i) {
        values[i] = widen(Longs(x).at[min(row0 + first + i, rows - 1) * longs + k + gl_SubgroupInvocationID]);
      }
      [[unroll]] for (uint l = 0; l < LANES; ++l) {
        [[unroll]] for (uint v = 0; v < kValues; ++v) {
          [[unroll]] for (uint i = 0; i < kRowBlock; ++i) {
            const float factor = subgroupBroadcast(values[i][v], l);
            [[unroll]] for (uint j = 0; j < TN; ++j) {
              const uint at = (first + i) * TN + j;
              sums[at] = fma(factor, w[(l * kValues + v) * TN + j], sums[at]);
            }
          }
        }
      }
    }
  }
}

// Columns column and column + 1 of all rows of the tile, from sums[j] and sums[j + 1] of each row; the second may lie
// beyond the last one only when y is f32.
void finish_pair(uint row0, uint column, uint j, float sums[kSums]) {
  if (column >= outputs) return;
  const uint width = ROPE ? outputs / 3 : outputs;
  const uint at0 = ROPE ? place_in_qkv(rows, width, 0, column) : column;
  const bool both = column + 1 < outputs, aligned = outputs % 2 == 0;
  [[dont_unroll]] for (uint i = 0; i < TM; ++i) {
    const uint row = row0 + i;
    if (row >= rows) break;
    vec2 pair = vec2(sums[i * TN + j], sums[i * TN + j + 1]);
    if (has_gelu != 0) pair = vec2(gelu(pair.x), gelu(pair.y));
    if (ROPE && column < 2 * width) {
      const uint angles = uint(positions.at[row]) * head_dim + column % head_dim;
      pair = turn(pair * (column < width ? q_scale : 1.0), load_pair(table, angles));
    }
    const uint at = at0 + row * width;
    if (has_residual != 0) {
      if (aligned) {
        pair += load_pair(residual, at);
      } else {
        pair += vec2(uintBitsToFloat(residual.at[at]), both ? uintBitsToFloat(residual.at[at + 1]) : 0.0);
      }
    }
    if (aligned) {
      store_pair(y, Y_DTYPE, at, pair);
    } else {
      y.at[at] = floatBitsToUint(pair.x);
      if (both) y.at[at + 1] = floatBitsToUint(pair.y);
    }
  }
}

void main() {
  const uint column0 = gl_WorkGroupID.x * LANES * TN;
  for (uint row0 = gl_WorkGroupID.y * TM; row0 < rows; row0 += gl_NumWorkGroups.y * TM) {
    float sums[kSums];
    [[unroll]] for (uint j = 0; j < TN; ++j) {
      const float start = has_bias != 0 ? bias.at[min(column_of(column0, j), outputs - 1)] : 0.0;
      [[unroll]] for (uint i = 0; i < TM; ++i) sums[i * TN + j] = start;
    }
    multiply(row0, column0, sums);
    [[dont_unroll]] for (uint j = 0; j < TN; j += 2) finish_pair(row0, column_of(column0, j), j, sums);
  }
}
