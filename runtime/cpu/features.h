#pragma once

#include <string>
#include <string_view>

namespace turboesm::cpu {

std::string processor_name();  // as the processor spells it, or its architecture

// Whether this processor and operating system can run the kernels compiled as `variant` (cmake/CpuKernels.cmake). Asked
// for amx_bf16, it requests the operating system's permission for this process.
bool can_run(std::string_view variant);

}  // namespace turboesm::cpu
