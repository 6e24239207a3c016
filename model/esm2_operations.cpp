#include <cmath>

#include "model/esm2.h"
#include "model/kv_cache.h"
#include "model/layer_builder.h"

// The forward pass of ESM-2 in the order of the paper: embedding with token dropout; in each layer
//   x += Wo attention(RoPE(Wq n), RoPE(Wk n), Wv n) + bo   with n = LayerNorm(x)
//   x += Wdown GELU(Wup n + bup) + bdown                   with n = LayerNorm(x)
// then a last LayerNorm, and the language-model head with the embedding as its last matrix.
namespace turboesm {
namespace {

class Builder {
 public:
  Builder(const Esm2Weights& weights, const ForwardTensors& tensors, const BatchShape& shape,
          std::span<const int32_t> cu_seqlens, const ForwardOptions& options)
      : w_(weights),
        c_(weights.config()),
        t_(tensors),
        shape_(shape),
        cu_seqlens_(cu_seqlens),
        options_(options),
        layers_(weights, tensors, shape.tokens) {}

  std::vector<Operation> build() {
    embed();
    take_hidden(0, t_.x);
    for (uint32_t l = 0; l < c_.layers; ++l) {
      layers_.queries_keys_values(w_.layers[l], shape_.max_length);
      attention(l);
      layers_.attention_output(w_.layers[l]);
      layers_.feed_forward(w_.layers[l]);
      if (l + 1 < c_.layers) take_hidden(l + 1, t_.x);
    }
    if (t_.final_hidden) {
      layers_.final_norm();
      take_hidden(c_.layers, t_.final_hidden);
    }
    if (options_.logits) layers_.lm_head();
    return layers_.take();
  }

 private:
  void embed() {
    if (c_.token_dropout)
      add(TokenDropout{t_.ids, t_.cu_seqlens, t_.scale, shape_.tokens, shape_.sequences, int32_t(c_.mask_id)});
    layers_.embed(shape_.sequences);
    for (const Tensor& logits : t_.contacts)
      if (logits) add(Fill{logits, 0.0f});
  }

  void attention(uint32_t l) {
    if (options_.cache) fill_cache(l);  // ahead of attention, whose workgroups take long and should not wait behind it
    add(Attention{.q = t_.q,
                  .k = t_.k,
                  .v = t_.v,
                  .cu_seqlens = t_.cu_seqlens,
                  .out = t_.normed,
                  .tokens = shape_.tokens,
                  .sequences = shape_.sequences,
                  .heads = c_.heads,
                  .head_dim = c_.head_dim(),
                  .max_length = shape_.max_length,
                  .score_pairs = shape_.score_pairs});
    if (options_.capture) add(Copy{t_.qkv, t_.captured[l]});
    if (options_.contacts) contacts(w_.layers[l]);
  }

  void fill_cache(uint32_t l) {
    const KvCache& cache = *options_.cache;
    const KvLayer& layer = cache.layer(l);
    add(KvAppend{.k = t_.k,
                 .v = t_.v,
                 .appends = t_.appends,
                 .table = t_.rope_table,
                 .k_side = layer.k,
                 .v_side = layer.v,
                 .cache = cache.rows(l, options_.cache_first, shape_.sequences),
                 .format = cache.format(),
                 .tokens = shape_.tokens,
                 .sequences = shape_.sequences,
                 .heads = c_.heads,
                 .head_dim = c_.head_dim(),
                 .capacity = cache.capacity(),
                 .table_rows = shape_.max_length,
                 .max_count = shape_.max_length});
  }

  // This layer's share of every sequence's contact map, one sequence after the other on the same scratch memory.
  void contacts(const LayerWeights& layer) {
    for (uint32_t b = 0; b < shape_.sequences; ++b) {
      if (!t_.contacts[b]) continue;
      const uint32_t begin = uint32_t(cu_seqlens_[b]), length = uint32_t(cu_seqlens_[b + 1]) - begin;
      add(AttentionMaps{t_.q, t_.k, t_.maps, shape_.tokens, begin, length, c_.heads, c_.head_dim()});
      add(ContactSums{t_.maps, t_.map_sums, c_.heads, length});
      add(ContactAccumulate{t_.maps, t_.map_sums, layer.contact_weight, t_.contacts[b], c_.heads, length});
    }
  }

  // Keeps hidden state `layer`, at this moment in `source`, as far as it was asked for.
  void take_hidden(uint32_t layer, const Tensor& source) {
    for (size_t i = 0; i < options_.layers.size(); ++i) {
      if (options_.layers[i] != layer) continue;
      if (options_.hidden) add(Copy{source, t_.hidden[i]});
      if (options_.means) add(PoolMean{source, t_.cu_seqlens, t_.means[i], shape_.tokens, shape_.sequences, c_.hidden});
    }
  }

  void add(Operation operation) { layers_.add(std::move(operation)); }

  const Esm2Weights& w_;
  const Esm2Config& c_;
  const ForwardTensors& t_;
  const BatchShape& shape_;
  std::span<const int32_t> cu_seqlens_;
  const ForwardOptions& options_;
  LayerBuilder layers_;
};

}  // namespace

std::vector<Operation> forward_operations(const Esm2Weights& weights, const ForwardTensors& tensors,
                                          const BatchShape& shape, std::span<const int32_t> cu_seqlens,
                                          const ForwardOptions& options) {
  return Builder(weights, tensors, shape, cu_seqlens, options).build();
}

std::vector<float> rope_table(uint32_t rows, uint32_t head_dim) {
  std::vector<float> table(size_t(rows) * head_dim);
  for (uint32_t i = 0; i < head_dim; i += 2) {
    const double frequency = std::pow(10000.0, -double(i) / head_dim);
    for (uint32_t p = 0; p < rows; ++p) {
      table[size_t(p) * head_dim + i] = float(std::cos(p * frequency));
      table[size_t(p) * head_dim + i + 1] = float(std::sin(p * frequency));
    }
  }
  return table;
}

}  // namespace turboesm
