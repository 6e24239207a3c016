#pragma once

#include <memory>
#include <span>
#include <vector>

#include "model/esm2.h"
#include "model/kv_cache.h"

namespace turboesm {

struct DecoderOptions {
  uint32_t sequences = 1;
  uint32_t capacity = 1024;  // tokens of the longest sequence, <cls> counted
  float temperature = 1, top_p = 1;
  uint32_t seed = 0;
  uint32_t first_stream = 0;  // of random numbers: sequence b draws from stream first_stream + b
  bool hidden = false;        // keep the last hidden state of every step
  bool probe = false;         // and the output of layer 0's attention
};

// One sequence to be decoded: the tokens that prefill sees (<cls> and residues, no <eos>), the tokens to take after
// them instead of drawn ones, and the number of tokens in all at which it ends.
struct DecodeTask {
  std::vector<int32_t> prompt;
  std::vector<int32_t> forced;
  uint32_t limit = 0;
};

// Where each value of a decoding step lives, besides ForwardTensors: R = 2 x sequences rows, d = head_dim.
struct DecodeTensors {
  Tensor appends, lengths, active, limits;  // Sample's
  Tensor tokens, log_probability, candidates;
  Tensor q;          // [R, heads, d] f32, KvQuery's out
  Tensor projected;  // [R, heads, d] f32, with a QJL cache
  Tensor position;   // [R, heads, d] A, the type of q, k and v; with a cache centred before RoPE, like the next two
  Tensor table;      // [capacity, d] A, the RoPE table
  Tensor bias;       // [R, heads, capacity] f32
  Tensor probe;      // [R, hidden] D, a copy of layer 0's attention output
};

// Decodes a batch of sequences one token at a time on top of a KV cache, as docs/kv-cache.md defines it: the prompt
// attends to itself in both directions in full precision and leaves its K and V in the cache; every later token attends
// to the cached ones and to itself, through the cache.
//
// A step has two rows a sequence: 2 b is the residue just chosen, whose K and V are appended; 2 b + 1 a <mask> at the
// next position, which sees the same tokens and from whose logits that position's residue is drawn. It is recorded once
// and replayed; what varies lives in device memory, where the Sample operation moves it on. In the first step after
// start() row 2 b repeats the prompt's last token and appends nothing.
class Decoder {
 public:
  // The model, which it uses for the prompts, must outlive it. Errors: out_of_memory, usage.
  Decoder(Esm2& model, const KvTables& tables, const DecoderOptions& options, const RecordOptions& record = {});

  // Device memory of the steps, beside the model's and the cache's.
  static uint64_t bytes(const Esm2Config& config, DType dtype, const KvPreset& preset, const DecoderOptions& options);

  // Fills the cache from the prompts, in batches of at most max_tokens, and sets every sequence to its start. There are
  // at most options.sequences tasks. Errors: usage for an empty prompt or a limit beyond the capacity.
  void start(std::span<const DecodeTask> tasks, uint32_t max_tokens);

  Ticket submit() { return device_->submit(*recording_); }
  void wait(Ticket ticket) { device_->wait(ticket); }

  // Waits for the steps submitted so far.
  bool any_active();
  std::vector<std::vector<int32_t>> tokens();       // of each task: prompt and what was chosen, a stop token included
  std::vector<float> log_probability();             // [tasks], summed over the tokens chosen
  void download_logits(std::span<float> logits);    // [R, vocab], of the last step
  void download_hidden(std::span<float> hidden);    // [R, hidden], with options.hidden
  void download_probe(std::span<float> attention);  // [R, hidden], with options.probe

  const KvCache& cache() const { return cache_; }
  Recording& recording() { return *recording_; }
  const std::vector<Operation>& operations() const { return operations_; }

 private:
  void prefill(std::span<const DecodeTask> tasks, uint32_t max_tokens);

  Device* device_;
  Esm2* model_;
  DecoderOptions options_;
  KvCache cache_;
  std::unique_ptr<Buffer> workspace_;
  ForwardTensors forward_;
  DecodeTensors decode_;
  std::vector<uint32_t> prompt_lengths_;  // of the tasks started last
  std::vector<uint32_t> limits_;
  std::vector<Operation> operations_;
  std::unique_ptr<Recording> recording_;
};

// The operations of one step, in order: embedding, layers with attention over the cache, LM head, Sample.
std::vector<Operation> decode_operations(const Esm2Weights& weights, const ForwardTensors& forward,
                                         const DecodeTensors& decode, const KvCache& cache,
                                         const DecoderOptions& options);

}  // namespace turboesm
