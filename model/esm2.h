#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/batch.h"
#include "model/weights.h"
#include "runtime/backend.h"

namespace turboesm {

class KvCache;

// What a forward pass hands back. Layers are numbered as Hugging Face transformers numbers hidden states: 0 is the
// embedding, l the residual stream after l layers, and config.layers the last one, after the final LayerNorm.
struct ForwardOptions {
  std::vector<uint32_t> layers{};  // whose hidden states or means are wanted
  bool means = false;              // of each of `layers`, over the residues
  bool hidden = false;             // each of `layers`, every token
  bool logits = false;
  bool contacts = false;  // memory grows with heads x the square of the longest sequence
  bool capture = false;   // queries, keys and values of every layer
  // A KV cache to fill: K and V of sequence b go to its sequence cache_first + b. Must outlive the Forward.
  const KvCache* cache = nullptr;
  uint32_t cache_first = 0;
};

struct ForwardResult {
  std::vector<std::vector<float>> means;     // [layers][sequences, hidden]
  std::vector<std::vector<float>> hidden;    // [layers][tokens, hidden]
  std::vector<float> logits;                 // [tokens, vocab]
  std::vector<std::vector<float>> contacts;  // [sequences][residues, residues], probabilities
  std::vector<std::vector<float>> captured;  // [layers][3, tokens, hidden]: q (scaled) and k after RoPE, and v
};

// Device memory of one forward pass, region by region, in bytes. `lay_out` is what Workspace allocates and what
// `plan` reports; nothing else takes activation memory.
struct WorkspaceSizes {
  enum Region {
    inputs,
    residual,
    normed,
    wide,
    final_hidden,
    hidden,
    means,
    logits,
    maps,
    contacts,
    captured,
    kRegions
  };
  std::array<uint64_t, kRegions> bytes{};
  uint64_t total() const;
  static WorkspaceSizes lay_out(const Esm2Config& config, DType dtype, const BatchShape& shape,
                                const ForwardOptions& options);
};

// Buffers for the regions, kept from batch to batch and replaced when a larger one is needed.
class Workspace {
 public:
  // Throws Error(out_of_memory), holding nothing then.
  void reserve(Device& device, const WorkspaceSizes& sizes);
  bool holds(const WorkspaceSizes& sizes) const;  // reserve() would change nothing
  Buffer* operator[](WorkspaceSizes::Region region) const { return buffers_[region].get(); }

 private:
  std::array<std::unique_ptr<Buffer>, WorkspaceSizes::kRegions> buffers_;
};

// Where each value of a forward pass lives (esm2_operations.cpp reads like the paper with these names). T tokens,
// B sequences, H hidden, I intermediate; D is the model's dtype.
struct ForwardTensors {
  Tensor ids, positions, cu_seqlens;  // [T], [T], [B + 1] i32
  Tensor scale;                       // [B] f32, token dropout
  Tensor rope_table;                  // [max_length, head_dim] f32
  Tensor x;                           // [T, H] f32, the residual stream
  Tensor normed;                      // [T, H] D; also the attention's output
  Tensor qkv;                         // [3, T, H] D, or f16 where D is bf16
  Tensor q, k, v;                     // [T, H] each, the three parts of qkv
  Tensor feed;                        // [T, I] D, on the memory of qkv
  Tensor final_hidden;                // [T, H] f32; empty unless it is one of options.layers
  Tensor lm_dense;                    // [T, H] f32, on the memory of qkv
  std::vector<Tensor> hidden;         // [T, H] f32 for each of options.layers
  std::vector<Tensor> means;          // [B, H] f32 for each of options.layers
  Tensor logits;                      // [T, vocab] f32
  Tensor maps, map_sums;              // [heads, L, L], [heads, L - 1] f32, L = max_length
  Tensor appends;                     // [B, 3] i32, KvAppend's; with options.cache
  std::vector<Tensor> captured;       // [3, T, H] as qkv, for each layer; with options.capture
  std::vector<Tensor> contacts;       // [residues, residues] f32 for each sequence; empty without residues
};

// The whole forward pass as operations, in the order of the paper (Lin et al. 2023, ESM-2).
std::vector<Operation> forward_operations(const Esm2Weights& weights, const ForwardTensors& tensors,
                                          const BatchShape& shape, std::span<const int32_t> cu_seqlens,
                                          const ForwardOptions& options);

// A forward pass recorded for one shape, to be replayed on any batch of that shape.
class Forward {
 public:
  void upload(const Batch& batch);
  void run();  // submits and waits
  ForwardResult download() const;

