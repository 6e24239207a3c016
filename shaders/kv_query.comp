#version 450
// What attention over a cache needs of its queries, q [rows, heads, d = HEAD_DIM] D, after RoPE and scaled:
//   out       = transform q        transform [heads or 1, d, d] f32; without it out = q
//   projected = projection out     projection [d, d] f32, optional
//   position  = the vector u with u . table[j] = q . (position_mean turned to position j), position_mean [heads, d] f32:
//               for each pair (a, b) of q and (m, n) of the mean  (a m + b n, b m - a n)
//   -> out, projected [rows, heads, d] f32, position [rows, heads, d] any
//
// A workgroup takes one head and ROWS rows (grid: heads, groups of rows), which share each element of a matrix that is
// read. SLICES neighbouring invocations read a row of the matrix side by side, 16 bytes each, and make one output.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "dtype.glsl"

layout(local_size_x = 128) in;

layout(constant_id = 0) const uint DTYPE = DTYPE_F32;
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint ROWS = 1;
layout(constant_id = 3) const uint FLAGS = 0;  // what there is: 1 transform, 2 one for each head, 4 projection, 8 mean
layout(constant_id = 4) const uint POSITION_DTYPE = DTYPE_F32;

layout(push_constant, scalar) uniform Push {
  Words q;
  Words transform;
  Words projection;
  Words position_mean;
  Words result;
  Words projected;
  Words position;
  uint rows;
};

const bool kHasTransform = (FLAGS & 1) != 0;
const bool kOfEachHead = (FLAGS & 2) != 0;
const bool kHasProjection = (FLAGS & 4) != 0;
const bool kHasPosition = (FLAGS & 8) != 0;
const uint SLICES = 4;
const uint kHeld = ROWS * HEAD_DIM;
shared float held[2 * kHeld];  // the workgroup's queries, then `out` of them

uint heads() { return gl_NumWorkGroups.x; }
uint place_of(uint row) { return (row * heads() + gl_WorkGroupID.x) * HEAD_DIM; }
vec4 held4(uint i) { return vec4(held[i], held[i + 1], held[i + 2], held[i + 3]); }

void load_queries(uint first) {
  for (uint i = 4 * gl_LocalInvocationID.x; i < kHeld; i += 4 * gl_WorkGroupSize.x) {
    const uint row = first + i / HEAD_DIM;
    const vec4 v = row < rows ? load4(q, DTYPE, place_of(row) + i % HEAD_DIM) : vec4(0.0);
    [[unroll]] for (uint c = 0; c < 4; ++c) held[i + c] = v[c];
  }
  barrier();
}

// target = matrix x for each row; the matrix begins at element `matrix_at` and x at held[from]. With `keep` the result
// is left behind the queries as well.
void multiply(Words matrix, uint matrix_at, uint from, bool keep, Words target, uint first) {
  const uint slice = gl_LocalInvocationID.x % SLICES;
  // All of a subgroup go round equally often, for the shuffles.
  for (uint begin = 0; begin < HEAD_DIM; begin += gl_WorkGroupSize.x / SLICES) {
    const uint i = begin + gl_LocalInvocationID.x / SLICES;
    float sums[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; ++r) sums[r] = 0.0;
    if (i < HEAD_DIM) {
      for (uint j = 4 * slice; j < HEAD_DIM; j += 4 * SLICES) {
        const vec4 elements = load4(matrix, DTYPE_F32, matrix_at + i * HEAD_DIM + j);
        [[unroll]] for (uint r = 0; r < ROWS; ++r) sums[r] += dot(elements, held4(from + r * HEAD_DIM + j));
      }
    }
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
      [[unroll]] for (uint offset = 1; offset < SLICES; offset *= 2) sums[r] += subgroupShuffleXor(sums[r], offset);
    }
    if (i >= HEAD_DIM || slice != 0) continue;
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
      if (keep) held[kHeld + r * HEAD_DIM + i] = sums[r];
      if (first + r < rows) target.at[place_of(first + r) + i] = floatBitsToUint(sums[r]);
    }
  }
  barrier();
}

void copy_queries(uint first) {
  for (uint i = 4 * gl_LocalInvocationID.x; i < kHeld; i += 4 * gl_WorkGroupSize.x) {
    const uint row = first + i / HEAD_DIM;
    if (row < rows) store4(result, DTYPE_F32, place_of(row) + i % HEAD_DIM, held4(i));
  }
}

void find_positions(uint first) {
  for (uint i = 4 * gl_LocalInvocationID.x; i < kHeld; i += 4 * gl_WorkGroupSize.x) {
    const uint row = first + i / HEAD_DIM;
    if (row >= rows) continue;
    const vec4 mean = load4(position_mean, DTYPE_F32, gl_WorkGroupID.x * HEAD_DIM + i % HEAD_DIM);
    const vec4 v = held4(i);
    const vec4 even = v.xxzz * mean.xyzw, odd = v.yyww * mean.yxwz;
    store4(position, POSITION_DTYPE, place_of(row) + i % HEAD_DIM,
           vec4(even.x + odd.x, odd.y - even.y, even.z + odd.z, odd.w - even.w));
  }
}

void main() {
  const uint square = HEAD_DIM * HEAD_DIM;
  for (uint first = gl_WorkGroupID.y * ROWS; first < rows; first += gl_NumWorkGroups.y * ROWS) {
    load_queries(first);
    if (kHasPosition) find_positions(first);
    if (kHasTransform) {
      multiply(transform, kOfEachHead ? gl_WorkGroupID.x * square : 0, 0, true, result, first);
    } else {
      copy_queries(first);
    }
    if (kHasProjection) multiply(projection, 0, kHasTransform ? kHeld : 0, false, projected, first);
    barrier();  // before the next rows' queries come
  }
}
