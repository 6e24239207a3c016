#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "runtime/cuda/buffer.h"
#include "runtime/operations.h"

// Launches of every operation (runtime/operations.h) on a stream that is being captured or runs. The operations have
// been check()ed. Nothing here allocates memory or waits.
namespace turboesm::cuda {

// What the choice of a kernel may depend on.
struct Gpu {
  int index = 0;               // of the CUDA runtime
  int compute_capability = 0;  // 10 x major + minor of what its kernels were compiled for: 75, 80, 90 ...
  bool hopper = false;         // and these with the instructions of sm_90a
  uint32_t multiprocessors = 0;
  uint32_t max_shared_bytes = 0;  // that a block may ask for
  uint64_t l2_bytes = 0;
  bool matrix_cores = true;         // DeviceOptions::matrix_cores
  bool tf32 = false;                // products of f32 may round their operands to 10 bits of mantissa
  bool arbitrary_products = false;  // DeviceOptions::arbitrary_products
};

// What the kernels that this stream's device runs were compiled for; compute capability 0: the module has none for it.
struct CompiledFor {
  int compute_capability;
  bool hopper;
};
CompiledFor compiled_for(cudaStream_t stream);

// Kernels that use scratch memory run one after another, so all may use the same while they run. Its first kCounters
// words are zero whenever a kernel starts; who counts there puts them back to zero.
inline constexpr uint64_t kCounters = 16384;
inline constexpr uint64_t kScratchBytes = uint64_t(64) << 20;

class Products;

// Where kernels are launched.
struct Launch {
  const Gpu& gpu;
  cudaStream_t stream = nullptr;
  std::byte* scratch = nullptr;  // kScratchBytes on the device
  Products* products = nullptr;  // algorithms chosen for Linear and QkvRope
  // What was launched last on the stream is a kernel, whose end the next may prepare itself for (start() in
  // kernel_tools.cuh).
  mutable bool follows_kernel = false;
};

inline uint64_t address_of(const Tensor& tensor) {
  return tensor ? static_cast<const CudaBuffer*>(tensor.buffer)->address() + tensor.offset : 0;
}
template <class T>
T* pointer(const Tensor& tensor) {
  return reinterpret_cast<T*>(address_of(tensor));
}

// Throws Error(device), or Error(out_of_memory), naming the call, unless `result` is cudaSuccess.
void require(cudaError_t result, const char* call);

void launch(const TokenDropout& a, const Launch& l);
void launch(const Embed& a, const Launch& l);
void launch(const LayerNorm& a, const Launch& l);
void launch(const Linear& a, const Launch& l);
void launch(const QkvRope& a, const Launch& l);
void launch(const Attention& a, const Launch& l);
void launch(const PoolMean& a, const Launch& l);
void launch(const AttentionMaps& a, const Launch& l);
void launch(const ContactSums& a, const Launch& l);
void launch(const ContactAccumulate& a, const Launch& l);
void launch(const Fill& a, const Launch& l);
void launch(const RandomNormal& a, const Launch& l);
void launch(const Copy& a, const Launch& l);
void launch(const KvAppend& a, const Launch& l);
void launch(const KvQuery& a, const Launch& l);
void launch(const KvAttention& a, const Launch& l);
void launch(const Sample& a, const Launch& l);

}  // namespace turboesm::cuda
