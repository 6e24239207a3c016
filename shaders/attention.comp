#version 450
// Bidirectional attention inside each packed sequence, for each head: out = softmax(q k^T) v, without the scores ever
// being in memory: online softmax (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention), fp32 throughout.
//
//   q, k, v [tokens, heads, head_dim] D, cu_seqlens [sequences + 1] i32 -> out [tokens, heads, head_dim] any
//   head_dim is a multiple of 8, at most 256; q is already scaled
//
// A workgroup takes QUERIES x LANES queries of one head and sequence (grid: query blocks, heads, sequences) and walks
// over the sequence's keys in tiles of KEYS, in shared memory as fp32. A query belongs to SLICES invocations, each of
// which keeps SLICE of its head_dim elements of q and of the sum in registers, for QUERIES queries, so that what it
// reads from a tile is used that often. Neighbouring invocations have neighbouring queries and one slice: all of them
// read the same word of a tile. The slices' shares of a score meet in shared memory. Tiles begin at the sequence's
// first key and a query's arithmetic depends on head_dim alone, so its result does not depend on the batch.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"

layout(local_size_x_id = 0) in;  // LANES x SLICES

layout(constant_id = 1) const uint DTYPE = DTYPE_F32;  // of q, k and v
layout(constant_id = 2) const uint HEAD_DIM = 64;
layout(constant_id = 3) const uint SLICE = 32;   // a multiple of 4; SLICES x SLICE >= HEAD_DIM, zeros beyond that
layout(constant_id = 4) const uint SLICES = 2;
layout(constant_id = 5) const uint LANES = 64;
layout(constant_id = 6) const uint QUERIES = 2;
layout(constant_id = 7) const uint KEYS = 16;
layout(constant_id = 8) const uint RESULT_DTYPE = DTYPE_F32;

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
const uint kHeld = QUERIES * kFours;     // of q and of the sum, in vec4: [query][four]
const uint kScores = QUERIES * KEYS;     // [query][key]
shared vec4 k_tile[KEYS * kPitch];
shared vec4 v_tile[KEYS * kPitch];
shared float score_shares[SLICES == 1 ? 1 : kScores * SLICES * LANES];  // [query][key][slice][lane]

const float kLog2E = 1.44269504089;
const float kLowest = -1e30;  // below every score; finite, because infinities need not work

vec4 load_four(Words tensor, uint row, uint head, uint dim) {
  return dim < HEAD_DIM ? load4(tensor, DTYPE, (row * heads + head) * HEAD_DIM + dim) : vec4(0.0);
}

// Keys and values first .. first + KEYS of the packed rows, zeros at `end` and beyond.
void load_tiles(uint head, uint first, uint end) {
  barrier();  // the previous tiles have been used
  for (uint i = gl_LocalInvocationID.x; i < KEYS * kPitch; i += LANES * SLICES) {
    const uint row = first + i / kPitch, dim = 4 * (i % kPitch);
    k_tile[i] = row < end ? load_four(k, row, head, dim) : vec4(0.0);
    v_tile[i] = row < end ? load_four(v, row, head, dim) : vec4(0.0);
  }
  barrier();
}

