#version 450
// Chooses each sequence's next residue and moves its state on (runtime/kv_operations.h). Sequence b, active, stands at
// p = positions[2 b + 1]. tokens[b, p] says its residue, or else, below 0, it is drawn from softmax(scores /
// temperature), the scores being the candidates' logits of row 2 b + 1, cut to the likeliest that together reach top_p.
//
//   logits [sequences x 2, vocab] f32, candidates [candidate_count] i32, limits [sequences] i32
//   -> tokens [sequences, capacity], ids, positions [sequences, 2], appends [sequences, 3], lengths, active [sequences]
//      i32, log_probability [sequences] f32
//
// A workgroup takes a sequence, an invocation a candidate: it finds the candidate's place in the order of falling
// scores, of equals the first first, and its weight. The first invocation does the rest, which is a few sums.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"
#include "random.glsl"

const uint MOST = 64;  // candidates
layout(local_size_x = MOST) in;

layout(push_constant, scalar) uniform Push {
  Floats logits;
  Ints candidates;
  Ints limits;
  Ints tokens;
  Floats log_probability;
  Ints ids;
  Ints positions;
  Ints appends;
  Ints lengths;
  Ints active_flags;
  uint vocab;
  uint candidate_count;
  uint capacity;
  uint seed;
  uint first_stream;
  float temperature;
  float top_p;
  int stop_id;
};

shared float scores[MOST];   // by candidate
shared uint order[MOST];     // candidates by falling score
shared float weights[MOST];  // in that order: exp((score - largest) / temperature)
shared float shares[MOST];   // in that order: exp(score - largest)

void rank_candidates(uint row) {
  const uint own = gl_LocalInvocationID.x;
  if (own < candidate_count) scores[own] = logits.at[row * vocab + uint(candidates.at[own])];
  order[own] = own;
  barrier();
  if (own < candidate_count) {
    uint place = 0;
    for (uint i = 0; i < candidate_count; ++i) {
      if (scores[i] > scores[own] || (scores[i] == scores[own] && i < own)) ++place;
    }
    order[place] = own;
  }
  barrier();
  if (own < candidate_count) {
    const float below = scores[order[own]] - scores[order[0]];
    shares[own] = exp(below);
    weights[own] = temperature == 0.0 ? 0.0 : exp(below / temperature);
  }
  barrier();
}

// The residue that a uniform number in [0, 1) draws.
int draw(float uniform_number) {
  if (temperature == 0.0) return candidates.at[order[0]];
  float sum = 0.0, kept_sum = 0.0, drawn_sum = 0.0;
  for (uint i = 0; i < candidate_count; ++i) sum += weights[i];
  uint kept = 0;
  while (kept < candidate_count && (kept == 0 || kept_sum < top_p * sum)) kept_sum += weights[kept++];
  uint k = 0;
  for (; k + 1 < kept; ++k) {
    drawn_sum += weights[k];
    if (uniform_number * kept_sum < drawn_sum) break;
  }
  return candidates.at[order[k]];
}

void main() {
  const uint b = gl_WorkGroupID.x, row = 2 * b + 1;
  if (active_flags.at[b] <= 0) return;
  rank_candidates(row);
  if (gl_LocalInvocationID.x != 0) return;

  const int position = positions.at[row];
  const uint at = b * capacity + uint(position);
  int residue = tokens.at[at];
  if (residue < 0) {
    residue = draw(random_uniform(seed, first_stream + b, uint(position)));
    tokens.at[at] = residue;
  }
  float sum = 0.0;
  for (uint i = 0; i < candidate_count; ++i) sum += shares[i];
  log_probability.at[b] += logits.at[row * vocab + uint(residue)] - scores[order[0]] - log(sum);

  if (residue == stop_id || position + 1 == limits.at[b]) {
    active_flags.at[b] = 0;
    appends.at[3 * b + 2] = 0;
    return;
  }
  ids.at[2 * b] = residue;
  positions.at[2 * b] = position;
  positions.at[row] = position + 1;
  appends.at[3 * b] = int(2 * b);
  appends.at[3 * b + 1] = position;
  appends.at[3 * b + 2] = 1;
  lengths.at[b] = position + 1;
}
