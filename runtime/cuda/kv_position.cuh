#pragma once

#include <cuda_runtime.h>

namespace turboesm::cuda {

// KvQuery's position (runtime/kv_operations.h) for a pair of neighbours of a query and of the mean of keys before RoPE.
__device__ __forceinline__ float2 position_of(float2 query, float2 mean) {
  return {query.x * mean.x + query.y * mean.y, query.y * mean.x - query.x * mean.y};
}

}  // namespace turboesm::cuda
