#version 450
// attention.comp's operation, for devices whose invocations are the lanes of a processor's vectors (software drivers):
// no shared memory and no barrier, which cost such a device more than loads from its caches do.
//
//   q, k, v [tokens, heads, head_dim] D, cu_seqlens [sequences + 1] i32 -> out [tokens, heads, head_dim] any
//   A row of a head is a multiple of 8 LANES bytes; q is already scaled.
//
// A workgroup is one subgroup. It takes QUERIES queries of one head and sequence (grid: query blocks, heads, sequences)
// and walks over the sequence's keys in blocks of KEYS x LANES. Of the scores an invocation keeps those of its own
// keys, of the sum over values those of its own dimensions; what belongs to another lane comes by broadcast. A query's
// arithmetic depends on head_dim and its sequence alone, so its result does not depend on the batch.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"

layout(local_size_x_id = 0) in;  // LANES

layout(constant_id = 0) const uint LANES = 8;  // the subgroup's size
layout(constant_id = 1) const uint DTYPE = DTYPE_F32;  // of q, k and v
layout(constant_id = 2) const uint HEAD_DIM = 64;
layout(constant_id = 3) const uint QUERIES = 16;
layout(constant_id = 4) const uint KEYS = 4;
layout(constant_id = 5) const uint RESULT_DTYPE = DTYPE_F32;

#include "lanes.glsl"

layout(push_constant, scalar) uniform Push {
  Words q;
  Words k;
  Words v;
  Ints cu_seqlens;
  Words result;
  uint heads;
};

const uint kLongs = HEAD_DIM / kValues;                // of a row of a head
const uint kSlots = kLongs / LANES;  // of those, of one invocation
const uint kOwn = kSlots * kValues;                    // dimensions of one invocation
const uint kScores = QUERIES * KEYS;
const uint kSums = QUERIES * kOwn;
const uint kFactors = LANES * kValues * KEYS;
const uint kRowBlock = 4;  // queries scored at a time: chains of sums for the latency of additions; divides QUERIES
const uint kTogether = 4;  // keys whose values are added to a query's sums at a time; divides LANES

const float kLog2E = 1.44269504089;
const float kLowest = -1e30;  // below every score; finite, because infinities need not work

// Of a row of q, k or v, in units of 8 bytes.
uint row_at(uint row, uint head) { return (row * heads + head) * kLongs; }

// scores[query][key] of queries first_row .. and of this invocation's keys of the block that begins at `key`.
void score_block(uint head, uint first_row, uint key, uint end, inout float scores[kScores]) {
  for (uint i = 0; i < kScores; ++i) scores[i] = 0.0;
  uint k_at[KEYS];
  [[unroll]] for (uint j = 0; j < KEYS; ++j) {
    k_at[j] = row_at(min(key + gl_SubgroupInvocationID + j * LANES, end - 1), head);
  }
  [[dont_unroll]] for (uint c = 0; c < kLongs; c += LANES) {
    float factors[kFactors];
    [[unroll]] for (uint j = 0; j < KEYS; ++j) {
      [[unroll]] for (uint l = 0; l < LANES; ++l) {
        const vec4 values = widen(Longs(k).at[k_at[j] + c + l]);
        [[unroll]] for (uint i = 0; i < kValues; ++i) factors[(l * kValues + i) * KEYS + j] = values[i];
      }
    }
    [[unroll]] for (uint first = 0; first < QUERIES; first += kRowBlock) {
      vec4 values[kRowBlock];
      [[unroll]] for (uint r = 0; r < kRowBlock; ++r) {
        values[r] = widen(Longs(q).at[row_at(min(first_row + first + r, end - 1), head) + c + gl_SubgroupInvocationID]);
      }
      [[unroll]] for (uint l = 0; l < LANES; ++l) {
        [[unroll]] for (uint i = 0; i < kValues; ++i) {
          [[unroll]] for (uint r = 0; r < kRowBlock; ++r) {
            const float factor = subgroupBroadcast(values[r][i], l);
            [[unroll]] for (uint j = 0; j < KEYS; ++j) {
              const uint at = (first + r) * KEYS + j;
              scores[at] = fma(factor, factors[(l * kValues + i) * KEYS + j], scores[at]);
            }
          }
        }
      }
    }
  }
}

