#pragma once

#include <cstdint>

#include "runtime/dtype.h"

namespace turboesm {

class Buffer;

// A typed, contiguous run of elements inside a buffer: the operand of every operation. Not owning.
struct Tensor {
  Buffer* buffer = nullptr;
  uint64_t offset = 0;  // bytes from the start of the buffer; a multiple of 16
  uint64_t count = 0;   // elements
  DType dtype = DType::f32;

  explicit operator bool() const { return buffer != nullptr; }
  uint64_t bytes() const { return count * size_of(dtype); }
};

enum class Access { read, write, read_write };

// Which element types an operand may have.
enum : uint32_t {
  kF32 = 1u << uint32_t(DType::f32),
  kF16 = 1u << uint32_t(DType::f16),
  kBF16 = 1u << uint32_t(DType::bf16),
  kI32 = 1u << uint32_t(DType::i32),
  kFloat = kF32 | kF16 | kBF16,
};

}  // namespace turboesm
