// Drawing the next residues on the CPU.
#include "runtime/cpu/kernel_tools.h"
#include "runtime/cpu/variant.h"
#include "runtime/operation_rules.h"
#include "runtime/random.h"

namespace turboesm::cpu::TURBOESM_CPU_VARIANT {
namespace {

// The position among the candidates of the residue that `uniform` in [0, 1) draws from softmax(scores / temperature),
// cut to the likeliest that together reach top_p; the likeliest one at temperature 0. Of equals the first comes first.
uint32_t draw(const float* scores, uint32_t count, float temperature, float top_p, float uniform) {
  float weights[kMaxCandidates];
  uint32_t order[kMaxCandidates];  // by weight, descending
  for (uint32_t i = 0; i < count; ++i) {
    uint32_t place = i;
    for (; place > 0 && scores[order[place - 1]] < scores[i]; --place) order[place] = order[place - 1];
    order[place] = i;
  }
  if (temperature == 0) return order[0];
  float sum = 0, kept_sum = 0, drawn_sum = 0;
  for (uint32_t i = 0; i < count; ++i) sum += weights[i] = std::exp((scores[i] - scores[order[0]]) / temperature);
  uint32_t kept = 0;
  while (kept < count && (kept == 0 || kept_sum < top_p * sum)) kept_sum += weights[order[kept++]];
  for (uint32_t k = 0; k + 1 < kept; ++k) {
    drawn_sum += weights[order[k]];
    if (uniform * kept_sum < drawn_sum) return order[k];
  }
  return order[kept - 1];
}

}  // namespace

void sample(const Sample& a, Range sequences) {
  const int32_t* candidates = as<const int32_t>(a.candidates);
  for (uint64_t b = sequences.begin; b < sequences.end; ++b) {
    if (as<const int32_t>(a.active)[b] <= 0) continue;
    int32_t* positions = as<int32_t>(a.positions) + 2 * b;
    int32_t* append = as<int32_t>(a.appends) + 3 * b;
    const float* logits = as<const float>(a.logits) + (2 * b + 1) * a.vocab;
    const int32_t position = positions[1];
    float scores[kMaxCandidates];
    for (uint32_t i = 0; i < a.candidate_count; ++i) scores[i] = logits[candidates[i]];

    int32_t& residue = as<int32_t>(a.tokens)[b * a.capacity + uint64_t(position)];
    if (residue < 0) {
      const float uniform = random_uniform(a.seed, a.first_stream + uint32_t(b), uint32_t(position));
      residue = candidates[draw(scores, a.candidate_count, a.temperature, a.top_p, uniform)];
    }
    const float largest = max_of(scores, a.candidate_count);
    const float sum = exponentiate(scores, a.candidate_count, largest);
    as<float>(a.log_probability)[b] += logits[residue] - largest - std::log(sum);

    if (residue == a.stop_id || position + 1 == as<const int32_t>(a.limits)[b]) {
      as<int32_t>(a.active)[b] = 0;
      append[2] = 0;
      continue;
    }
    as<int32_t>(a.ids)[2 * b] = residue;
    positions[0] = position;
    positions[1] = position + 1;
    append[0] = int32_t(2 * b);
    append[1] = position;
    append[2] = 1;
    as<int32_t>(a.lengths)[b] = position + 1;
  }
}

}  // namespace turboesm::cpu::TURBOESM_CPU_VARIANT
