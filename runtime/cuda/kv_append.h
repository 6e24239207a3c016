#pragma once

#include "runtime/cuda/kernels.h"

// What the kernels of KvAppend share.
namespace turboesm::cuda {

// Format and operands of K or V; addresses on the device, null for what is left out.
struct KvAppendSide {
  uint32_t segments, bits[2], scale_bits;
  KvScale scale;
  bool qjl, gaussian;
  uint32_t n;              // values of a segment
  uint32_t first_word;     // in a block
  uint32_t codebook_size;  // 0: none
  const float *mean, *position_mean, *transform, *codebook, *projection;
  bool transform_of_head, codebook_of_head;
};

struct KvAppendArguments {
  const void* values[2];  // k, v [tokens, heads, head_dim]
  DType dtype;
  const int32_t* appends;
  const float* table;
  uint32_t* cache;
  KvAppendSide sides[2];
  uint32_t sequences, heads, head_dim, blocks, block_words, max_count;
};

// Launches the append of many f16 tokens with sums rounded as they come, where there is a kernel for it; else returns
// false.
bool launch_kv_append_many(const KvAppendArguments& a, const Launch& l);

}  // namespace turboesm::cuda
