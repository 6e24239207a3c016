#include "apps/desktop/swapchain.h"

#include <algorithm>
#include <array>
#include <limits>

namespace turboesm::desktop {
namespace {

using vulkan::blank;
using vulkan::enumerate;
using vulkan::require;

constexpr std::array<float, 4> kBackground{0.055f, 0.067f, 0.09f, 1};

}  // namespace

Swapchain::Swapchain(const Graphics& graphics, VkExtent2D size) : g_(graphics) {
  choose_format();
  create_render_pass();
  for (Frame& frame : frames_) {
    auto pool = blank<VkCommandPoolCreateInfo>(VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO);
    pool.queueFamilyIndex = g_.queue_family;
    require(g_.vk.vkCreateCommandPool(g_.device, &pool, nullptr, &frame.pool), "vkCreateCommandPool");
    auto buffer = blank<VkCommandBufferAllocateInfo>(VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO);
    buffer.commandPool = frame.pool;
    buffer.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
    buffer.commandBufferCount = 1;
    require(g_.vk.vkAllocateCommandBuffers(g_.device, &buffer, &frame.commands), "vkAllocateCommandBuffers");
    auto fence = blank<VkFenceCreateInfo>(VK_STRUCTURE_TYPE_FENCE_CREATE_INFO);
    fence.flags = VK_FENCE_CREATE_SIGNALED_BIT;
    require(g_.vk.vkCreateFence(g_.device, &fence, nullptr, &frame.done), "vkCreateFence");
    const auto semaphore = blank<VkSemaphoreCreateInfo>(VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO);
    require(g_.vk.vkCreateSemaphore(g_.device, &semaphore, nullptr, &frame.acquired), "vkCreateSemaphore");
  }
  create_targets(size);
}

Swapchain::~Swapchain() {
  g_.vk.vkDeviceWaitIdle(g_.device);
  destroy_targets();
  if (handle_) g_.vk.vkDestroySwapchainKHR(g_.device, handle_, nullptr);
  for (const Frame& frame : frames_) {
    g_.vk.vkDestroySemaphore(g_.device, frame.acquired, nullptr);
    g_.vk.vkDestroyFence(g_.device, frame.done, nullptr);
    g_.vk.vkDestroyCommandPool(g_.device, frame.pool, nullptr);
  }
  g_.vk.vkDestroyRenderPass(g_.device, render_pass_, nullptr);
}

// Colours are blended as they are stored, which is how the interface's are meant: no sRGB format.
void Swapchain::choose_format() {
  const auto list = g_.function<PFN_vkGetPhysicalDeviceSurfaceFormatsKHR>("vkGetPhysicalDeviceSurfaceFormatsKHR");
  const auto formats = enumerate<VkSurfaceFormatKHR>(
      "vkGetPhysicalDeviceSurfaceFormatsKHR",
      [&](uint32_t* count, VkSurfaceFormatKHR* data) { return list(g_.physical, g_.surface, count, data); });
  const auto found = std::ranges::find_if(formats, [](const VkSurfaceFormatKHR& f) {
    return f.format == VK_FORMAT_B8G8R8A8_UNORM || f.format == VK_FORMAT_R8G8B8A8_UNORM;
  });
  if (found == formats.end()) throw_error(ErrorKind::device, "{}: no image format of 8 bits a colour", g_.name);
  format_ = *found;
}

void Swapchain::create_render_pass() {
  VkAttachmentDescription attachment{};
  attachment.format = format_.format;
  attachment.samples = VK_SAMPLE_COUNT_1_BIT;
  attachment.loadOp = VK_ATTACHMENT_LOAD_OP_CLEAR;
  attachment.storeOp = VK_ATTACHMENT_STORE_OP_STORE;
  attachment.stencilLoadOp = VK_ATTACHMENT_LOAD_OP_DONT_CARE;
  attachment.stencilStoreOp = VK_ATTACHMENT_STORE_OP_DONT_CARE;
  attachment.finalLayout = VK_IMAGE_LAYOUT_PRESENT_SRC_KHR;
  const VkAttachmentReference reference{0, VK_IMAGE_LAYOUT_COLOR_ATTACHMENT_OPTIMAL};
  VkSubpassDescription subpass{};
  subpass.pipelineBindPoint = VK_PIPELINE_BIND_POINT_GRAPHICS;
  subpass.colorAttachmentCount = 1;
  subpass.pColorAttachments = &reference;
  // The image is there once its semaphore is; what follows the pass may copy it.
  std::array<VkSubpassDependency, 2> dependencies{};
  dependencies[0].srcSubpass = VK_SUBPASS_EXTERNAL;
  dependencies[0].srcStageMask = dependencies[0].dstStageMask = VK_PIPELINE_STAGE_COLOR_ATTACHMENT_OUTPUT_BIT;
  dependencies[0].dstAccessMask = VK_ACCESS_COLOR_ATTACHMENT_WRITE_BIT;
  dependencies[1].dstSubpass = VK_SUBPASS_EXTERNAL;
  dependencies[1].srcStageMask = VK_PIPELINE_STAGE_COLOR_ATTACHMENT_OUTPUT_BIT;
  dependencies[1].srcAccessMask = VK_ACCESS_COLOR_ATTACHMENT_WRITE_BIT;
  dependencies[1].dstStageMask = VK_PIPELINE_STAGE_TRANSFER_BIT;
  dependencies[1].dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT;
  auto info = blank<VkRenderPassCreateInfo>(VK_STRUCTURE_TYPE_RENDER_PASS_CREATE_INFO);
  info.attachmentCount = 1;
  info.pAttachments = &attachment;
  info.subpassCount = 1;
  info.pSubpasses = &subpass;
  info.dependencyCount = uint32_t(dependencies.size());
  info.pDependencies = dependencies.data();
  require(g_.vk.vkCreateRenderPass(g_.device, &info, nullptr, &render_pass_), "vkCreateRenderPass");
}

void Swapchain::create_targets(VkExtent2D size) {
  const auto capabilities_of =
      g_.function<PFN_vkGetPhysicalDeviceSurfaceCapabilitiesKHR>("vkGetPhysicalDeviceSurfaceCapabilitiesKHR");
  VkSurfaceCapabilitiesKHR can{};
  require(capabilities_of(g_.physical, g_.surface, &can), "vkGetPhysicalDeviceSurfaceCapabilitiesKHR");
  constexpr uint32_t kWindowDecides = std::numeric_limits<uint32_t>::max();
  extent_ = can.currentExtent;
  if (extent_.width == kWindowDecides)
    extent_ = {std::clamp(size.width, can.minImageExtent.width, can.maxImageExtent.width),
               std::clamp(size.height, can.minImageExtent.height, can.maxImageExtent.height)};
  const VkSwapchainKHR old = handle_;
  handle_ = VK_NULL_HANDLE;
  if (extent_.width != 0 && extent_.height != 0) {  // else minimized: there is nothing to show
    auto info = blank<VkSwapchainCreateInfoKHR>(VK_STRUCTURE_TYPE_SWAPCHAIN_CREATE_INFO_KHR);
    info.surface = g_.surface;
    info.minImageCount = can.minImageCount + 1;
    if (can.maxImageCount) info.minImageCount = std::min(info.minImageCount, can.maxImageCount);
    info.imageFormat = format_.format;
    info.imageColorSpace = format_.colorSpace;
    info.imageExtent = extent_;
    info.imageArrayLayers = 1;
    info.imageUsage = VK_IMAGE_USAGE_COLOR_ATTACHMENT_BIT | (can.supportedUsageFlags & VK_IMAGE_USAGE_TRANSFER_SRC_BIT);
    info.imageSharingMode = VK_SHARING_MODE_EXCLUSIVE;
    info.preTransform = can.currentTransform;
    info.compositeAlpha = can.supportedCompositeAlpha & VK_COMPOSITE_ALPHA_OPAQUE_BIT_KHR
                              ? VK_COMPOSITE_ALPHA_OPAQUE_BIT_KHR
                              : VK_COMPOSITE_ALPHA_INHERIT_BIT_KHR;
    info.presentMode = VK_PRESENT_MODE_FIFO_KHR;  // every device has it; one frame a refresh
    info.clipped = VK_TRUE;
    info.oldSwapchain = old;
    require(g_.vk.vkCreateSwapchainKHR(g_.device, &info, nullptr, &handle_), "vkCreateSwapchainKHR");
  }
  if (old) g_.vk.vkDestroySwapchainKHR(g_.device, old, nullptr);
  if (!handle_) return;

  for (VkImage image : enumerate<VkImage>("vkGetSwapchainImagesKHR", [&](uint32_t*count, VkImage*data) {
         return g_.vk.vkGetSwapchainImagesKHR(g_.device, handle_, count, data);
       })) {
    Target& target = targets_.emplace_back();
    target.image = image;
    auto view = blank<VkImageViewCreateInfo>(VK_STRUCTURE_TYPE_IMAGE_VIEW_CREATE_INFO);
    view.image = image;
    view.viewType = VK_IMAGE_VIEW_TYPE_2D;
    view.format = format_.format;
    view.subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1};
    require(g_.vk.vkCreateImageView(g_.device, &view, nullptr, &target.view), "vkCreateImageView");
    auto framebuffer = blank<VkFramebufferCreateInfo>(VK_STRUCTURE_TYPE_FRAMEBUFFER_CREATE_INFO);
    framebuffer.renderPass = render_pass_;
    framebuffer.attachmentCount = 1;
    framebuffer.pAttachments = &target.view;
    framebuffer.width = extent_.width;
    framebuffer.height = extent_.height;
    framebuffer.layers = 1;
    require(g_.vk.vkCreateFramebuffer(g_.device, &framebuffer, nullptr, &target.framebuffer), "vkCreateFramebuffer");
    const auto semaphore = blank<VkSemaphoreCreateInfo>(VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO);
    require(g_.vk.vkCreateSemaphore(g_.device, &semaphore, nullptr, &target.drawn), "vkCreateSemaphore");
  }
}

