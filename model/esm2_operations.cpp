#include <cmath>

#include "model/esm2.h"

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
      : w_(weights), c_(weights.config()), t_(tensors), shape_(shape), cu_seqlens_(cu_seqlens), options_(options) {}

  std::vector<Operation> build() {
    embed();
    take_hidden(0, t_.x);
    for (uint32_t l = 0; l < c_.layers; ++l) {
      attention(w_.layers[l]);
      feed_forward(w_.layers[l]);
      if (l + 1 < c_.layers) take_hidden(l + 1, t_.x);
    }
    if (t_.final_hidden) {
      layer_norm(t_.x, w_.final_norm_weight, w_.final_norm_bias, t_.final_hidden);
      take_hidden(c_.layers, t_.final_hidden);
    }
    if (options_.logits) lm_head();
    return std::move(operations_);
  }

 private:
  void embed() {
    if (c_.token_dropout)
      add(TokenDropout{t_.ids, t_.cu_seqlens, t_.scale, shape_.tokens, shape_.sequences, int32_t(c_.mask_id)});
    add(Embed{.ids = t_.ids,
              .cu_seqlens = t_.cu_seqlens,
              .scale = c_.token_dropout ? t_.scale : Tensor{},
              .table = w_.embedding,
              .out = t_.x,
              .tokens = shape_.tokens,
              .sequences = shape_.sequences,
              .vocab = c_.vocab,
              .width = c_.hidden,
              .mask_id = int32_t(c_.mask_id)});
    for (const Tensor& logits : t_.contacts)
      if (logits) add(Fill{logits, 0.0f});
  }

  void attention(const LayerWeights& layer) {
    layer_norm(t_.x, layer.attention_norm_weight, layer.attention_norm_bias, t_.normed);
    // The scores are scaled here, on q, before it is turned; the softmax then needs no factor.
    add(QkvRope{.x = t_.normed,
                .weight = layer.qkv_weight,
                .bias = layer.qkv_bias,
                .positions = t_.positions,
                .table = t_.rope_table,
                .qkv = t_.qkv,
                .tokens = shape_.tokens,
                .inputs = c_.hidden,
                .heads = c_.heads,
                .head_dim = c_.head_dim(),
                .table_rows = shape_.max_length,
                .q_scale = 1.0f / std::sqrt(float(c_.head_dim()))});
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
    if (options_.contacts) contacts(layer);
    linear_onto_residual(t_.normed, layer.output_weight, layer.output_bias, c_.hidden);
  }

  void feed_forward(const LayerWeights& layer) {
    layer_norm(t_.x, layer.feed_norm_weight, layer.feed_norm_bias, t_.normed);
    linear(t_.normed, layer.up_weight, layer.up_bias, t_.feed, c_.hidden, c_.intermediate, /*gelu=*/true);
    linear_onto_residual(t_.feed, layer.down_weight, layer.down_bias, c_.intermediate);
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

  void lm_head() {
    // With a 16-bit D the head's products take their operands in D, so the last hidden state is normalised once more
    // into D.
    layer_norm(t_.x, w_.final_norm_weight, w_.final_norm_bias, t_.normed);
    linear(t_.normed, w_.lm_dense_weight, w_.lm_dense_bias, t_.lm_dense, c_.hidden, c_.hidden, /*gelu=*/true);
    layer_norm(t_.lm_dense, w_.lm_norm_weight, w_.lm_norm_bias, t_.lm_dense);
    linear(t_.lm_dense, w_.embedding, w_.lm_bias, t_.logits, c_.hidden, c_.vocab);
  }

  // Keeps hidden state `layer`, at this moment in `source`, as far as it was asked for.
  void take_hidden(uint32_t layer, const Tensor& source) {
    for (size_t i = 0; i < options_.layers.size(); ++i) {
      if (options_.layers[i] != layer) continue;
      if (options_.hidden) add(Copy{source, t_.hidden[i]});
      if (options_.means) add(PoolMean{source, t_.cu_seqlens, t_.means[i], shape_.tokens, shape_.sequences, c_.hidden});
    }
  }

  void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
    add(LayerNorm{x, weight, bias, y, shape_.tokens, c_.hidden, c_.layer_norm_eps});
  }

  void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y, uint32_t inputs,
              uint32_t outputs, bool gelu = false) {
    add(Linear{x, weight, bias, {}, y, shape_.tokens, inputs, outputs, gelu});
  }

  void linear_onto_residual(const Tensor& x, const Tensor& weight, const Tensor& bias, uint32_t inputs) {
    add(Linear{x, weight, bias, t_.x, t_.x, shape_.tokens, inputs, c_.hidden, false});
  }

  void add(Operation operation) { operations_.push_back(std::move(operation)); }

  const Esm2Weights& w_;
  const Esm2Config& c_;
  const ForwardTensors& t_;
  const BatchShape& shape_;
  std::span<const int32_t> cu_seqlens_;
  const ForwardOptions& options_;
  std::vector<Operation> operations_;
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
