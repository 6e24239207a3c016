#include "apps/desktop/renderer.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <limits>
#include <span>

#include <imgui.h>

#include "ui_frag.h"
#include "ui_vert.h"

namespace turboesm::desktop {
namespace {

using vulkan::blank;
using vulkan::require;

struct Push {  // as in ui.vert
  float scale[2], translation[2];
};

VkShaderModule create_module(const Graphics& g, std::span<const uint32_t> words) {
  auto info = blank<VkShaderModuleCreateInfo>(VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO);
  info.codeSize = words.size_bytes();
  info.pCode = words.data();
  VkShaderModule module = VK_NULL_HANDLE;
  require(g.vk.vkCreateShaderModule(g.device, &info, nullptr, &module), "vkCreateShaderModule");
  return module;
}

VkPipelineShaderStageCreateInfo stage(VkShaderStageFlagBits bit, VkShaderModule module) {
  auto info = blank<VkPipelineShaderStageCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO);
  info.stage = bit;
  info.module = module;
  info.pName = "main";
  return info;
}

}  // namespace

Renderer::Renderer(const Graphics& graphics, VkRenderPass render_pass) : g_(graphics) {
  auto sampler = blank<VkSamplerCreateInfo>(VK_STRUCTURE_TYPE_SAMPLER_CREATE_INFO);
  sampler.magFilter = sampler.minFilter = VK_FILTER_LINEAR;
  sampler.addressModeU = sampler.addressModeV = sampler.addressModeW = VK_SAMPLER_ADDRESS_MODE_CLAMP_TO_EDGE;
  require(g_.vk.vkCreateSampler(g_.device, &sampler, nullptr, &sampler_), "vkCreateSampler");

  VkDescriptorSetLayoutBinding binding{};
  binding.descriptorType = VK_DESCRIPTOR_TYPE_COMBINED_IMAGE_SAMPLER;
  binding.descriptorCount = 1;
  binding.stageFlags = VK_SHADER_STAGE_FRAGMENT_BIT;
  auto set_layout = blank<VkDescriptorSetLayoutCreateInfo>(VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO);
  set_layout.bindingCount = 1;
  set_layout.pBindings = &binding;
  require(g_.vk.vkCreateDescriptorSetLayout(g_.device, &set_layout, nullptr, &set_layout_),
          "vkCreateDescriptorSetLayout");
  const VkDescriptorPoolSize size{VK_DESCRIPTOR_TYPE_COMBINED_IMAGE_SAMPLER, 1};
  auto pool = blank<VkDescriptorPoolCreateInfo>(VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO);
  pool.maxSets = 1;
  pool.poolSizeCount = 1;
  pool.pPoolSizes = &size;
  require(g_.vk.vkCreateDescriptorPool(g_.device, &pool, nullptr, &pool_), "vkCreateDescriptorPool");
  auto set = blank<VkDescriptorSetAllocateInfo>(VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO);
  set.descriptorPool = pool_;
  set.descriptorSetCount = 1;
  set.pSetLayouts = &set_layout_;
  require(g_.vk.vkAllocateDescriptorSets(g_.device, &set, &set_), "vkAllocateDescriptorSets");
  create_pipeline(render_pass);
  create_font_texture();
}

Renderer::~Renderer() {
  g_.vk.vkDeviceWaitIdle(g_.device);
  g_.vk.vkDestroyImageView(g_.device, font_view_, nullptr);
  vmaDestroyImage(g_.allocator, font_, font_memory_);
  g_.vk.vkDestroyPipeline(g_.device, pipeline_, nullptr);
  g_.vk.vkDestroyPipelineLayout(g_.device, layout_, nullptr);
  g_.vk.vkDestroyDescriptorPool(g_.device, pool_, nullptr);
  g_.vk.vkDestroyDescriptorSetLayout(g_.device, set_layout_, nullptr);
  g_.vk.vkDestroySampler(g_.device, sampler_, nullptr);
}