void Swapchain::destroy_targets() {
  for (const Target& target : targets_) {
    g_.vk.vkDestroySemaphore(g_.device, target.drawn, nullptr);
    g_.vk.vkDestroyFramebuffer(g_.device, target.framebuffer, nullptr);
    g_.vk.vkDestroyImageView(g_.device, target.view, nullptr);
  }
  targets_.clear();
}

std::optional<Image> Swapchain::frame(VkExtent2D size, bool capture,
                                      const std::function<void(VkCommandBuffer, uint32_t, VkExtent2D)>& draw) {
  if (stale_ || !handle_ || size.width != extent_.width || size.height != extent_.height) {
    g_.vk.vkDeviceWaitIdle(g_.device);
    destroy_targets();
    create_targets(size);
    stale_ = false;
    if (!handle_) return std::nullopt;
  }
  Frame& frame = frames_[next_];
  constexpr uint64_t kForever = std::numeric_limits<uint64_t>::max();
  require(g_.vk.vkWaitForFences(g_.device, 1, &frame.done, VK_TRUE, kForever), "vkWaitForFences");
  uint32_t index = 0;
  const VkResult acquired =
      g_.vk.vkAcquireNextImageKHR(g_.device, handle_, kForever, frame.acquired, VK_NULL_HANDLE, &index);
  if (acquired == VK_ERROR_OUT_OF_DATE_KHR) {
    stale_ = true;
    return std::nullopt;
  }
  if (acquired != VK_SUBOPTIMAL_KHR) require(acquired, "vkAcquireNextImageKHR");
  require(g_.vk.vkResetFences(g_.device, 1, &frame.done), "vkResetFences");
  require(g_.vk.vkResetCommandPool(g_.device, frame.pool, 0), "vkResetCommandPool");

  const Target& target = targets_[index];
  auto begin = blank<VkCommandBufferBeginInfo>(VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO);
  begin.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  require(g_.vk.vkBeginCommandBuffer(frame.commands, &begin), "vkBeginCommandBuffer");
  VkClearValue clear{};
  std::ranges::copy(kBackground, clear.color.float32);
  auto pass = blank<VkRenderPassBeginInfo>(VK_STRUCTURE_TYPE_RENDER_PASS_BEGIN_INFO);
  pass.renderPass = render_pass_;
  pass.framebuffer = target.framebuffer;
  pass.renderArea.extent = extent_;
  pass.clearValueCount = 1;
  pass.pClearValues = &clear;
  g_.vk.vkCmdBeginRenderPass(frame.commands, &pass, VK_SUBPASS_CONTENTS_INLINE);
  draw(frame.commands, next_, extent_);
  g_.vk.vkCmdEndRenderPass(frame.commands);
  std::optional<HostBuffer> copy;
  if (capture) {
    copy.emplace(g_, uint64_t(extent_.width) * extent_.height * 4, VK_BUFFER_USAGE_TRANSFER_DST_BIT);
    record_copy(frame.commands, target.image, *copy);
  }
  require(g_.vk.vkEndCommandBuffer(frame.commands), "vkEndCommandBuffer");

  const VkPipelineStageFlags stage = VK_PIPELINE_STAGE_COLOR_ATTACHMENT_OUTPUT_BIT;
  auto submit = blank<VkSubmitInfo>(VK_STRUCTURE_TYPE_SUBMIT_INFO);
  submit.waitSemaphoreCount = 1;
  submit.pWaitSemaphores = &frame.acquired;
  submit.pWaitDstStageMask = &stage;
  submit.commandBufferCount = 1;
  submit.pCommandBuffers = &frame.commands;
  submit.signalSemaphoreCount = 1;
  submit.pSignalSemaphores = &target.drawn;
  require(g_.vk.vkQueueSubmit(g_.queue, 1, &submit, frame.done), "vkQueueSubmit");
  auto present = blank<VkPresentInfoKHR>(VK_STRUCTURE_TYPE_PRESENT_INFO_KHR);
  present.waitSemaphoreCount = 1;
  present.pWaitSemaphores = &target.drawn;
  present.swapchainCount = 1;
  present.pSwapchains = &handle_;
  present.pImageIndices = &index;
  const VkResult presented = g_.vk.vkQueuePresentKHR(g_.queue, &present);
  stale_ = presented == VK_ERROR_OUT_OF_DATE_KHR || presented == VK_SUBOPTIMAL_KHR || acquired == VK_SUBOPTIMAL_KHR;
  if (!stale_) require(presented, "vkQueuePresentKHR");
  next_ = (next_ + 1) % kFramesInFlight;
  if (!copy) return std::nullopt;
  require(g_.vk.vkWaitForFences(g_.device, 1, &frame.done, VK_TRUE, kForever), "vkWaitForFences");
  return pixels(*copy);
}

