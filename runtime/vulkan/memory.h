#pragma once

#include <memory>
#include <span>

#include "runtime/backend.h"
#include "runtime/vulkan/addressed_buffer.h"
#include "runtime/vulkan/logical_device.h"
#include "runtime/vulkan/vma.h"

namespace turboesm::vulkan {

class Memory;

// A VkBuffer with memory of its own. `mapped` is where the host sees it; null for device memory.
class VulkanBuffer final : public AddressedBuffer {
 public:
  VulkanBuffer(Memory& memory, uint64_t size, MemoryLabel label, VkBuffer handle, VmaAllocation allocation,
               const VmaAllocationInfo& info);
  ~VulkanBuffer() override;
  VulkanBuffer(const VulkanBuffer&) = delete;
  VulkanBuffer& operator=(const VulkanBuffer&) = delete;

  VkBuffer handle() const { return handle_; }
  std::byte* mapped() const { return mapped_; }
  const Memory& memory() const { return memory_; }

  // Host writes in [0, bytes) become visible to the device, and its writes to the host; nothing where memory is
  // coherent. For host-visible buffers only.
  void flush(uint64_t bytes) const;
  void invalidate(uint64_t bytes) const;

 private:
  Memory& memory_;
  VkBuffer handle_;
  VmaAllocation allocation_;
  uint64_t allocated_bytes_;
  std::byte* mapped_;
};

// Allocates and counts all the memory of one device.
class Memory {
 public:
  Memory(const Instance& instance, const PhysicalDevice& physical, const LogicalDevice& device);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // In device-local memory only: a driver must not make room in host memory, where kernels would crawl. Throws
  // Error(out_of_memory) with the sizes.
  std::unique_ptr<VulkanBuffer> allocate(uint64_t size, MemoryLabel label);

  // Host memory that both sides read and write, for copies.
  std::unique_ptr<VulkanBuffer> allocate_staging(uint64_t size);

  MemoryReport report() const;

 private:
  friend class VulkanBuffer;
  enum class Place { device, host };
  std::unique_ptr<VulkanBuffer> create(uint64_t size, MemoryLabel label, Place place);
  [[noreturn]] void throw_out_of_memory(uint64_t size, MemoryLabel label) const;
  VmaBudget budget() const;  // of the heap that buffers live in

  const PhysicalDevice& physical_;
  const LogicalDevice& device_;
  VmaAllocator allocator_ = VK_NULL_HANDLE;
  MemoryLedger ledger_;
};

}  // namespace turboesm::vulkan