float fma_dot(vec4 a, vec4 b, float sum) {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

void score_tile(vec4 held_q[kHeld], uint slice, out float scores[kScores]) {
  for (uint i = 0; i < kScores; ++i) scores[i] = 0.0;
  for (uint j = 0; j < KEYS; ++j) {
    for (uint c = 0; c < kFours; ++c) {
      const vec4 key = k_tile[j * kPitch + slice * kFours + c];
      for (uint r = 0; r < QUERIES; ++r) {
        scores[r * KEYS + j] = fma_dot(held_q[r * kFours + c], key, scores[r * KEYS + j]);
      }
    }
  }
}

// Adds up the slices' shares of each score, in the same order in all invocations of a query.
void combine_scores(uint lane, uint slice, inout float scores[kScores]) {
  for (uint i = 0; i < kScores; ++i) score_shares[(i * SLICES + slice) * LANES + lane] = scores[i];
  barrier();
  for (uint i = 0; i < kScores; ++i) {
    scores[i] = 0.0;
    for (uint s = 0; s < SLICES; ++s) scores[i] += score_shares[(i * SLICES + s) * LANES + lane];
  }
}

// Turns the scores of `keys` keys into weights exp2(score - largest) after raising `largest` to the highest of them,
// and brings what was summed before into line.
void weigh_tile(uint keys, inout float scores[kScores], inout float largest[QUERIES], inout float weight_sum[QUERIES],
                inout vec4 sum[kHeld]) {
  for (uint r = 0; r < QUERIES; ++r) {
    float raised = largest[r];
    for (uint j = 0; j < KEYS; ++j) {
      if (j >= keys) scores[r * KEYS + j] = kLowest;
      raised = max(raised, scores[r * KEYS + j]);
    }
    const float correction = exp2(largest[r] - raised);
    largest[r] = raised;
    weight_sum[r] *= correction;
    for (uint c = 0; c < kFours; ++c) sum[r * kFours + c] *= correction;
    for (uint j = 0; j < KEYS; ++j) {
      scores[r * KEYS + j] = exp2(scores[r * KEYS + j] - raised);
      weight_sum[r] += scores[r * KEYS + j];
    }
  }
}

void add_values(float weights[kScores], uint slice, inout vec4 sum[kHeld]) {
  for (uint j = 0; j < KEYS; ++j) {
    for (uint c = 0; c < kFours; ++c) {
      const vec4 value = v_tile[j * kPitch + slice * kFours + c];
      for (uint r = 0; r < QUERIES; ++r) {
        sum[r * kFours + c] = fma(vec4(weights[r * KEYS + j]), value, sum[r * kFours + c]);
      }
    }
  }
}

void main() {
  const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z;
  const uint begin = uint(cu_seqlens.at[sequence]), end = uint(cu_seqlens.at[sequence + 1]);
  const uint first_row = begin + gl_WorkGroupID.x * QUERIES * LANES;
  if (first_row >= end) return;  // the whole workgroup

  const uint lane = gl_LocalInvocationID.x % LANES;
  const uint slice = SLICES == 1 ? 0 : gl_LocalInvocationID.x / LANES;
  vec4 held_q[kHeld], sum[kHeld];
  float largest[QUERIES], weight_sum[QUERIES];  // of the scores so far, in units of log 2; of exp2(score - largest)
  for (uint r = 0; r < QUERIES; ++r) {
    const uint row = min(first_row + r * LANES + lane, end - 1);  // a row beyond the end is computed, but not stored
    for (uint c = 0; c < kFours; ++c) {
      held_q[r * kFours + c] = load_four(q, row, head, slice * SLICE + 4 * c) * kLog2E;
      sum[r * kFours + c] = vec4(0.0);
    }
    largest[r] = kLowest;
    weight_sum[r] = 0.0;
  }

  for (uint first = begin; first < end; first += KEYS) {
    load_tiles(head, first, end);
    float scores[kScores];
    score_tile(held_q, slice, scores);
    if (SLICES > 1) combine_scores(lane, slice, scores);
    weigh_tile(end - first, scores, largest, weight_sum, sum);
    add_values(scores, slice, sum);
  }

  for (uint r = 0; r < QUERIES; ++r) {
    const uint row = first_row + r * LANES + lane;
    if (row >= end) break;
    for (uint c = 0; c < kFours; ++c) {
      const uint dim = slice * SLICE + 4 * c;
      if (dim >= HEAD_DIM) break;
      store4(result, RESULT_DTYPE, (row * heads + head) * HEAD_DIM + dim, sum[r * kFours + c] / weight_sum[r]);
    }
  }
}
