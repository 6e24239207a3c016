// What the files of CUDA kernels share: how kernels are started, how operands are read and written, sums over a warp
// or block.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "runtime/cuda/kernels.h"

namespace turboesm::cuda {

// ---- On the host ----------------------------------------------------------------------------------------------------

// Whether the next kernel may be placed before the one ahead has finished. CUDA 12.3 brought that to graphs.
inline bool starts_early(const Launch& l) {
  return CUDART_VERSION >= 12030 && l.follows_kernel && l.gpu.compute_capability >= 90;
}

// Launches `kernel`, which must begin with wait_for_inputs(): from compute capability 9.0 on its blocks may be placed
// while the kernel before it still runs. `cluster` neighbouring blocks along x are a cluster. A grid without blocks is
// not launched.
template <class... Parameters, class... Arguments>
void start_clusters(uint32_t cluster, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                    const Launch& l, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    require(cudaFuncSetAttribute(kernel, attribute, value), "cudaFuncSetAttribute");
  };
  constexpr size_t kUnasked = 32 * 1024;  // a block has 48 KiB without asking, for what the kernel declares, too
  if (shared_bytes > kUnasked) set(cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = l.stream;
  config.attrs = attributes;
  if (cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (starts_early(l)) {
    // Blocks of two kernels share a multiprocessor only while its memory is divided alike for both, and products take
    // it all for shared memory.
    set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  require(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "cudaLaunchKernelEx");
  l.follows_kernel = true;
}

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, const Launch& l,
           Arguments&&... arguments) {
  start_clusters(1, kernel, grid, block, shared_bytes, l, std::forward<Arguments>(arguments)...);
}

inline uint32_t blocks_of(uint64_t count, uint64_t block) { return uint32_t((count + block - 1) / block); }

// Calls body(T{}) with the C++ type of a floating-point tensor: float, __half or __nv_bfloat16.
template <class Body>
void with_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f16: return body(__half{});
    case DType::bf16: return body(__nv_bfloat16{});
    default: return body(float{});
  }
}

// ---- On the device --------------------------------------------------------------------------------------------------

// Returns when all that was launched before has finished and its writes can be seen. Until then only what no kernel
// ahead in the recording writes (weights, lengths) may be read, and nothing written.
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// From here on the next kernel's blocks may take what room this one leaves; until this one has ended they wait in
// wait_for_inputs().
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

// Two values rounded to a 16-bit T, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float first, float second) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(first, second);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const uint32_t&>(pair);
  }
}

// Four elements at once; the address is aligned to four of them.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};
template <class T>
__device__ __forceinline__ float4 load4(const T* source) {
  const Four<T> four = *reinterpret_cast<const Four<T>*>(source);
  return {to_float(four.at[0]), to_float(four.at[1]), to_float(four.at[2]), to_float(four.at[3])};
}
template <class T>
__device__ __forceinline__ void store4(T* destination, float4 v) {
  if constexpr (sizeof(T) == 4)
    *reinterpret_cast<float4*>(destination) = v;
  else
    *reinterpret_cast<uint2*>(destination) = {pack_pair<T>(v.x, v.y), pack_pair<T>(v.z, v.w)};
}
// Eight elements at once, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ void store8(T* destination, float4 a, float4 b) {
  if constexpr (sizeof(T) == 4)
    store4(destination, a), store4(destination + 4, b);
  else
    *reinterpret_cast<uint4*>(destination) = {pack_pair<T>(a.x, a.y), pack_pair<T>(a.z, a.w), pack_pair<T>(b.x, b.y),
                                              pack_pair<T>(b.z, b.w)};
}
template <class T>
struct alignas(2 * sizeof(T)) Two {
  T at[2];
};
template <class T>
__device__ __forceinline__ float2 load2(const T* source) {
  const Two<T> two = *reinterpret_cast<const Two<T>*>(source);
  return {to_float(two.at[0]), to_float(two.at[1])};
}
template <class T>
__device__ __forceinline__ void store2(T* destination, float2 v) {
  if constexpr (sizeof(T) == 4)
    *reinterpret_cast<float2*>(destination) = v;
  else
    *reinterpret_cast<uint32_t*>(destination) = pack_pair<T>(v.x, v.y);
}

inline constexpr uint32_t kWarp = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr float kLog2E = 1.4426950408889634f;  // softmaxes take powers of two: e^s = 2^(s log2 e)

// The sum, or largest, of all lanes' values, in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// The sequence that holds row `token`: the last b with cu_seqlens[b] <= token, for a token of any.
__device__ __forceinline__ uint32_t sequence_of(const int32_t* cu_seqlens, uint32_t sequences, uint32_t token) {
  uint32_t low = 0, high = sequences;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (uint32_t(cu_seqlens[middle]) <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}

}  // namespace turboesm::cuda
