#include "runtime/cuda/tensor_map.h"

#include <cuda_runtime_api.h>

namespace turboesm::cuda {

decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    constexpr const char* kName = "cuTensorMapEncodeTiled";
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    constexpr unsigned kSince = 12000;  // the version of CUDA that brought it
    const cudaError_t result = cudaGetDriverEntryPointByVersion(kName, &function, kSince, cudaEnableDefault, &found);
#else
    const cudaError_t result = cudaGetDriverEntryPoint(kName, &function, cudaEnableDefault, &found);
#endif
    if (result != cudaSuccess || found != cudaDriverEntryPointSuccess) function = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

}  // namespace turboesm::cuda
