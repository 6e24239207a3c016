#include "runtime/vulkan/staging.h"

#include <algorithm>
#include <cstring>

namespace turboesm::vulkan {

Staging::~Staging() { finish(); }

Staging::Chunk& Staging::free_chunk(uint64_t index) {
  std::optional<Chunk>& chunk = chunks_[index % chunks_.size()];
  if (!chunk) chunk = Chunk{memory_.allocate_staging(kChunkBytes), Commands(device_)};
  queue_.wait(chunk->busy_until);
  return *chunk;
}

void Staging::start_copy(Chunk& chunk, VkBuffer source, VkBuffer destination, const VkBufferCopy& region) {
  const VkCommandBuffer commands = chunk.commands.get();
  chunk.commands.begin(VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT);
  memory_barrier(device_, commands, kCompute | kTransfer, kTransfer);
  device_.vk.vkCmdCopyBuffer(commands, source, destination, 1, &region);
  memory_barrier(device_, commands, kTransfer, kHost);
  chunk.commands.end();
  chunk.busy_until = queue_.submit(commands);
}

void Staging::finish() noexcept {
  for (const std::optional<Chunk>& chunk : chunks_) {
    try {
      if (chunk) queue_.wait(chunk->busy_until);
    } catch (const Error&) {  // the device is lost: nothing runs any more
    }
  }
}

void Staging::upload(const VulkanBuffer& buffer, uint64_t offset, uint64_t size, const FillChunk& fill) {
  try {
    for (uint64_t done = 0, index = 0; done < size; done += kChunkBytes, ++index) {
      const uint64_t bytes = std::min(kChunkBytes, size - done);
      Chunk& chunk = free_chunk(index);
      fill({chunk.buffer->mapped(), bytes}, done);
      chunk.buffer->flush(bytes);
      start_copy(chunk, chunk.buffer->handle(), buffer.handle(), {0, offset + done, bytes});
    }
    queue_.wait(queue_.last());
  } catch (...) {
    finish();  // the caller may free the buffer next
    throw;
  }
}

void Staging::download(const VulkanBuffer& buffer, uint64_t offset, std::span<std::byte> destination) {
  const uint64_t count = (destination.size() + kChunkBytes - 1) / kChunkBytes;
  const auto piece = [&](uint64_t index) {
    return destination.subspan(index * kChunkBytes, std::min(kChunkBytes, destination.size() - index * kChunkBytes));
  };
  const auto start = [&](uint64_t index) {
    Chunk& chunk = free_chunk(index);
    start_copy(chunk, buffer.handle(), chunk.buffer->handle(), {offset + index * kChunkBytes, 0, piece(index).size()});
  };
  const auto collect = [&](uint64_t index) {
    const Chunk& chunk = free_chunk(index);
    chunk.buffer->invalidate(piece(index).size());
    std::memcpy(piece(index).data(), chunk.buffer->mapped(), piece(index).size());
  };
  for (uint64_t index = 0; index < count; ++index) {
    start(index);
    if (index > 0) collect(index - 1);
  }
  if (count > 0) collect(count - 1);
}

}  // namespace turboesm::vulkan
