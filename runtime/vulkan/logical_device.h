#pragma once

#include <utility>

#include "runtime/backend.h"
#include "runtime/vulkan/physical_device.h"
#include "runtime/vulkan/vk.h"

namespace turboesm::vulkan {

// The VkDevice, its functions and its one queue.
struct LogicalDevice {
  // Enables what `physical` says the device is able to do. Throws Error.
  explicit LogicalDevice(const PhysicalDevice& physical);
  ~LogicalDevice();
  LogicalDevice(const LogicalDevice&) = delete;
  LogicalDevice& operator=(const LogicalDevice&) = delete;

  VkDevice handle = VK_NULL_HANDLE;
  VolkDeviceTable vk{};
  VkQueue queue = VK_NULL_HANDLE;
  uint32_t queue_family = 0;
};

// Owns one object of a device; `Destroy` is the member of VolkDeviceTable that destroys it.
template <class T, auto Destroy>
class Owned {
 public:
  Owned() = default;
  Owned(const LogicalDevice& device, T handle) : device_(&device), handle_(handle) {}
  Owned(Owned&& other) noexcept : device_(other.device_), handle_(std::exchange(other.handle_, T(VK_NULL_HANDLE))) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != T(VK_NULL_HANDLE)) (device_->vk.*Destroy)(device_->handle, handle_, nullptr);
  }
  T get() const { return handle_; }
  explicit operator bool() const { return handle_ != T(VK_NULL_HANDLE); }

 private:
  const LogicalDevice* device_ = nullptr;
  T handle_ = T(VK_NULL_HANDLE);
};

using OwnedSemaphore = Owned<VkSemaphore, &VolkDeviceTable::vkDestroySemaphore>;
using OwnedCommandPool = Owned<VkCommandPool, &VolkDeviceTable::vkDestroyCommandPool>;
using OwnedQueryPool = Owned<VkQueryPool, &VolkDeviceTable::vkDestroyQueryPool>;
using OwnedShaderModule = Owned<VkShaderModule, &VolkDeviceTable::vkDestroyShaderModule>;
using OwnedPipelineLayout = Owned<VkPipelineLayout, &VolkDeviceTable::vkDestroyPipelineLayout>;
using OwnedPipelineCache = Owned<VkPipelineCache, &VolkDeviceTable::vkDestroyPipelineCache>;
using OwnedPipeline = Owned<VkPipeline, &VolkDeviceTable::vkDestroyPipeline>;

// Command buffers in the order of their submission; a timeline semaphore counts those that are done.
class Queue {
 public:
  explicit Queue(const LogicalDevice& device) : device_(device) {}
  ~Queue();  // waits for everything
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Starts `commands` and returns its ticket. Memory is ordered by the barriers that the commands begin with.
  Ticket submit(VkCommandBuffer commands);
  void wait(Ticket ticket) const;  // 0: nothing to wait for
  Ticket last() const { return last_; }

 private:
  void make_timeline();

  const LogicalDevice& device_;
  OwnedSemaphore timeline_;  // made for the first submission: a driver without its card can compile all the same
  Ticket last_ = 0;
};

// A command buffer, from a pool of its own so that it can be recorded and freed apart from all others.
class Commands {
 public:
  explicit Commands(const LogicalDevice& device);

  VkCommandBuffer get() const { return handle_; }
  void begin(VkCommandBufferUsageFlags usage);  // forgets what was recorded; it must not be running
  void end();

 private:
  const LogicalDevice* device_;
  OwnedCommandPool pool_;
  VkCommandBuffer handle_ = VK_NULL_HANDLE;
};

struct Scope {
  VkPipelineStageFlags stages;
  VkAccessFlags access;
};
inline constexpr Scope kCompute{VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT};
inline constexpr Scope kTransfer{VK_PIPELINE_STAGE_TRANSFER_BIT,
                                 VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT};
inline constexpr Scope kHost{VK_PIPELINE_STAGE_HOST_BIT, VK_ACCESS_HOST_READ_BIT};
constexpr Scope operator|(Scope a, Scope b) { return {a.stages | b.stages, a.access | b.access}; }

// What follows in scope `after` waits for what came before in scope `before`, and sees what it wrote.
void memory_barrier(const LogicalDevice& device, VkCommandBuffer commands, Scope before, Scope after);

}  // namespace turboesm::vulkan
