#pragma once

#include "runtime/cuda/kv_attention_parts.cuh"

namespace turboesm::cuda {

// Launches KvAttention on int8 matrix cores, with centroids rounded to 8 bits, where there is a kernel for it; else
// returns false. `arguments` need no splits.
bool launch_kv_attention_mma(const KvAttention& a, KvArguments arguments, const Launch& l);

}  // namespace turboesm::cuda
