#pragma once

#include <memory>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "runtime/backend.h"

namespace turboesm {

// Matrices are [outputs, inputs] in the model's dtype D, but for the embedding, which is small, used at both ends and
// therefore f32; vectors are f32, as PyTorch's Linear and LayerNorm have them.
// H = hidden, I = intermediate, V = vocab.
struct LayerWeights {
  Tensor attention_norm_weight, attention_norm_bias;  // [H]
  Tensor qkv_weight, qkv_bias;                        // [3H, H], [3H]: query, key and value, as QkvRope takes them
  Tensor output_weight, output_bias;                  // [H, H], [H]
  Tensor feed_norm_weight, feed_norm_bias;            // [H]
  Tensor up_weight, up_bias;                          // [I, H], [I]
  Tensor down_weight, down_bias;                      // [H, I], [H]
  Tensor contact_weight;                              // [heads] f32, this layer's share of the contact regression
};

// All of a model's parameters in device memory: one buffer for each layer and one for the rest, so that no single
// allocation is larger than a driver allows.
class Esm2Weights {
 public:
  // Reads, converts to `dtype` and uploads piece by piece. Errors: input for a missing or misshapen tensor.
  static Esm2Weights load(Device& device, const Checkpoint& checkpoint, DType dtype);

  // Seeded random matrices made on the device (N(0, 0.02^2), as ESM-2 was initialised; biases 0, norms 1): for
  // measuring speed without a file.
  static Esm2Weights random(Device& device, const Esm2Config& config, DType dtype, uint32_t seed);

  // Device memory that the weights of a model take, exactly as load() and random() allocate it.
  static uint64_t bytes(const Esm2Config& config, DType dtype);

  const Esm2Config& config() const { return config_; }
  DType dtype() const { return dtype_; }

  Tensor embedding;  // [V, H] f32; also the LM head's last matrix
  std::vector<LayerWeights> layers;
  Tensor final_norm_weight, final_norm_bias;  // [H]
  Tensor lm_dense_weight, lm_dense_bias;      // [H, H], [H]
  Tensor lm_norm_weight, lm_norm_bias;        // [H]
  Tensor lm_bias;                             // [V]
  float contact_bias = 0;
  bool has_contact_head = false;

 private:
  Esm2Weights(const Esm2Config& config, DType dtype) : layers(config.layers), config_(config), dtype_(dtype) {}
  void allocate(Device& device);

  Esm2Config config_;
  DType dtype_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace turboesm
