// Chooses each sequence's next residue and moves its state on (Sample in runtime/kv_operations.h).
//
// A block takes a sequence, a thread a candidate: it finds the candidate's place in the order of falling scores, of
// equals the first first, and its weight. The first thread does the rest, which is a few sums.
#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/random.cuh"
#include "runtime/operation_rules.h"

namespace turboesm::cuda {
namespace {

struct SampleArguments {
  const float* logits;
  const int32_t *candidates, *limits;
  int32_t* tokens;
  float* log_probability;
  int32_t *ids, *positions, *appends, *lengths, *active;
  uint32_t vocab, count, capacity, seed, first_stream;
  float temperature, top_p;
  int32_t stop_id;
};

struct Ranked {
  float scores[kMaxCandidates];    // by candidate
  uint32_t order[kMaxCandidates];  // candidates by falling score
  float weights[kMaxCandidates];   // in that order: exp((score - largest) / temperature)
  float shares[kMaxCandidates];    // in that order: exp(score - largest)
};

__device__ void rank_candidates(const SampleArguments& a, const float* logits, Ranked& r) {
  const uint32_t own = threadIdx.x;
  if (own < a.count) r.scores[own] = logits[a.candidates[own]];
  __syncthreads();
  if (own < a.count) {
    uint32_t place = 0;
    for (uint32_t i = 0; i < a.count; ++i)
      place += r.scores[i] > r.scores[own] || (r.scores[i] == r.scores[own] && i < own) ? 1 : 0;
    r.order[place] = own;
  }
  __syncthreads();
  if (own < a.count) {
    const float below = r.scores[r.order[own]] - r.scores[r.order[0]];
    r.shares[own] = expf(below);
    r.weights[own] = a.temperature == 0 ? 0.0f : expf(below / a.temperature);
  }
  __syncthreads();
}

// The residue that a uniform number in [0, 1) draws.
__device__ int32_t draw(const SampleArguments& a, const Ranked& r, float uniform) {
  if (a.temperature == 0) return a.candidates[r.order[0]];
  float sum = 0, kept_sum = 0, drawn_sum = 0;
  for (uint32_t i = 0; i < a.count; ++i) sum += r.weights[i];
  uint32_t kept = 0, k = 0;
  while (kept < a.count && (kept == 0 || kept_sum < a.top_p * sum)) kept_sum += r.weights[kept++];
  for (; k + 1 < kept; ++k) {
    drawn_sum += r.weights[k];
    if (uniform * kept_sum < drawn_sum) break;
  }
  return a.candidates[r.order[k]];
}

__global__ void __launch_bounds__(kMaxCandidates) sample(const SampleArguments a) {
  __shared__ Ranked ranked;
  let_next_start();
  wait_for_inputs();
  const uint32_t b = blockIdx.x;
  if (a.active[b] <= 0) return;
  const float* logits = a.logits + (2 * uint64_t(b) + 1) * a.vocab;
  rank_candidates(a, logits, ranked);
  if (threadIdx.x != 0) return;

  const int32_t position = a.positions[2 * b + 1];
  int32_t& residue = a.tokens[uint64_t(b) * a.capacity + uint32_t(position)];
  if (residue < 0) residue = draw(a, ranked, random_uniform(a.seed, a.first_stream + b, uint32_t(position)));
  float sum = 0;
  for (uint32_t i = 0; i < a.count; ++i) sum += ranked.shares[i];
  a.log_probability[b] += logits[residue] - ranked.scores[ranked.order[0]] - logf(sum);

  if (residue == a.stop_id || position + 1 == a.limits[b]) {
    a.active[b] = 0;
    a.appends[3 * b + 2] = 0;
    return;
  }
  a.ids[2 * b] = residue;
  a.positions[2 * b] = position;
  a.positions[2 * b + 1] = position + 1;
  a.appends[3 * b] = int32_t(2 * b);
  a.appends[3 * b + 1] = position;
  a.appends[3 * b + 2] = 1;
  a.lengths[b] = position + 1;
}

}  // namespace

void launch(const Sample& a, const Launch& l) {
  const SampleArguments arguments{.logits = pointer<const float>(a.logits),
                                  .candidates = pointer<const int32_t>(a.candidates),
                                  .limits = pointer<const int32_t>(a.limits),
                                  .tokens = pointer<int32_t>(a.tokens),
                                  .log_probability = pointer<float>(a.log_probability),
                                  .ids = pointer<int32_t>(a.ids),
                                  .positions = pointer<int32_t>(a.positions),
                                  .appends = pointer<int32_t>(a.appends),
                                  .lengths = pointer<int32_t>(a.lengths),
                                  .active = pointer<int32_t>(a.active),
                                  .vocab = a.vocab,
                                  .count = a.candidate_count,
                                  .capacity = a.capacity,
                                  .seed = a.seed,
                                  .first_stream = a.first_stream,
                                  .temperature = a.temperature,
                                  .top_p = a.top_p,
                                  .stop_id = a.stop_id};
  start(sample, a.sequences, kMaxCandidates, 0, l, arguments);
}

}  // namespace turboesm::cuda
