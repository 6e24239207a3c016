#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "apps/desktop/graphics.h"
#include "apps/desktop/image.h"

namespace turboesm::desktop {

// The window's images: takes one, has it drawn into, shows it; made anew when the window's size changes.
class Swapchain {
 public:
  Swapchain(const Graphics& graphics, VkExtent2D size);
  ~Swapchain();
  Swapchain(const Swapchain&) = delete;
  Swapchain& operator=(const Swapchain&) = delete;

  static constexpr uint32_t kFramesInFlight = 2;
  VkRenderPass render_pass() const { return render_pass_; }

  // Draws and shows one frame in a window of `size` pixels: `draw` records into a command buffer within the render pass
  // and gets the number of the frame in flight, 0 or 1, whose resources are free. Returns the frame's pixels where
  // `capture` asks for them; nothing, too, where the window could not be drawn to just now, which `draw` then does not
  // see.
  std::optional<Image> frame(VkExtent2D size, bool capture,
                             const std::function<void(VkCommandBuffer, uint32_t in_flight, VkExtent2D)>& draw);

 private:
  struct Frame {
    VkCommandPool pool = VK_NULL_HANDLE;
    VkCommandBuffer commands = VK_NULL_HANDLE;
    VkFence done = VK_NULL_HANDLE;
    VkSemaphore acquired = VK_NULL_HANDLE;
  };
  struct Target {
    VkImage image = VK_NULL_HANDLE;
    VkImageView view = VK_NULL_HANDLE;
    VkFramebuffer framebuffer = VK_NULL_HANDLE;
    VkSemaphore drawn = VK_NULL_HANDLE;
  };

  void choose_format();
  void create_render_pass();
  void create_targets(VkExtent2D size);
  void destroy_targets();
  void record_copy(VkCommandBuffer commands, VkImage image, const HostBuffer& destination) const;
  Image pixels(const HostBuffer& source) const;

  const Graphics& g_;
  VkSurfaceFormatKHR format_{};
  VkRenderPass render_pass_ = VK_NULL_HANDLE;
  VkSwapchainKHR handle_ = VK_NULL_HANDLE;
  VkExtent2D extent_{};
  std::vector<Target> targets_;
  Frame frames_[kFramesInFlight];
  uint32_t next_ = 0;
  bool stale_ = false;
};

}  // namespace turboesm::desktop
