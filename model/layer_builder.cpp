#include "model/layer_builder.h"

#include <cmath>

namespace turboesm {

void LayerBuilder::embed(uint32_t sequences) {
  add(Embed{.ids = t_.ids,
            .cu_seqlens = t_.cu_seqlens,
            .scale = c_.token_dropout ? t_.scale : Tensor{},
            .table = w_.embedding,
            .out = t_.x,
            .tokens = rows_,
            .sequences = sequences,
            .vocab = c_.vocab,
            .width = c_.hidden,
            .mask_id = int32_t(c_.mask_id)});
}

void LayerBuilder::queries_keys_values(const LayerWeights& layer, uint32_t table_rows) {
  layer_norm(t_.x, layer.attention_norm_weight, layer.attention_norm_bias, t_.normed);
  // The scores are scaled here, on q, before it is turned; the softmax then needs no factor.
  add(QkvRope{.x = t_.normed,
              .weight = layer.qkv_weight,
              .bias = layer.qkv_bias,
              .positions = t_.positions,
              .table = t_.rope_table,
              .qkv = t_.qkv,
              .tokens = rows_,
              .inputs = c_.hidden,
              .heads = c_.heads,
              .head_dim = c_.head_dim(),
              .table_rows = table_rows,
              .q_scale = 1.0f / std::sqrt(float(c_.head_dim()))});
}

void LayerBuilder::attention_output(const LayerWeights& layer) {
  linear_onto_residual(t_.normed, layer.output_weight, layer.output_bias, c_.hidden);
}

void LayerBuilder::feed_forward(const LayerWeights& layer) {
  layer_norm(t_.x, layer.feed_norm_weight, layer.feed_norm_bias, t_.normed);
  linear(t_.normed, layer.up_weight, layer.up_bias, t_.feed, c_.hidden, c_.intermediate, /*gelu=*/true);
  linear_onto_residual(t_.feed, layer.down_weight, layer.down_bias, c_.intermediate);
}

void LayerBuilder::final_norm() { layer_norm(t_.x, w_.final_norm_weight, w_.final_norm_bias, t_.final_hidden); }

void LayerBuilder::lm_head() {
  // With a 16-bit D the head's products take their operands in D, so the last hidden state is normalised once more
  // into D.
  layer_norm(t_.x, w_.final_norm_weight, w_.final_norm_bias, t_.normed);
  linear(t_.normed, w_.lm_dense_weight, w_.lm_dense_bias, t_.lm_dense, c_.hidden, c_.hidden, /*gelu=*/true);
  layer_norm(t_.lm_dense, w_.lm_norm_weight, w_.lm_norm_bias, t_.lm_dense);
  linear(t_.lm_dense, w_.embedding, w_.lm_bias, t_.logits, c_.hidden, c_.vocab);
}

void LayerBuilder::layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  add(LayerNorm{x, weight, bias, y, rows_, c_.hidden, c_.layer_norm_eps});
}

void LayerBuilder::linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y, uint32_t inputs,
                          uint32_t outputs, bool gelu) {
  add(Linear{x, weight, bias, {}, y, rows_, inputs, outputs, gelu});
}

void LayerBuilder::linear_onto_residual(const Tensor& x, const Tensor& weight, const Tensor& bias, uint32_t inputs) {
  add(Linear{x, weight, bias, t_.x, t_.x, rows_, inputs, c_.hidden, false});
}

}  // namespace turboesm
