#include "model/plan.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "model/decoder.h"

namespace turboesm {

uint64_t MemoryPlan::bytes(MemoryLabel label) const {
  uint64_t sum = 0;
  for (const Row& row : rows)
    if (row.label == label) sum += row.bytes;
  return sum;
}

uint64_t MemoryPlan::total() const {
  uint64_t sum = 0;
  for (const Row& row : rows) sum += row.bytes;
  return sum;
}

namespace {

// Weights go up one by one, results come down one by one: the largest of them decides.
uint64_t staging_bytes(const Esm2Config& config, DType dtype, const BatchShape& shape, const ForwardOptions& options,
                       const DeviceInfo& device) {
  const uint64_t H = config.hidden, T = shape.tokens, L = shape.max_length;
  uint64_t largest =
      std::max(std::max<uint64_t>(H, config.intermediate) * H * size_of(dtype), L * config.head_dim() * 4);
  if (options.means) largest = std::max(largest, uint64_t(shape.sequences) * H * 4);
  if (options.hidden) largest = std::max(largest, T * H * 4);
  if (options.logits) largest = std::max(largest, T * config.vocab * 4);
  if (options.contacts) largest = std::max(largest, L * L * 4);
  return device.staging_chunk_bytes * (largest > device.staging_chunk_bytes ? 2 : 1);
}

}  // namespace

ForwardOptions plan_options(const Esm2Config& config) { return {.layers = {config.layers}, .means = true}; }

MemoryPlan plan_memory(const Esm2Config& config, DType dtype, const BatchShape& shape, const ForwardOptions& options,
                       const DeviceInfo& device, const KvPreset* kv) {
  using R = WorkspaceSizes;
  const WorkspaceSizes sizes = R::lay_out(config, dtype, shape, options);
  const auto activations = [&](const char* what, R::Region region) {
    return MemoryPlan::Row{what, MemoryLabel::activations, sizes.bytes[region]};
  };
  MemoryPlan plan;
  for (MemoryPlan::Row& row : std::vector<MemoryPlan::Row>{
           {"weights", MemoryLabel::weights, Esm2Weights::bytes(config, dtype)},
           activations("token ids, positions and RoPE table", R::inputs),
           activations("residual stream", R::residual),
           activations("normed input and attention output", R::normed),
           activations("q, k, v and feed-forward", R::wide),
           activations("last hidden state", R::final_hidden),
           activations("hidden states kept", R::hidden),
           activations("means", R::means),
           activations("logits", R::logits),
           activations("attention maps", R::maps),
           activations("contacts", R::contacts),
           {"kernels' scratch", MemoryLabel::activations, device.scratch_bytes},
           {"staging", MemoryLabel::staging, staging_bytes(config, dtype, shape, options, device)}})
    if (row.bytes) plan.rows.push_back(std::move(row));
  if (!kv) return plan;
  const DecoderOptions decoder{.sequences = shape.sequences, .capacity = shape.max_length};
  plan.rows.push_back({fmt::format("KV cache, {}", kv->name), MemoryLabel::kv,
                       kv_cache_bytes(kv->format(), config, shape.sequences, shape.max_length)});
  plan.rows.push_back({"the cache's tables", MemoryLabel::weights, KvCache::table_bytes(config, *kv)});
  plan.rows.push_back({"decoding step", MemoryLabel::activations, Decoder::bytes(config, dtype, *kv, decoder)});
  return plan;
}

namespace {

// Tokens of a batch that an operation can index.
uint64_t max_tokens(const Esm2Config& config) {
  return std::numeric_limits<int32_t>::max() /
         std::max<uint64_t>({3ull * config.hidden, config.intermediate, config.vocab});
}

bool contacts_fit(const Esm2Config& config, const ForwardOptions& options, uint32_t length) {
  return !options.contacts || uint64_t(config.heads) * length * length <= uint64_t(std::numeric_limits<int32_t>::max());
}

// The largest value in [low, high) that fits, all smaller ones fitting too; `low` is taken to fit.
template <class Fits>
uint32_t largest_that(uint32_t low, uint32_t high, Fits&& fits) {
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low;
}

}  // namespace

uint32_t max_batch(const Esm2Config& config, DType dtype, uint32_t length, const ForwardOptions& options,
                   const DeviceInfo& device, uint64_t budget, const KvPreset* kv) {
  if (!contacts_fit(config, options, length)) return 0;
  // What an operation can index and a grid can span limits it as well.
  const uint32_t most = uint32_t(std::min<uint64_t>(max_tokens(config) / length, 65535));
  return largest_that(0, most + 1, [&](uint32_t sequences) {
    return plan_memory(config, dtype, BatchShape::uniform(sequences, length), options, device, kv).total() <= budget;
  });
}

uint32_t max_length(const Esm2Config& config, DType dtype, uint32_t batch, const ForwardOptions& options,
                    const DeviceInfo& device, uint64_t budget, const KvPreset* kv, uint32_t longest) {
  const uint32_t most = uint32_t(std::min<uint64_t>(max_tokens(config) / batch, longest));
  const uint32_t length = largest_that(1, std::max(most, 1u) + 1, [&](uint32_t tokens) {
    return contacts_fit(config, options, tokens) &&
           plan_memory(config, dtype, BatchShape::uniform(batch, tokens), options, device, kv).total() <= budget;
  });
  return length < 2 ? 0 : length;
}

}  // namespace turboesm