void Renderer::create_pipeline(VkRenderPass render_pass) {
  const VkPushConstantRange range{VK_SHADER_STAGE_VERTEX_BIT, 0, sizeof(Push)};
  auto layout = blank<VkPipelineLayoutCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO);
  layout.setLayoutCount = 1;
  layout.pSetLayouts = &set_layout_;
  layout.pushConstantRangeCount = 1;
  layout.pPushConstantRanges = &range;
  require(g_.vk.vkCreatePipelineLayout(g_.device, &layout, nullptr, &layout_), "vkCreatePipelineLayout");

  const VkShaderModule vertex = create_module(g_, ui_vert), fragment = create_module(g_, ui_frag);
  const std::array stages{stage(VK_SHADER_STAGE_VERTEX_BIT, vertex), stage(VK_SHADER_STAGE_FRAGMENT_BIT, fragment)};

  const VkVertexInputBindingDescription vertices{0, sizeof(ImDrawVert), VK_VERTEX_INPUT_RATE_VERTEX};
  const std::array<VkVertexInputAttributeDescription, 3> attributes{
      {{0, 0, VK_FORMAT_R32G32_SFLOAT, offsetof(ImDrawVert, pos)},
       {1, 0, VK_FORMAT_R32G32_SFLOAT, offsetof(ImDrawVert, uv)},
       {2, 0, VK_FORMAT_R8G8B8A8_UNORM, offsetof(ImDrawVert, col)}}};
  auto input = blank<VkPipelineVertexInputStateCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_VERTEX_INPUT_STATE_CREATE_INFO);
  input.vertexBindingDescriptionCount = 1;
  input.pVertexBindingDescriptions = &vertices;
  input.vertexAttributeDescriptionCount = uint32_t(attributes.size());
  input.pVertexAttributeDescriptions = attributes.data();
  auto assembly =
      blank<VkPipelineInputAssemblyStateCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_INPUT_ASSEMBLY_STATE_CREATE_INFO);
  assembly.topology = VK_PRIMITIVE_TOPOLOGY_TRIANGLE_LIST;
  auto viewport = blank<VkPipelineViewportStateCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_VIEWPORT_STATE_CREATE_INFO);
  viewport.viewportCount = viewport.scissorCount = 1;
  auto raster =
      blank<VkPipelineRasterizationStateCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_RASTERIZATION_STATE_CREATE_INFO);
  raster.cullMode = VK_CULL_MODE_NONE;
  raster.lineWidth = 1;
  auto samples = blank<VkPipelineMultisampleStateCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_MULTISAMPLE_STATE_CREATE_INFO);
  samples.rasterizationSamples = VK_SAMPLE_COUNT_1_BIT;
  VkPipelineColorBlendAttachmentState over{};
  over.blendEnable = VK_TRUE;
  over.srcColorBlendFactor = VK_BLEND_FACTOR_SRC_ALPHA;
  over.dstColorBlendFactor = VK_BLEND_FACTOR_ONE_MINUS_SRC_ALPHA;
  over.srcAlphaBlendFactor = VK_BLEND_FACTOR_ONE;
  over.dstAlphaBlendFactor = VK_BLEND_FACTOR_ONE_MINUS_SRC_ALPHA;
  over.colorWriteMask = VK_COLOR_COMPONENT_R_BIT | VK_COLOR_COMPONENT_G_BIT | VK_COLOR_COMPONENT_B_BIT;
  auto blend = blank<VkPipelineColorBlendStateCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_COLOR_BLEND_STATE_CREATE_INFO);
  blend.attachmentCount = 1;
  blend.pAttachments = &over;
  const std::array varying{VK_DYNAMIC_STATE_VIEWPORT, VK_DYNAMIC_STATE_SCISSOR};
  auto dynamic = blank<VkPipelineDynamicStateCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_DYNAMIC_STATE_CREATE_INFO);
  dynamic.dynamicStateCount = uint32_t(varying.size());
  dynamic.pDynamicStates = varying.data();

  auto info = blank<VkGraphicsPipelineCreateInfo>(VK_STRUCTURE_TYPE_GRAPHICS_PIPELINE_CREATE_INFO);
  info.stageCount = uint32_t(stages.size());
  info.pStages = stages.data();
  info.pVertexInputState = &input;
  info.pInputAssemblyState = &assembly;
  info.pViewportState = &viewport;
  info.pRasterizationState = &raster;
  info.pMultisampleState = &samples;
  info.pColorBlendState = &blend;
  info.pDynamicState = &dynamic;
  info.layout = layout_;
  info.renderPass = render_pass;
  const VkResult result = g_.vk.vkCreateGraphicsPipelines(g_.device, VK_NULL_HANDLE, 1, &info, nullptr, &pipeline_);
  g_.vk.vkDestroyShaderModule(g_.device, vertex, nullptr);
  g_.vk.vkDestroyShaderModule(g_.device, fragment, nullptr);
  require(result, "vkCreateGraphicsPipelines");
}