  Ticket submit();
  const BatchShape& shape() const { return shape_; }
  Recording& recording() const { return *recording_; }
  const std::vector<Operation>& operations() const { return operations_; }

 private:
  friend class Esm2;
  Forward(Device& device, const Esm2Weights& weights, const BatchShape& shape, const ForwardOptions& options)
      : device_(&device), weights_(&weights), shape_(shape), options_(options) {}

  Device* device_;
  const Esm2Weights* weights_;
  BatchShape shape_;
  ForwardOptions options_;
  ForwardTensors tensors_;
  std::shared_ptr<const std::vector<float>> rope_table_;  // of this length or a longer one
  std::vector<Operation> operations_;
  std::unique_ptr<Recording> recording_;
};

// One ESM-2 model on one device.
class Esm2 {
 public:
  // The device must outlive the model.
  Esm2(Device& device, Esm2Weights weights) : device_(&device), weights_(std::move(weights)) {}

  const Esm2Config& config() const { return weights_.config(); }
  const Esm2Weights& weights() const { return weights_; }
  Device& device() const { return *device_; }

  // Allocates and records. Valid until the next prepare(): they share the workspace. With contacts, only for batches of
  // exactly these cu_seqlens. Errors: out_of_memory; usage for layers that do not exist or contacts without a head.
  Forward prepare(const Batch& batch, const ForwardOptions& options, const RecordOptions& record = {});

  // Whether prepare() leaves alone what a Forward that runs computes on, so that it may be called meanwhile.
  bool prepares_beside(const Batch& batch, const ForwardOptions& options) const;

  // prepare, upload, run, download.
  ForwardResult forward(const Batch& batch, const ForwardOptions& options);

 private:
  Device* device_;
  Esm2Weights weights_;
  Workspace workspace_;
  // Of the longest batch so far; a shorter one's is its beginning.
  std::shared_ptr<const std::vector<float>> rope_table_ = std::make_shared<const std::vector<float>>();
};

// What q, k and v are stored as in a model of this dtype.
DType attention_dtype(DType dtype);

// Part `index` of a tensor that consists of parts of `count` elements.
Tensor part(const Tensor& whole, uint64_t index, uint64_t count);

// cos and sin of p / 10000^(2i / head_dim) for p < rows: [rows, head_dim], a cosine and its sine side by side. Computed
// in double, never read from a checkpoint (half-precision files carry rounded frequencies).
std::vector<float> rope_table(uint32_t rows, uint32_t head_dim);

// Forward passes of batches, one after another: while one runs on the device, the next is prepared.
class ForwardQueue {
 public:
  // The model must outlive it, and nothing else may prepare() with it meanwhile. `visit` is called after each pass.
  using Visit = std::function<void(const Forward&)>;
  ForwardQueue(Esm2& model, const ForwardOptions& options, const RecordOptions& record, Visit visit = {});

  // `next` is what will be asked for after `batch`, null where nothing is. Throws as Esm2::prepare() does; what was
  // prepared is forgotten then.
  ForwardResult run(const Batch& batch, const Batch* next);

 private:
  Esm2* model_;
  ForwardOptions options_;
  RecordOptions record_;
  Visit visit_;
  std::optional<Forward> ahead_;
};

}  // namespace turboesm
