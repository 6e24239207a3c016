#include "runtime/cuda/product_hopper_medium.cuh"

namespace turboesm::cuda::hopper {

MediumKernel medium_kernel_bf16(uint32_t tile, Kind kind) { return medium_of<__nv_bfloat16>(tile, kind); }

}  // namespace turboesm::cuda::hopper
