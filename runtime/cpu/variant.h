#pragma once

#include "runtime/cpu/kernels.h"

// The kernels of one instruction set, TURBOESM_CPU_VARIANT; their files are compiled once for each. Plain and exact
// enough to be the oracle of every other back end: products of D operands in fp32, everything else in fp32, each row's
// sums in an order that depends on the row's own length alone. Those of a quantized KV cache contract no product and
// sum in any of them, so that they pack the bits that every back end packs.
namespace turboesm::cpu::TURBOESM_CPU_VARIANT {

void token_dropout(const TokenDropout& a, Range items);
void embed(const Embed& a, Range items);
void layer_norm(const LayerNorm& a, Range items);
void linear(const Linear& a, Range items);
void qkv_rope(const QkvRope& a, Range items);
void attention(const Attention& a, Range items);
void pool_mean(const PoolMean& a, Range items);
void attention_maps(const AttentionMaps& a, Range items);
void contact_sums(const ContactSums& a, Range items);
void contact_accumulate(const ContactAccumulate& a, Range items);
void fill(const Fill& a, Range items);
void random_normal(const RandomNormal& a, Range items);
void copy(const Copy& a, Range items);
void kv_append(const KvAppend& a, Range items);
void kv_query(const KvQuery& a, Range items);
void kv_attention(const KvAttention& a, Range items);
void sample(const Sample& a, Range items);

}  // namespace turboesm::cpu::TURBOESM_CPU_VARIANT
