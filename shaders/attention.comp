#version 450
// Bidirectional attention inside each packed sequence, for each head: out = softmax(q k^T) v, without the scores ever
// being in memory: online softmax (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention), fp32 throughout.
//
//   q, k, v [tokens, heads, head_dim] D, cu_seqlens [sequences + 1] i32 -> out [tokens, heads, head_dim] D
//   head_dim is a multiple of 8, at most 256; q is already scaled
//
// A workgroup takes QUERIES queries of one head and sequence (grid: query blocks, heads, sequences) and walks over the
// sequence's keys in tiles of KEYS, in shared memory as fp32. A query belongs to SLICES invocations, each of which keeps
// SLICE of its head_dim elements of q and of the sum in registers: neighbouring invocations have neighbouring queries and
// one slice, so all of them read the same word of a tile. The slices' shares of a score meet in shared memory. Tiles begin
// at the sequence's first key, so the result does not depend on the batch.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"

layout(local_size_x_id = 0) in;  // QUERIES x SLICES

layout(constant_id = 1) const uint DTYPE = DTYPE_F32;
layout(constant_id = 2) const uint HEAD_DIM = 64;
layout(constant_id = 3) const uint SLICE = 32;   // a multiple of 4; SLICES x SLICE >= HEAD_DIM, zeros beyond that
layout(constant_id = 4) const uint SLICES = 2;
layout(constant_id = 5) const uint QUERIES = 64;
layout(constant_id = 6) const uint KEYS = 16;

layout(push_constant, scalar) uniform Push {
  Words q;
  Words k;
  Words v;
  Ints cu_seqlens;
  Words result;
  uint heads;
};

const uint kFours = SLICE / 4;           // of a slice
const uint kPitch = SLICES * SLICE / 4;  // of a row of a tile, in vec4
shared vec4 k_tile[KEYS * kPitch];
shared vec4 v_tile[KEYS * kPitch];
shared float score_shares[SLICES == 1 ? 1 : KEYS * SLICES * QUERIES];  // [key][slice][query]

const float kLog2E = 1.44269504089;
const float kLowest = -1e30;  // below every score; finite, because infinities need not work

vec4 load_four(Words tensor, uint row, uint head, uint dim) {
  return dim < HEAD_DIM ? load4(tensor, DTYPE, (row * heads + head) * HEAD_DIM + dim) : vec4(0.0);
}

// Keys and values first .. first + KEYS of the packed rows, zeros at `end` and beyond.
void load_tiles(uint head, uint first, uint end) {
  barrier();  // the previous tiles have been used
  for (uint i = gl_LocalInvocationID.x; i < KEYS * kPitch; i += QUERIES * SLICES) {
    const uint row = first + i / kPitch, dim = 4 * (i % kPitch);
    k_tile[i] = row < end ? load_four(k, row, head, dim) : vec4(0.0);
    v_tile[i] = row < end ? load_four(v, row, head, dim) : vec4(0.0);
  }
  barrier();
}

// Adds up the slices' shares of each score, in the same order in all invocations of a query.
void combine_scores(inout float scores[KEYS], uint query, uint slice) {
  for (uint j = 0; j < KEYS; ++j) score_shares[(j * SLICES + slice) * QUERIES + query] = scores[j];
  barrier();
  for (uint j = 0; j < KEYS; ++j) {
    scores[j] = 0.0;
    for (uint s = 0; s < SLICES; ++s) scores[j] += score_shares[(j * SLICES + s) * QUERIES + query];
  }
}

float fma_dot(vec4 a, vec4 b, float sum) {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

void main() {
  const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z;
  const uint begin = uint(cu_seqlens.at[sequence]), end = uint(cu_seqlens.at[sequence + 1]);
  if (begin + gl_WorkGroupID.x * QUERIES >= end) return;  // the whole workgroup

  const uint query = gl_LocalInvocationID.x % QUERIES;
  const uint slice = SLICES == 1 ? 0 : gl_LocalInvocationID.x / QUERIES;
  const uint row = begin + gl_WorkGroupID.x * QUERIES + query;  // may lie beyond the sequence: computed, not stored
  vec4 held_q[kFours], sum[kFours];
  for (uint c = 0; c < kFours; ++c) {
    held_q[c] = load_four(q, min(row, end - 1), head, slice * SLICE + 4 * c) * kLog2E;
    sum[c] = vec4(0.0);
  }
  float largest = kLowest, weight_sum = 0.0;  // of the scores so far, in units of log 2; of exp2(score - largest)

  for (uint first = begin; first < end; first += KEYS) {
    load_tiles(head, first, end);
    float scores[KEYS];
    for (uint j = 0; j < KEYS; ++j) {
      scores[j] = 0.0;
      for (uint c = 0; c < kFours; ++c) {
        scores[j] = fma_dot(held_q[c], k_tile[j * kPitch + slice * kFours + c], scores[j]);
      }
    }
    if (SLICES > 1) combine_scores(scores, query, slice);

    float raised = largest;
    for (uint j = 0; j < KEYS; ++j) {
      if (first + j >= end) scores[j] = kLowest;
      raised = max(raised, scores[j]);
    }
    const float correction = exp2(largest - raised);
    largest = raised;
    weight_sum *= correction;
    for (uint c = 0; c < kFours; ++c) sum[c] *= correction;
    for (uint j = 0; j < KEYS; ++j) {
      const float weight = exp2(scores[j] - raised);
      weight_sum += weight;
      for (uint c = 0; c < kFours; ++c) sum[c] = fma(vec4(weight), v_tile[j * kPitch + slice * kFours + c], sum[c]);
    }
  }

  if (row >= end) return;
  for (uint c = 0; c < kFours; ++c) {
    const uint dim = slice * SLICE + 4 * c;
    if (dim < HEAD_DIM) store4(result, DTYPE, (row * heads + head) * HEAD_DIM + dim, sum[c] / weight_sum);
  }
}
