// What the kernels that run on a device were compiled for: its own architecture, or an older one's PTX.
#include "runtime/cuda/kernels.h"

namespace turboesm::cuda {
namespace {

__global__ void tell(int* architecture, int* hopper) {
#if defined(__CUDA_ARCH__)
  *architecture = __CUDA_ARCH__ / 10;
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  *hopper = 1;
#else
  *hopper = 0;
#endif
}

}  // namespace

CompiledFor compiled_for(cudaStream_t stream) {
  CompiledFor compiled{};
  int values[2] = {};
  int* memory = nullptr;
  require(cudaMallocAsync(&memory, sizeof values, stream), "cudaMallocAsync");
  tell<<<1, 1, 0, stream>>>(memory, memory + 1);
  const cudaError_t launched = cudaGetLastError();
  if (launched == cudaSuccess)
    require(cudaMemcpyAsync(values, memory, sizeof values, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
  require(cudaFreeAsync(memory, stream), "cudaFreeAsync");
  require(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  if (launched != cudaErrorNoKernelImageForDevice) require(launched, "the first kernel");
  compiled.compute_capability = values[0];
  compiled.hopper = values[1] != 0;
  return compiled;
}

}  // namespace turboesm::cuda
