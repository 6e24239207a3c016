#pragma once

#include <cuda.h>

namespace turboesm::cuda {

// cuTensorMapEncodeTiled, which describes a tensor to the copy engine: a function of the driver, asked for by name so
// that nothing links the driver. Null where the driver does not know it.
decltype(&cuTensorMapEncodeTiled) tensor_map_encoder();

}  // namespace turboesm::cuda
