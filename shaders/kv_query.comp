#version 450
// What attention over a cache needs of its queries, q [rows, heads, d = HEAD_DIM] D, after RoPE and scaled:
//   out       = transform q        transform [heads or 1, d, d] f32; without it out = q
//   projected = projection out     projection [d, d] f32, optional
//   position  = the vector u with u . table[j] = q . (position_mean turned to position j), position_mean [heads, d] f32:
//               for each pair (a, b) of q and (m, n) of the mean  (a m + b n, b m - a n)
//   -> out, projected [rows, heads, d] f32, position [rows, heads, d] any
//
// A workgroup takes one head and ROWS rows (grid: heads, groups of rows), which share each element of a matrix that is
// read. SLICES neighbouring invocations read a row of the matrix side by side, 16 bytes each, and make one output of
// every row. What takes time is waiting for memory, so the transform is on its way while the queries come.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "dtype.glsl"

layout(local_size_x = 128) in;  // THREADS

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
const uint THREADS = 128;
const uint SLICES = 4;
const uint FOURS = HEAD_DIM / 4;                        // of a row
const uint COLUMNS = (FOURS + SLICES - 1) / SLICES;     // fours of an invocation in a row of a matrix
const uint TURN = THREADS / SLICES;                     // rows of a matrix at a time
const uint TURNS = (HEAD_DIM + TURN - 1) / TURN;
const uint AT_ONCE = TURNS < 2 || COLUMNS > 4 ? 1 : 2;  // turns whose elements registers have room for
const uint HELD_ELEMENTS = AT_ONCE * COLUMNS;
const uint kHeld = ROWS * FOURS;
shared vec4 held[2 * kHeld];  // the workgroup's queries, then `out` of them

uint heads() { return gl_NumWorkGroups.x; }
uint place_of(uint row) { return (row * heads() + gl_WorkGroupID.x) * HEAD_DIM; }
uint slice() { return gl_LocalInvocationID.x % SLICES; }
uint row_in(uint turn) { return turn * TURN + gl_LocalInvocationID.x / SLICES; }

void load_queries(uint first) {
  for (uint i = gl_LocalInvocationID.x; i < kHeld; i += THREADS) {
    const uint row = first + i / FOURS;
    held[i] = row < rows ? load4(q, DTYPE, place_of(row) + i % FOURS * 4) : vec4(0.0);
  }
  barrier();
}

// This invocation's share of a matrix in the turns from `turn` on; zeros outside.
void load_elements(Words matrix, uint matrix_at, uint turn, out vec4 elements[HELD_ELEMENTS]) {
  [[unroll]] for (uint t = 0; t < AT_ONCE; ++t) {
    [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
      const uint i = row_in(turn + t), four = c * SLICES + slice();
      const bool inside = i < HEAD_DIM && four < FOURS;
      elements[t * COLUMNS + c] = inside ? load4(matrix, DTYPE_F32, matrix_at + i * HEAD_DIM + 4 * four) : vec4(0.0);
    }
  }
}

// target = matrix x for each row; x begins at held[from], and `elements` holds the first turns. With `keep` the result
// is left behind the queries as well.
void multiply(Words matrix, uint matrix_at, vec4 elements[HELD_ELEMENTS], uint from, bool keep, Words target,
              uint first) {
  [[dont_unroll]] for (uint turn = 0; turn < TURNS; turn += AT_ONCE) {
    if (turn > 0) load_elements(matrix, matrix_at, turn, elements);
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
      float sums[AT_ONCE];
      [[unroll]] for (uint t = 0; t < AT_ONCE; ++t) sums[t] = 0.0;
      [[unroll]] for (uint c = 0; c < COLUMNS; ++c) {
        const vec4 values = held[from + r * FOURS + min(c * SLICES + slice(), FOURS - 1)];
        [[unroll]] for (uint t = 0; t < AT_ONCE; ++t) sums[t] += dot(elements[t * COLUMNS + c], values);
      }
      [[unroll]] for (uint t = 0; t < AT_ONCE; ++t) {
        [[unroll]] for (uint offset = 1; offset < SLICES; offset *= 2) sums[t] += subgroupShuffleXor(sums[t], offset);
        const uint i = row_in(turn + t);
        if (i >= HEAD_DIM || r % SLICES != slice()) continue;
        if (keep) held[kHeld + r * FOURS + i / 4][i % 4] = sums[t];
        if (first + r < rows) target.at[place_of(first + r) + i] = floatBitsToUint(sums[t]);
      }
    }
  }
  barrier();
}

void copy_queries(uint first) {
  for (uint i = gl_LocalInvocationID.x; i < kHeld; i += THREADS) {
    const uint row = first + i / FOURS;
    if (row < rows) store4(result, DTYPE_F32, place_of(row) + i % FOURS * 4, held[i]);
  }
}

void find_positions(uint first) {
  for (uint i = gl_LocalInvocationID.x; i < kHeld; i += THREADS) {
    const uint row = first + i / FOURS;
    if (row >= rows) continue;
    const vec4 mean = load4(position_mean, DTYPE_F32, gl_WorkGroupID.x * HEAD_DIM + i % FOURS * 4);
    const vec4 v = held[i];
    const vec4 even = v.xxzz * mean.xyzw, odd = v.yyww * mean.yxwz;
    store4(position, POSITION_DTYPE, place_of(row) + i % FOURS * 4,
           vec4(even.x + odd.x, odd.y - even.y, even.z + odd.z, odd.w - even.w));
  }
}

void main() {
  const uint transform_at = kOfEachHead ? gl_WorkGroupID.x * HEAD_DIM * HEAD_DIM : 0;
  for (uint first = gl_WorkGroupID.y * ROWS; first < rows; first += gl_NumWorkGroups.y * ROWS) {
    vec4 elements[HELD_ELEMENTS];
    if (kHasTransform) load_elements(transform, transform_at, 0, elements);
    load_queries(first);
    if (kHasPosition) find_positions(first);
    if (kHasTransform) {
      multiply(transform, transform_at, elements, 0, true, result, first);
    } else {
      copy_queries(first);
    }
    if (kHasProjection) {
      load_elements(projection, 0, 0, elements);
      multiply(projection, 0, elements, kHasTransform ? kHeld : 0, false, projected, first);
    }
    barrier();  // before the next rows' queries come
  }
}
