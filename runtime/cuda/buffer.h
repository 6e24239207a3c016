#pragma once

#include "runtime/backend.h"

namespace turboesm::cuda {

// Device memory as the module sees it; the program's side (runtime/cuda_backend.cpp) derives from it and frees it.
class CudaBuffer : public Buffer {
 public:
  uint64_t address() const { return address_; }  // on the device; a multiple of 256

 protected:
  CudaBuffer(uint64_t size, MemoryLabel label, uint64_t address) : Buffer(size, label), address_(address) {}

 private:
  uint64_t address_;
};

}  // namespace turboesm::cuda