void Swapchain::record_copy(VkCommandBuffer commands, VkImage image, const HostBuffer& destination) const {
  auto barrier = blank<VkImageMemoryBarrier>(VK_STRUCTURE_TYPE_IMAGE_MEMORY_BARRIER);
  barrier.srcAccessMask = VK_ACCESS_COLOR_ATTACHMENT_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT;
  barrier.oldLayout = VK_IMAGE_LAYOUT_PRESENT_SRC_KHR;
  barrier.newLayout = VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL;
  barrier.srcQueueFamilyIndex = barrier.dstQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED;
  barrier.image = image;
  barrier.subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1};
  g_.vk.vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COLOR_ATTACHMENT_OUTPUT_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                             VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 0, nullptr, 0, nullptr, 1, &barrier);
  VkBufferImageCopy region{};
  region.imageSubresource = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 0, 1};
  region.imageExtent = {extent_.width, extent_.height, 1};
  g_.vk.vkCmdCopyImageToBuffer(commands, image, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL, destination.handle(), 1, &region);
  barrier.srcAccessMask = VK_ACCESS_TRANSFER_READ_BIT;
  barrier.dstAccessMask = 0;
  std::swap(barrier.oldLayout, barrier.newLayout);
  auto to_host = blank<VkMemoryBarrier>(VK_STRUCTURE_TYPE_MEMORY_BARRIER);
  to_host.srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT;
  to_host.dstAccessMask = VK_ACCESS_HOST_READ_BIT;
  g_.vk.vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_TRANSFER_BIT,
                             VK_PIPELINE_STAGE_HOST_BIT | VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, 0, 1, &to_host, 0,
                             nullptr, 1, &barrier);
}

Image Swapchain::pixels(const HostBuffer& source) const {
  source.invalidate();
  Image image{extent_.width, extent_.height, {}};
  const bool blue_first = format_.format == VK_FORMAT_B8G8R8A8_UNORM;
  const auto* bytes = reinterpret_cast<const uint8_t*>(source.mapped());
  for (size_t i = 0; i < size_t(extent_.width) * extent_.height; ++i, bytes += 4)
    image.rgb.insert(image.rgb.end(), {bytes[blue_first ? 2 : 0], bytes[1], bytes[blue_first ? 0 : 2]});
  return image;
}

}  // namespace turboesm::desktop
