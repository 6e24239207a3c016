#pragma once

#include <cstdint>

#include "runtime/tensor.h"

namespace turboesm {

// Hands out tensors one behind the other in one buffer, at multiples of 256 bytes. Used with a null buffer to measure
// and with the real one to place, so that the two cannot differ.
class Region {
 public:
  explicit Region(Buffer* buffer = nullptr) : buffer_(buffer) {}

  Tensor take(uint64_t count, DType dtype) {
    const Tensor tensor{buffer_, size_, count, dtype};
    size_ = (size_ + tensor.bytes() + kAlignment - 1) / kAlignment * kAlignment;
    return tensor;
  }
  void restart() { size_ = 0; }
  uint64_t size() const { return size_; }

 private:
  static constexpr uint64_t kAlignment = 256;
  Buffer* buffer_;
  uint64_t size_ = 0;
};

}  // namespace turboesm
