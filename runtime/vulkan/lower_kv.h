#pragma once

#include "runtime/vulkan/lower.h"

namespace turboesm::vulkan {

// The kernels of a quantized KV cache and of generation: shaders/kv_*.comp and shaders/sample.comp.
Dispatch lower_kv(const KvAppend& op, const Traits& traits);
Dispatch lower_kv(const KvQuery& op, const Traits& traits);
Dispatch lower_kv(const KvAttention& op, const Traits& traits);
Dispatch lower_kv(const Sample& op, const Traits& traits);

// The ways to compute it where there are two, the one that lower_kv takes first.
std::vector<Variant> kv_variants(const KvAttention& a, const Traits& traits);

}  // namespace turboesm::vulkan
