#pragma once

#include <cstdint>
#include <vector>

#include "runtime/operations.h"

namespace turboesm::cpu {

// Items of work of one operation: kernels compute items [begin, end), in any order and on any thread.
struct Range {
  uint64_t begin, end;
};

// Sizes of the pieces that one item stands for.
inline constexpr uint32_t kProductRows = 432;     // an item of Linear and QkvRope is a tile of this many rows ...
inline constexpr uint32_t kProductOutputs = 128;  // ... by this many outputs, an even number, output tiles innermost
inline constexpr uint32_t kQueryBlock = 240;      // an item of Attention is this many queries of one head
inline constexpr uint32_t kElementBlock = 4096;   // an item of Fill, RandomNormal and Copy

// One instruction set's build of every operation (variant.h).
struct Kernels {
  const char* name;
  void (*token_dropout)(const TokenDropout&, Range sequences);
  void (*embed)(const Embed&, Range tokens);
  void (*layer_norm)(const LayerNorm&, Range rows);
  void (*linear)(const Linear&, Range tiles);
  void (*qkv_rope)(const QkvRope&, Range tiles);
  void (*attention)(const Attention&, Range blocks);  // [sequences, heads, query blocks of max_length]
  void (*pool_mean)(const PoolMean&, Range sequences);
  void (*attention_maps)(const AttentionMaps&, Range rows);  // [heads, length]
  void (*contact_sums)(const ContactSums&, Range heads);
  void (*contact_accumulate)(const ContactAccumulate&, Range rows);  // of the residues
  void (*fill)(const Fill&, Range blocks);
  void (*random_normal)(const RandomNormal&, Range blocks);
  void (*copy)(const Copy&, Range blocks);
  void (*kv_append)(const KvAppend&, Range rows);        // [sequences, heads]
  void (*kv_query)(const KvQuery&, Range rows);          // [rows, heads]
  void (*kv_attention)(const KvAttention&, Range rows);  // [sequences, heads]
  void (*sample)(const Sample&, Range sequences);
};

// The builds that this processor can run, the widest first.
std::vector<const Kernels*> runnable_kernels();

}  // namespace turboesm::cpu
