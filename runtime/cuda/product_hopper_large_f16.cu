#include "runtime/cuda/product_hopper_large.cuh"

namespace turboesm::cuda::hopper {

LargeKernel large_kernel_f16(uint32_t tile, Kind kind) { return large_of<__half>(tile, kind); }

}  // namespace turboesm::cuda::hopper
