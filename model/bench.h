#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/esm2.h"
#include "model/kv_cache.h"
#include "model/profile.h"
#include "model/roofline.h"

// The measurements behind `turboesm bench`. Each warms up, repeats and takes the median; buffers are larger than any
// last-level cache where bandwidth is the question.
namespace turboesm {

struct Timing {
  double median = 0, fastest = 0, slowest = 0;  // seconds
  uint32_t repeats = 0, warm_up = 0;            // runs measured, and run before them
};

struct BenchOptions {
  double seconds = 1.0;  // spent on repeats, after the warm-up
  uint32_t min_repeats = 5;
  uint32_t max_repeats = 1000;
  bool profile = false;
  // Of one operation: times the ways that the device has to compute it (Device::variants) whose names contain this.
  std::optional<std::string> variants = {};
};

// The fastest come first.
struct VariantTiming {
  std::string name;
  Timing device;
};

struct CopyBench {
  uint64_t bytes = 0;  // of the source
  Timing device;
  Work work() const { return {0, 2.0 * double(bytes)}; }  // read and written
  double bytes_per_second() const { return work().bytes / device.median; }
};
// Copies a buffer of `bytes` to another inside the device.
CopyBench bench_copy(Device& device, uint64_t bytes, const BenchOptions& options);

// A product of a layer on random data: x and weight of dtype. What follows it in its kernel, by name: "bias" (y of
// dtype), "gelu" (bias and GELU), "residual" (bias, added to y, which is f32), "rope" (QkvRope in heads of 64; outputs
// is a multiple of 192).
struct LinearShape {
  uint32_t rows = 16384, inputs = 1280, outputs = 5120;
  DType dtype = DType::f32;
  std::string epilogue = "bias";
  double flops() const { return 2.0 * rows * inputs * double(outputs); }
};
struct LinearBench {
  LinearShape shape;
  Work work;
  Timing device;
  std::vector<VariantTiming> variants;  // with BenchOptions::variants
  double flops_per_second() const { return shape.flops() / device.median; }
};
LinearBench bench_linear(Device& device, const LinearShape& shape, const BenchOptions& options);

// Attention inside sequences of one length, on random q, k and v, with the types of a model in `dtype`: bf16 has q, k
// and v in f16.
struct AttentionShape {
  uint32_t sequences = 16, length = 1024, heads = 20, head_dim = 64;
  DType dtype = DType::f32;
};
struct AttentionBench {
  AttentionShape shape;
  Work work;
  Timing device;
  std::vector<VariantTiming> variants;  // with BenchOptions::variants
  double flops_per_second() const { return work.flops / device.median; }
};
AttentionBench bench_attention(Device& device, const AttentionShape& shape, const BenchOptions& options);

// A batch of random residues between <cls> and <eos>, the same on every run.
Batch random_batch(uint32_t sequences, uint32_t length);

struct PrefillBench {
  BatchShape shape;
  Timing device;    // on the device's clock
  Timing host;      // from submission to completion, as the caller waits
  Work work;        // products (linear layers and attention); the weights read once, the logits written
  Profile profile;  // with BenchOptions::profile
  double residues_per_second() const { return double(shape.tokens - 2 * shape.sequences) / device.median; }
  double flops_per_second() const { return work.flops / device.median; }
};
// The whole forward pass to the logits for `sequences` of `length` tokens (<cls> and <eos> counted), random residues;
// with `cache`, of as many sequences and that capacity, also filling it.
PrefillBench bench_prefill(Esm2& model, uint32_t sequences, uint32_t length, const BenchOptions& options,
                           const KvCache* cache = nullptr);

struct EmbedBench {
  uint64_t sequences = 0, tokens = 0, batches = 0;  // tokens: <cls> and <eos> counted
  double first_seconds = 0;  // the first pass, which records and compiles for shapes that are new to the device
  Timing host;               // of the passes that follow: token ids to means in host memory, as the caller waits
  Timing device;             // what the batches took of that on the device's clock
  Work work;                 // as PrefillBench's without logits; every batch reads the weights
  Profile profile;           // with BenchOptions::profile
  double tokens_per_second() const { return double(tokens) / host.median; }
  double residues_per_second() const { return double(tokens - 2 * sequences) / host.median; }
};
// What `embed` does with these sequences of token ids (<cls> and <eos> included) between the files that it reads and
// writes: the longest first, in batches of at most max_tokens, recorded, run, and their mean embeddings fetched.
EmbedBench bench_embed(Esm2& model, std::span<const std::vector<int32_t>> sequences, uint32_t max_tokens,
                       const BenchOptions& options);

struct DecodeShape {
  uint32_t sequences = 1, context = 1024;  // every sequence has `context` cached tokens
  uint32_t heads = 20, head_dim = 64;      // one layer of 650M
  uint32_t queries = 1;                    // of a sequence
};

struct DecodeBench {
  KvPreset preset;
  DecodeShape shape;
  uint64_t cache_bytes = 0;  // that attention reads: codes, scales and signs of all cached tokens
  Work work;                 // scores and weighted values; the cache and the queries read, the outputs written
  Timing device;
  std::vector<VariantTiming> variants;  // of KvAttention alone, with BenchOptions::variants
  Profile profile;                      // with BenchOptions::profile
  double bytes_per_second() const { return double(cache_bytes) / device.median; }
};
// Decode attention of one layer over a cache of random K and V: what a step needs from turned queries to the layer's
// attention output, that is KvQuery, the position bias where the preset has one, and KvAttention. Queries are stored
// as `dtype`.
DecodeBench bench_decode(Device& device, const KvPreset& preset, const DecodeShape& shape, DType dtype,
                         const BenchOptions& options);

struct GenerateBench {
  uint32_t sequences = 0, prompt = 0, length = 0;  // tokens, <cls> counted
  Timing prefill;                                  // filling the cache from the prompts
  Timing decode;                                   // of all steps, as the caller waits; a few of them warm up
  uint64_t steps = 0;
  uint64_t cache_bytes = 0;
  uint64_t planned_bytes = 0;  // plan_memory()'s total for these sequences
  Work work;                   // of a step: reads the weights, and the cache as far as it is filled on the average
  Profile profile;             // of a step at `prompt` tokens, with BenchOptions::profile
  double residues_per_second() const { return double(steps) * sequences / decode.median; }
  double seconds_per_step() const { return decode.median / double(steps); }
};
// Decodes `sequences` sequences, all at once, from `prompt` to `length` tokens on a cache of this preset. What is drawn
// is replaced by fixed random residues, so that none ends early.
GenerateBench bench_generate(Esm2& model, const KvPreset& preset, uint32_t sequences, uint32_t prompt, uint32_t length,
                             const BenchOptions& options);

// The tables of a preset for a model that has no calibration, from random statistics: right in size and form.
KvTables random_kv_tables(const KvPreset& preset, const Esm2Config& config);

// A GPU of its own, and not a driver that computes on the CPU: what sizes of measurements depend on.
bool runs_on_gpu(const Device& device);

// The fastest of a few runs each: a copy of buffers larger than any last-level cache and a large square product in this
// dtype; smaller ones on the CPU and on a software driver than on a GPU.
DeviceLimits measure_limits(Device& device, DType dtype);

}  // namespace turboesm