void Renderer::create_font_texture() {
  unsigned char* coverage = nullptr;
  int width = 0, height = 0;
  ImGui::GetIO().Fonts->GetTexDataAsAlpha8(&coverage, &width, &height);
  const VkExtent3D extent{uint32_t(width), uint32_t(height), 1};
  auto image = blank<VkImageCreateInfo>(VK_STRUCTURE_TYPE_IMAGE_CREATE_INFO);
  image.imageType = VK_IMAGE_TYPE_2D;
  image.format = VK_FORMAT_R8_UNORM;
  image.extent = extent;
  image.mipLevels = image.arrayLayers = 1;
  image.samples = VK_SAMPLE_COUNT_1_BIT;
  image.usage = VK_IMAGE_USAGE_SAMPLED_BIT | VK_IMAGE_USAGE_TRANSFER_DST_BIT;
  VmaAllocationCreateInfo allocation{};
  allocation.usage = VMA_MEMORY_USAGE_AUTO;
  require(vmaCreateImage(g_.allocator, &image, &allocation, &font_, &font_memory_, nullptr), "vmaCreateImage");
  auto view = blank<VkImageViewCreateInfo>(VK_STRUCTURE_TYPE_IMAGE_VIEW_CREATE_INFO);
  view.image = font_;
  view.viewType = VK_IMAGE_VIEW_TYPE_2D;
  view.format = image.format;
  view.subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1};
  require(g_.vk.vkCreateImageView(g_.device, &view, nullptr, &font_view_), "vkCreateImageView");

  HostBuffer pixels(g_, uint64_t(width) * uint64_t(height), VK_BUFFER_USAGE_TRANSFER_SRC_BIT);
  std::memcpy(pixels.mapped(), coverage, size_t(width) * size_t(height));
  pixels.flush();
  copy_font_pixels(pixels, extent);

  const VkDescriptorImageInfo texture{sampler_, font_view_, VK_IMAGE_LAYOUT_SHADER_READ_ONLY_OPTIMAL};
  auto write = blank<VkWriteDescriptorSet>(VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET);
  write.dstSet = set_;
  write.descriptorCount = 1;
  write.descriptorType = VK_DESCRIPTOR_TYPE_COMBINED_IMAGE_SAMPLER;
  write.pImageInfo = &texture;
  g_.vk.vkUpdateDescriptorSets(g_.device, 1, &write, 0, nullptr);
}

void Renderer::copy_font_pixels(const HostBuffer& pixels, VkExtent3D extent) {
  auto pool_info = blank<VkCommandPoolCreateInfo>(VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO);
  pool_info.queueFamilyIndex = g_.queue_family;
  VkCommandPool pool = VK_NULL_HANDLE;
  require(g_.vk.vkCreateCommandPool(g_.device, &pool_info, nullptr, &pool), "vkCreateCommandPool");
  auto allocate = blank<VkCommandBufferAllocateInfo>(VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO);
  allocate.commandPool = pool;
  allocate.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
  allocate.commandBufferCount = 1;
  VkCommandBuffer commands = VK_NULL_HANDLE;
  require(g_.vk.vkAllocateCommandBuffers(g_.device, &allocate, &commands), "vkAllocateCommandBuffers");
  const auto begin = blank<VkCommandBufferBeginInfo>(VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO);
  require(g_.vk.vkBeginCommandBuffer(commands, &begin), "vkBeginCommandBuffer");

  auto barrier = blank<VkImageMemoryBarrier>(VK_STRUCTURE_TYPE_IMAGE_MEMORY_BARRIER);
  barrier.dstAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT;
  barrier.newLayout = VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL;
  barrier.srcQueueFamilyIndex = barrier.dstQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED;
  barrier.image = font_;
  barrier.subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1};
  g_.vk.vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_TOP_OF_PIPE_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 0, nullptr,
                             0, nullptr, 1, &barrier);
  VkBufferImageCopy region{};
  region.imageSubresource = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 0, 1};
  region.imageExtent = extent;
  g_.vk.vkCmdCopyBufferToImage(commands, pixels.handle(), font_, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL, 1, &region);
  barrier.srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_SHADER_READ_BIT;
  barrier.oldLayout = barrier.newLayout;
  barrier.newLayout = VK_IMAGE_LAYOUT_SHADER_READ_ONLY_OPTIMAL;
  g_.vk.vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_FRAGMENT_SHADER_BIT, 0, 0,
                             nullptr, 0, nullptr, 1, &barrier);
  require(g_.vk.vkEndCommandBuffer(commands), "vkEndCommandBuffer");
  auto submit = blank<VkSubmitInfo>(VK_STRUCTURE_TYPE_SUBMIT_INFO);
  submit.commandBufferCount = 1;
  submit.pCommandBuffers = &commands;
  require(g_.vk.vkQueueSubmit(g_.queue, 1, &submit, VK_NULL_HANDLE), "vkQueueSubmit");
  require(g_.vk.vkQueueWaitIdle(g_.queue), "vkQueueWaitIdle");
  g_.vk.vkDestroyCommandPool(g_.device, pool, nullptr);
}

