#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace turboesm {

// The sizes and switches of one ESM-2 model.
struct Esm2Config {
  uint32_t layers = 0;
  uint32_t hidden = 0;        // width of the residual stream
  uint32_t heads = 0;         // hidden = heads * head_dim()
  uint32_t intermediate = 0;  // width of the feed-forward layer, 4 * hidden in the official models
  uint32_t vocab = 33;
  float layer_norm_eps = 1e-5f;
  bool token_dropout = true;  // <mask> embeddings zeroed, the others rescaled by (1 - 0.12) / (1 - share of <mask>)
  uint32_t pad_id = 1;
  uint32_t mask_id = 32;
  uint32_t cls_id = 0;
  uint32_t eos_id = 2;

  uint32_t head_dim() const { return hidden / heads; }

  // Of embeddings, encoder, tied LM head and contact head; what the model does not use (position embeddings that some
  // files carry) is not counted.
  uint64_t parameter_count() const;

  bool operator==(const Esm2Config&) const = default;
};

// Head sizes that the attention kernels are built for: up to this, in steps of 8.
inline constexpr uint32_t kMaxHeadDim = 256;

// Reads a Hugging Face config.json. Keys that are absent mean what transformers' EsmConfig makes of their absence.
// Errors (input, naming file, key and value): no JSON object; a model that is not ESM-2 (model_type other than "esm",
// non-rotary positions, emb_layer_norm_before, ESMFold, an activation other than GELU, another vocabulary); sizes that
// are missing, out of bounds or do not fit each other.
Esm2Config load_config(const std::filesystem::path& json);

// Meta's published models, smallest first: "8M", "35M", "150M", "650M", "3B", "15B".
std::span<const std::string_view> official_sizes();

// The configuration of one of them. Error (usage) for any other name, listing the six.
Esm2Config official_config(std::string_view size);

}  // namespace turboesm
