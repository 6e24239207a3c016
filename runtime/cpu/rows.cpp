// Operations on rows and sequences on the CPU: token dropout, embedding, LayerNorm, means.
#include "runtime/cpu/kernel_tools.h"
#include "runtime/cpu/variant.h"

namespace turboesm::cpu::TURBOESM_CPU_VARIANT {
namespace {

// Sequence of a packed token: the last b with cu_seqlens[b] <= token, empty sequences skipped.
uint32_t sequence_of(const int32_t* cu_seqlens, uint32_t sequences, uint32_t token) {
  uint32_t low = 0, high = sequences;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (uint32_t(cu_seqlens[middle]) <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}

}  // namespace

void token_dropout(const TokenDropout& a, Range sequences) {
  constexpr float kTrainedMaskRatio = 0.15f * 0.8f;
  const int32_t* ids = as<const int32_t>(a.ids);
  const int32_t* cu_seqlens = as<const int32_t>(a.cu_seqlens);
  for (uint64_t b = sequences.begin; b < sequences.end; ++b) {
    const int32_t length = cu_seqlens[b + 1] - cu_seqlens[b];
    int32_t masks = 0;
    for (int32_t t = cu_seqlens[b]; t < cu_seqlens[b + 1]; ++t) masks += ids[t] == a.mask_id;
    const float kept = length ? 1.0f - float(masks) / float(length) : 0.0f;
    as<float>(a.scale)[b] = masks < length ? (1.0f - kTrainedMaskRatio) / kept : 0.0f;
  }
}

void embed(const Embed& a, Range tokens) {
  const int32_t* ids = as<const int32_t>(a.ids);
  const int32_t* cu_seqlens = as<const int32_t>(a.cu_seqlens);
  for (uint64_t t = tokens.begin; t < tokens.end; ++t) {
    float* out = as<float>(a.out) + t * a.width;
    const int32_t id = ids[t];
    const bool known = id >= 0 && uint32_t(id) < a.vocab;
    load(a.table, uint64_t(known ? id : a.unk_id) * a.width, a.width, out);
    if (!a.scale) continue;
    const float scale =
        id == a.mask_id ? 0.0f : as<const float>(a.scale)[sequence_of(cu_seqlens, a.sequences, uint32_t(t))];
    for (uint32_t i = 0; i < a.width; ++i) out[i] *= scale;
  }
}

void layer_norm(const LayerNorm& a, Range rows) {
  static thread_local Scratch scratch;
  float* y = scratch.get(a.width);
  const float* weight = as<const float>(a.weight);
  const float* bias = as<const float>(a.bias);
  for (uint64_t r = rows.begin; r < rows.end; ++r) {
    const float* x = as<const float>(a.x) + r * a.width;
    const float mean = sum_of(a.width, [x](uint64_t i) { return x[i]; }) / float(a.width);
    const float variance = sum_of(a.width, [=](uint64_t i) { return (x[i] - mean) * (x[i] - mean); }) / float(a.width);
    const float scale = 1.0f / std::sqrt(variance + a.epsilon);
    for (uint32_t i = 0; i < a.width; ++i) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    store(a.y, r * a.width, a.width, y);
  }
}

void pool_mean(const PoolMean& a, Range sequences) {
  const int32_t* cu_seqlens = as<const int32_t>(a.cu_seqlens);
  for (uint64_t b = sequences.begin; b < sequences.end; ++b) {
    float* out = as<float>(a.out) + b * a.width;
    for (uint32_t i = 0; i < a.width; ++i) out[i] = 0;
    const int64_t first = int64_t(cu_seqlens[b]) + 1, last = int64_t(cu_seqlens[b + 1]) - 1;
    if (first >= last) continue;
    for (int64_t t = first; t < last; ++t) {
      const float* x = as<const float>(a.x) + uint64_t(t) * a.width;
      for (uint32_t i = 0; i < a.width; ++i) out[i] += x[i];
    }
    for (uint32_t i = 0; i < a.width; ++i) out[i] /= float(last - first);
  }
}

}  // namespace turboesm::cpu::TURBOESM_CPU_VARIANT
