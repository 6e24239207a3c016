#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "runtime/backend.h"

namespace turboesm::cpu {

inline constexpr std::size_t kAlignment = 256;

// Host memory, counted in the device's ledger for as long as it lives.
class CpuBuffer final : public Buffer {
 public:
  // Throws Error(out_of_memory).
  CpuBuffer(uint64_t size, MemoryLabel label, std::shared_ptr<MemoryLedger> ledger);
  ~CpuBuffer() override;
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::shared_ptr<MemoryLedger> ledger_;
};

inline std::byte* data_of(const Tensor& tensor) {
  return static_cast<const CpuBuffer*>(tensor.buffer)->data() + tensor.offset;
}

}  // namespace turboesm::cpu
