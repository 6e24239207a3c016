#pragma once

#include <cstdint>
#include <span>

#include "runtime/backend.h"

namespace turboesm::vulkan {

// Compiles all that `operations` need on the device vulkan:<index>, as Device::record would, but takes no memory and
// runs nothing: enough for a driver that compiles for a card which is not there. Buffers are AddressedBuffers. Throws
// what Device::record throws.
void compile(uint32_t index, const DeviceOptions& options, std::span<const Operation> operations);

}  // namespace turboesm::vulkan
