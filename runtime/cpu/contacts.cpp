// The contact head on the CPU: attention maps, and what is made of them.
#include "runtime/cpu/kernel_tools.h"
#include "runtime/cpu/variant.h"

namespace turboesm::cpu::TURBOESM_CPU_VARIANT {

void attention_maps(const AttentionMaps& a, Range rows) {
  static thread_local Scratch scratch;
  const uint64_t d = a.head_dim, width = uint64_t(a.heads) * d;
  float* q = scratch.get(2 * d);
  float* k = q + d;
  for (uint64_t item = rows.begin; item < rows.end; ++item) {
    const uint64_t head = item / a.length, row = item % a.length;
    float* out = as<float>(a.out) + item * a.length;
    load(a.q, (a.begin + row) * width + head * d, d, q);
    for (uint64_t j = 0; j < a.length; ++j) {
      load(a.k, (a.begin + j) * width + head * d, d, k);
      out[j] = sum_of(d, [=](uint64_t i) { return q[i] * k[i]; });
    }
    const float sum = exponentiate(out, a.length, max_of(out, a.length));
    for (uint64_t j = 0; j < a.length; ++j) out[j] /= sum;
  }
}

void contact_sums(const ContactSums& a, Range heads) {
  const uint64_t residues = a.length - 2;
  for (uint64_t head = heads.begin; head < heads.end; ++head) {
    const float* map = as<const float>(a.maps) + head * a.length * a.length;
    float* sums = as<float>(a.sums) + head * (residues + 1);
    for (uint64_t i = 0; i < residues; ++i)
      sums[i] = sum_of(residues, [=, length = uint64_t(a.length)](uint64_t j) {
        return map[(i + 1) * length + j + 1] + map[(j + 1) * length + i + 1];
      });
    sums[residues] = sum_of(residues, [=](uint64_t i) { return sums[i]; });
  }
}

void contact_accumulate(const ContactAccumulate& a, Range rows) {
  const uint64_t residues = a.length - 2, length = a.length;
  for (uint64_t i = rows.begin; i < rows.end; ++i) {
    float* logits = as<float>(a.logits) + i * residues;
    for (uint64_t head = 0; head < a.heads; ++head) {
      const float* map = as<const float>(a.maps) + head * length * length;
      const float* sums = as<const float>(a.sums) + head * (residues + 1);
      const float weight = as<const float>(a.weight)[head], share = sums[i] / sums[residues];
      for (uint64_t j = 0; j < residues; ++j) {
        const float symmetric = map[(i + 1) * length + j + 1] + map[(j + 1) * length + i + 1];
        logits[j] += weight * (symmetric - share * sums[j]);
      }
    }
  }
}

}  // namespace turboesm::cpu::TURBOESM_CPU_VARIANT