// Turns the scores of the block's `count` keys into weights exp2(score - largest), in units of log 2, after raising
// `largest` to the highest of them, and brings what was summed before into line. weight_sum is of own keys alone.
void weigh_block(uint count, inout float scores[kScores], inout float largest[QUERIES],
                 inout float weight_sum[QUERIES], inout float sums[kSums]) {
  [[unroll]] for (uint r = 0; r < QUERIES; ++r) {
    float own[KEYS];
    float highest = kLowest;
    [[unroll]] for (uint j = 0; j < KEYS; ++j) {
      const bool is_key = gl_SubgroupInvocationID + j * LANES < count;
      own[j] = is_key ? scores[r * KEYS + j] * kLog2E : kLowest;
      highest = max(highest, own[j]);
    }
    float raised = largest[r];
    [[unroll]] for (uint l = 0; l < LANES; ++l) raised = max(raised, subgroupBroadcast(highest, l));
    const float correction = exp2(largest[r] - raised);
    largest[r] = raised;
    float sum = weight_sum[r] * correction;
    [[unroll]] for (uint j = 0; j < KEYS; ++j) {
      own[j] = exp2(own[j] - raised);
      sum += own[j];
      scores[r * KEYS + j] = own[j];
    }
    weight_sum[r] = sum;
    [[unroll]] for (uint i = 0; i < kOwn; ++i) sums[r * kOwn + i] *= correction;
  }
}

void add_values(uint head, uint key, uint end, float weights[kScores], inout float sums[kSums]) {
  [[unroll]] for (uint j = 0; j < KEYS; ++j) {
    [[unroll]] for (uint first = 0; first < LANES; first += kTogether) {
      float values[kTogether * kOwn];
      [[unroll]] for (uint l = 0; l < kTogether; ++l) {
        const uint at = row_at(min(key + j * LANES + first + l, end - 1), head);
        [[unroll]] for (uint s = 0; s < kSlots; ++s) {
          const vec4 four = widen(Longs(v).at[at + gl_SubgroupInvocationID + s * LANES]);
          [[unroll]] for (uint i = 0; i < kValues; ++i) values[l * kOwn + s * kValues + i] = four[i];
        }
      }
      [[unroll]] for (uint r = 0; r < QUERIES; ++r) {
        [[unroll]] for (uint l = 0; l < kTogether; ++l) {
          const float weight = subgroupBroadcast(weights[r * KEYS + j], first + l);
          [[unroll]] for (uint i = 0; i < kOwn; ++i) {
            sums[r * kOwn + i] = fma(weight, values[l * kOwn + i], sums[r * kOwn + i]);
          }
        }
      }
    }
  }
}

void main() {
  const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z;
  const uint begin = uint(cu_seqlens.at[sequence]), end = uint(cu_seqlens.at[sequence + 1]);
  const uint first_row = begin + gl_WorkGroupID.x * QUERIES;
  if (first_row >= end) return;  // the whole workgroup

  float sums[kSums];
  float largest[QUERIES], weight_sum[QUERIES];  // of the scores so far, in units of log 2; of exp2(score - largest)
  [[unroll]] for (uint i = 0; i < kSums; ++i) sums[i] = 0.0;
  [[unroll]] for (uint r = 0; r < QUERIES; ++r) {
    largest[r] = kLowest;
    weight_sum[r] = 0.0;
  }
  [[dont_unroll]] for (uint key = begin; key < end; key += KEYS * LANES) {
    float scores[kScores];
    score_block(head, first_row, key, end, scores);
    weigh_block(end - key, scores, largest, weight_sum, sums);
    add_values(head, key, end, scores, sums);
  }
  [[unroll]] for (uint r = 0; r < QUERIES; ++r) {
    if (first_row + r >= end) return;
    float sum = 0.0;
    [[unroll]] for (uint l = 0; l < LANES; ++l) sum += subgroupBroadcast(weight_sum[r], l);
    const uint at = ((first_row + r) * heads + head) * HEAD_DIM;
    [[unroll]] for (uint s = 0; s < kSlots; ++s) {
      const uint own = gl_SubgroupInvocationID + s * LANES;
      [[unroll]] for (uint i = 0; i < kValues; i += 2) {
        const uint value = r * kOwn + s * kValues + i;
        store_pair(result, RESULT_DTYPE, at + own * kValues + i, vec2(sums[value], sums[value + 1]) / sum);
      }
    }
  }
}
