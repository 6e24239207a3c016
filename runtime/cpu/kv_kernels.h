#pragma once

#include "runtime/cpu/kernels.h"

// The kernels of a quantized KV cache, compiled once for each instruction set, and in all of them without contraction
// of products and sums, so that they pack the bits that every back end packs.
namespace turboesm::cpu::TURBOESM_CPU_VARIANT {

void kv_append(const KvAppend& a, Range rows);
void kv_query(const KvQuery& a, Range rows);
void kv_attention(const KvAttention& a, Range rows);

}  // namespace turboesm::cpu::TURBOESM_CPU_VARIANT
