#include "runtime/cuda/product_hopper_medium.cuh"

namespace turboesm::cuda::hopper {

MediumKernel medium_kernel_f16(uint32_t tile, Kind kind) { return medium_of<__half>(tile, kind); }

}  // namespace turboesm::cuda::hopper
