#pragma once

#include "runtime/backend.h"

namespace turboesm::vulkan {

// A buffer that kernels reach by its device address: all that lowering and hazard tracking know of one.
class AddressedBuffer : public Buffer {
 public:
  AddressedBuffer(uint64_t size, MemoryLabel label, uint64_t address) : Buffer(size, label), address_(address) {}
  uint64_t address() const { return address_; }

 private:
  uint64_t address_;
};

}  // namespace turboesm::vulkan
