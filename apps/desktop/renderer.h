#pragma once

#include <memory>

#include "apps/desktop/swapchain.h"

struct ImDrawData;

namespace turboesm::desktop {

// Draws what Dear ImGui lists. (Its own Vulkan back end calls the loader by name, which this program does not link.)
class Renderer {
 public:
  // Takes the current ImGui context's fonts, once they are all added.
  Renderer(const Graphics& graphics, VkRenderPass render_pass);
  ~Renderer();
  Renderer(const Renderer&) = delete;
  Renderer& operator=(const Renderer&) = delete;

  void draw(const ImDrawData& data, VkCommandBuffer commands, uint32_t in_flight, VkExtent2D extent);

 private:
  struct Frame {
    std::unique_ptr<HostBuffer> vertices, indices;
  };

  void create_pipeline(VkRenderPass render_pass);
  void create_font_texture();
  void copy_font_pixels(const HostBuffer& pixels, VkExtent3D extent);
  void upload(const ImDrawData& data, Frame& frame);

  const Graphics& g_;
  VkSampler sampler_ = VK_NULL_HANDLE;
  VkDescriptorSetLayout set_layout_ = VK_NULL_HANDLE;
  VkDescriptorPool pool_ = VK_NULL_HANDLE;
  VkDescriptorSet set_ = VK_NULL_HANDLE;
  VkPipelineLayout layout_ = VK_NULL_HANDLE;
  VkPipeline pipeline_ = VK_NULL_HANDLE;
  VkImage font_ = VK_NULL_HANDLE;
  VmaAllocation font_memory_ = VK_NULL_HANDLE;
  VkImageView font_view_ = VK_NULL_HANDLE;
  Frame frames_[Swapchain::kFramesInFlight];
};

}  // namespace turboesm::desktop
