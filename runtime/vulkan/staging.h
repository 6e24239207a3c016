#pragma once

#include <array>
#include <optional>

#include "runtime/backend.h"
#include "runtime/vulkan/logical_device.h"
#include "runtime/vulkan/memory.h"

namespace turboesm::vulkan {

// Copies between host and device through two chunks of host memory: while the device copies one, the host fills or
// empties the other. The chunks are allocated when first needed.
class Staging {
 public:
  static constexpr uint64_t kChunkBytes = 16u << 20;

  Staging(const LogicalDevice& device, Memory& memory, Queue& queue)
      : device_(device), memory_(memory), queue_(queue) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // As Device::upload and Device::download; the range has been checked.
  void upload(const VulkanBuffer& buffer, uint64_t offset, uint64_t size, const FillChunk& fill);
  void download(const VulkanBuffer& buffer, uint64_t offset, std::span<std::byte> destination);

 private:
  struct Chunk {
    std::unique_ptr<VulkanBuffer> buffer;
    Commands commands;
    Ticket busy_until = 0;
  };

  Chunk& free_chunk(uint64_t index);  // the two in turn, waiting for what it is busy with
  void start_copy(Chunk& chunk, VkBuffer source, VkBuffer destination, const VkBufferCopy& region);
  void finish() noexcept;  // waits for all copies

  const LogicalDevice& device_;
  Memory& memory_;
  Queue& queue_;
  std::array<std::optional<Chunk>, 2> chunks_;
};

}  // namespace turboesm::vulkan