// Copies all lists' vertices and indices, one behind the other, into the frame's buffers, which grow as needed.
void Renderer::upload(const ImDrawData& data, Frame& frame) {
  const auto grow = [&](std::unique_ptr<HostBuffer>& buffer, uint64_t bytes, VkBufferUsageFlags usage) {
    if (!buffer || buffer->size() < bytes) buffer = std::make_unique<HostBuffer>(g_, bytes + bytes / 2, usage);
    return buffer->mapped();
  };
  std::byte* vertices =
      grow(frame.vertices, uint64_t(data.TotalVtxCount) * sizeof(ImDrawVert) + 1, VK_BUFFER_USAGE_VERTEX_BUFFER_BIT);
  std::byte* indices =
      grow(frame.indices, uint64_t(data.TotalIdxCount) * sizeof(ImDrawIdx) + 1, VK_BUFFER_USAGE_INDEX_BUFFER_BIT);
  for (int i = 0; i < data.CmdListsCount; ++i) {
    const ImDrawList& list = *data.CmdLists[i];
    std::memcpy(vertices, list.VtxBuffer.Data, size_t(list.VtxBuffer.size_in_bytes()));
    std::memcpy(indices, list.IdxBuffer.Data, size_t(list.IdxBuffer.size_in_bytes()));
    vertices += list.VtxBuffer.size_in_bytes();
    indices += list.IdxBuffer.size_in_bytes();
  }
  frame.vertices->flush();
  frame.indices->flush();
}

void Renderer::draw(const ImDrawData& data, VkCommandBuffer commands, uint32_t in_flight, VkExtent2D extent) {
  Frame& frame = frames_[in_flight];
  upload(data, frame);
  if (data.TotalIdxCount == 0) return;
  static_assert(sizeof(ImDrawIdx) == 2 || sizeof(ImDrawIdx) == 4);
  const VkDeviceSize zero = 0;
  const VkBuffer vertices = frame.vertices->handle();
  g_.vk.vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_GRAPHICS, pipeline_);
  g_.vk.vkCmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_GRAPHICS, layout_, 0, 1, &set_, 0, nullptr);
  g_.vk.vkCmdBindVertexBuffers(commands, 0, 1, &vertices, &zero);
  g_.vk.vkCmdBindIndexBuffer(commands, frame.indices->handle(), 0,
                             sizeof(ImDrawIdx) == 2 ? VK_INDEX_TYPE_UINT16 : VK_INDEX_TYPE_UINT32);
  const VkViewport viewport{0, 0, float(extent.width), float(extent.height), 0, 1};
  g_.vk.vkCmdSetViewport(commands, 0, 1, &viewport);
  const Push push{{2 / data.DisplaySize.x, 2 / data.DisplaySize.y},
                  {-1 - data.DisplayPos.x * 2 / data.DisplaySize.x, -1 - data.DisplayPos.y * 2 / data.DisplaySize.y}};
  g_.vk.vkCmdPushConstants(commands, layout_, VK_SHADER_STAGE_VERTEX_BIT, 0, sizeof push, &push);

  // Clip rectangles come in the interface's units; pixels may be finer.
  const auto pixel = [](float position, float origin, float scale, uint32_t limit) {
    return int32_t(std::clamp((position - origin) * scale, 0.0f, float(limit)));
  };
  uint32_t first_index = 0;
  int32_t first_vertex = 0;
  for (int i = 0; i < data.CmdListsCount; ++i) {
    const ImDrawList& list = *data.CmdLists[i];
    for (const ImDrawCmd& command : list.CmdBuffer) {
      const ImVec4& clip = command.ClipRect;
      const ImVec2 &origin = data.DisplayPos, &scale = data.FramebufferScale;
      const int32_t left = pixel(clip.x, origin.x, scale.x, extent.width);
      const int32_t top = pixel(clip.y, origin.y, scale.y, extent.height);
      const int32_t right = pixel(clip.z, origin.x, scale.x, extent.width);
      const int32_t bottom = pixel(clip.w, origin.y, scale.y, extent.height);
      if (right <= left || bottom <= top) continue;
      const VkRect2D scissor{{left, top}, {uint32_t(right - left), uint32_t(bottom - top)}};
      g_.vk.vkCmdSetScissor(commands, 0, 1, &scissor);
      g_.vk.vkCmdDrawIndexed(commands, command.ElemCount, 1, first_index + command.IdxOffset,
                             first_vertex + int32_t(command.VtxOffset), 0);
    }
    first_index += uint32_t(list.IdxBuffer.Size);
    first_vertex += list.VtxBuffer.Size;
  }
}

}  // namespace turboesm::desktop
