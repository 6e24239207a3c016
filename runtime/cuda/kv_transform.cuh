// What the kernels that encode for a quantized cache, or prepare queries for it, share.
#pragma once

#include <cstdint>

#include <cuda_pipeline.h>

namespace turboesm::cuda {

// KvQuery's position (runtime/kv_operations.h) for a pair of neighbours of a query and of the mean of keys before RoPE.
__device__ __forceinline__ float2 position_of(float2 query, float2 mean) {
  return {fmaf(query.x, mean.x, query.y * mean.y), fmaf(query.y, mean.x, -query.x * mean.y)};
}

// Thread `thread` of `threads` brings its share of a transform [d, d] to shared memory, rows `stride` apart. What it
// has asked for is there after wait_for_transform().
__device__ __forceinline__ void fetch_transform(const float* transform, uint32_t d, float* to, uint32_t stride,
                                                uint32_t thread, uint32_t threads) {
  for (uint32_t i = 4 * thread; i < d * d; i += 4 * threads)
    __pipeline_memcpy_async(to + i / d * stride + i % d, transform + i, 4 * sizeof(float));
  __pipeline_commit();
}
__device__ __forceinline__ void wait_for_transform() { __pipeline_wait_prior(0); }

}  // namespace turboesm::cuda
