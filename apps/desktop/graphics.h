#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/vulkan/instance.h"
#include "runtime/vulkan/vma.h"

struct GLFWwindow;

namespace turboesm::desktop {

// The window's own Vulkan instance and device, with which it draws. The devices that compute have others (see
// runtime/vulkan); nothing is shared with them. With `validation`, the validation layers watch, synchronization
// included.
class Graphics {
 public:
  // Takes the first device that can show the window, discrete ones before integrated ones before the rest. Error
  // (device) when there is none.
  Graphics(GLFWwindow* window, bool validation);
  ~Graphics();
  Graphics(const Graphics&) = delete;
  Graphics& operator=(const Graphics&) = delete;

  // What the validation layers have said since the last call.
  std::vector<std::string> take_messages() { return messages_ ? messages_->take() : std::vector<std::string>(); }

  // An extension's function, of the instance.
  template <class Function>
  Function function(const char* function_name) const {
    return reinterpret_cast<Function>(vkGetInstanceProcAddr(instance, function_name));
  }

  VkInstance instance = VK_NULL_HANDLE;
  VkSurfaceKHR surface = VK_NULL_HANDLE;
  VkPhysicalDevice physical = VK_NULL_HANDLE;
  VkDevice device = VK_NULL_HANDLE;
  VkQueue queue = VK_NULL_HANDLE;
  uint32_t queue_family = 0;
  VolkDeviceTable vk{};
  VmaAllocator allocator = VK_NULL_HANDLE;
  std::string name;  // of the device

 private:
  void create_instance();
  void choose_device();
  void create_device();

  std::unique_ptr<vulkan::ValidationMessages> messages_;  // null without validation
  VkDebugUtilsMessengerEXT messenger_ = VK_NULL_HANDLE;
};

// A buffer that the host writes or reads, always mapped.
class HostBuffer {
 public:
  HostBuffer(const Graphics& graphics, uint64_t size, VkBufferUsageFlags usage);
  ~HostBuffer();
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;

  VkBuffer handle() const { return handle_; }
  uint64_t size() const { return size_; }
  std::byte* mapped() const { return mapped_; }
  void flush() const;       // host writes become visible to the device
  void invalidate() const;  // and its writes to the host

 private:
  VmaAllocator allocator_;
  uint64_t size_;
  VkBuffer handle_ = VK_NULL_HANDLE;
  VmaAllocation allocation_ = VK_NULL_HANDLE;
  std::byte* mapped_ = nullptr;
};

}  // namespace turboesm::desktop
