#pragma once

#include <vector>

#include "model/esm2.h"

namespace turboesm {

// What the forward pass and the decoding step have in common: the operations of ESM-2 outside of attention itself, on
// `rows` tokens. Each method appends the operations that its name says, in the order in which they run.
class LayerBuilder {
 public:
  LayerBuilder(const Esm2Weights& weights, const ForwardTensors& tensors, uint32_t rows)
      : w_(weights), c_(weights.config()), t_(tensors), rows_(rows) {}

  // x = embeddings of t.ids; `sequences` runs of rows, as cu_seqlens has them, each with its token-dropout scale.
  void embed(uint32_t sequences);
  // qkv = Wqkv LayerNorm(x) + b, q and k turned by t.positions; the RoPE table has `table_rows` rows.
  void queries_keys_values(const LayerWeights& layer, uint32_t table_rows);
  // x += Wo normed + bo: what attention left in t.normed goes onto the residual stream.
  void attention_output(const LayerWeights& layer);
  // x += Wdown GELU(Wup LayerNorm(x) + bup) + bdown
  void feed_forward(const LayerWeights& layer);
  // t.final_hidden = LayerNorm(x), the last hidden state
  void final_norm();
  // t.logits = E LayerNorm(GELU(Wd LayerNorm(x) + bd)) + b
  void lm_head();

  void add(Operation operation) { operations_.push_back(std::move(operation)); }
  std::vector<Operation> take() { return std::move(operations_); }

 private:
  void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y);
  void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y, uint32_t inputs,
              uint32_t outputs, bool gelu = false);
  void linear_onto_residual(const Tensor& x, const Tensor& weight, const Tensor& bias, uint32_t inputs);

  const Esm2Weights& w_;
  const Esm2Config& c_;
  const ForwardTensors& t_;
  uint32_t rows_;
  std::vector<Operation> operations_;
};

}  // namespace turboesm
