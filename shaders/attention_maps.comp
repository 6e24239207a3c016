#version 450
// The attention maps of one sequence, rows begin .. begin + length of q and k: out[h, i, :] = softmax_j(q[i, h] . k[j,
// h]).
//
//   q, k [tokens, heads, head_dim] D -> out [heads, length, length] f32
//
// A workgroup takes 8 queries of one head, so that a key that has been loaded serves 8 scores; an invocation takes
// every 128th key. First pass: the scores go to `out` as they are, while each invocation keeps the maximum and the sum
// of exponentials of its own (Milakov & Gimelshein 2018). After these have been combined, the second pass normalises.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"
#include "reduce.glsl"

const uint kQueries = 8, kMaxHeadDim = 256;
layout(local_size_x = 128) in;

layout(constant_id = 0) const uint DTYPE = DTYPE_F32;

layout(push_constant, scalar) uniform Push {
  Words q;
  Words k;
  Floats maps;
  uint begin;
  uint length;
  uint heads;
  uint head_dim;
};

shared vec4 q_tile[kQueries][kMaxHeadDim / 4];

const float kLowest = -1e30;  // below every score; finite, because infinities need not work

void load_queries(uint head, uint first) {
  const uint fours = head_dim / 4;
  barrier();  // the previous head's queries have been used
  for (uint i = gl_LocalInvocationID.x; i < kQueries * fours; i += gl_WorkGroupSize.x) {
    const uint row = begin + min(first + i / fours, length - 1);
    q_tile[i / fours][i % fours] = load4(q, DTYPE, (row * heads + head) * head_dim + 4 * (i % fours));
  }
  barrier();
}

void score(uint head, uint j, out float scores[kQueries]) {
  for (uint r = 0; r < kQueries; ++r) scores[r] = 0.0;
  for (uint c = 0; c < head_dim / 4; ++c) {
    const vec4 key = load4(k, DTYPE, ((begin + j) * heads + head) * head_dim + 4 * c);
    for (uint r = 0; r < kQueries; ++r) scores[r] += dot(q_tile[r][c], key);
  }
}

void map_rows(uint head, uint first) {
  load_queries(head, first);
  const uint rows = min(kQueries, length - first);
  float largest[kQueries], sums[kQueries];
  for (uint r = 0; r < kQueries; ++r) {
    largest[r] = kLowest;
    sums[r] = 0.0;
  }
  for (uint j = gl_LocalInvocationID.x; j < length; j += gl_WorkGroupSize.x) {
    float scores[kQueries];
    score(head, j, scores);
    for (uint r = 0; r < kQueries; ++r) {
      const float raised = max(largest[r], scores[r]);
      sums[r] = sums[r] * exp(largest[r] - raised) + exp(scores[r] - raised);
      largest[r] = raised;
      if (r < rows) maps.at[(head * length + first + r) * length + j] = scores[r];
    }
  }
  for (uint r = 0; r < kQueries; ++r) {
    const float row_largest = workgroup_max(largest[r]);
    sums[r] = workgroup_sum(sums[r] * exp(largest[r] - row_largest));
    largest[r] = row_largest;
  }
  for (uint r = 0; r < rows; ++r) {
    const uint row = (head * length + first + r) * length;
    for (uint j = gl_LocalInvocationID.x; j < length; j += gl_WorkGroupSize.x) {
      maps.at[row + j] = exp(maps.at[row + j] - largest[r]) / sums[r];
    }
  }
}

void main() {
  for (uint head = gl_WorkGroupID.y; head < heads; head += gl_NumWorkGroups.y) {
    map_rows(head, gl_WorkGroupID.x * kQueries);
  }
}
