#include "runtime/vulkan/logical_device.h"

#include <limits>
#include <vector>

#include "runtime/vulkan/features.h"

namespace turboesm::vulkan {
namespace {

// Sets what `abilities` promises in `features`; returns the extensions to enable.
std::vector<const char*> enable(Features& features, const Abilities& abilities) {
  features.core.features.shaderInt16 = abilities.int16;
  features.core.features.shaderInt64 = abilities.int64;
  features.v11.storageBuffer16BitAccess = abilities.storage16;
  features.v12.bufferDeviceAddress = VK_TRUE;
  features.v12.scalarBlockLayout = VK_TRUE;
  features.v12.timelineSemaphore = VK_TRUE;
  features.v12.shaderFloat16 = abilities.float16;
  features.v12.vulkanMemoryModel = abilities.memory_model;
  features.v12.vulkanMemoryModelDeviceScope = abilities.memory_model;
  features.sizes.subgroupSizeControl = VK_TRUE;
  features.sizes.computeFullSubgroups = abilities.full_subgroups;
  features.matrices.cooperativeMatrix = VK_TRUE;
  features.matrices2.cooperativeMatrixReductions = VK_TRUE;
  features.matrices2.cooperativeMatrixConversions = VK_TRUE;
  features.matrices2.cooperativeMatrixPerElementOperations = VK_TRUE;
  features.matrices2.cooperativeMatrixTensorAddressing = VK_TRUE;
  features.maintenance4.maintenance4 = VK_TRUE;
  features.bfloat16.shaderBFloat16Type = VK_TRUE;
  features.bfloat16.shaderBFloat16CooperativeMatrix = VK_TRUE;

  std::vector<const char*> extensions;
  if (abilities.memory_budget) extensions.push_back(VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
  if (abilities.portability_subset) extensions.push_back("VK_KHR_portability_subset");
  const auto add = [&](bool present, const char* extension, auto& structure) {
    if (!present) return;
    extensions.push_back(extension);
    chain(features.core, structure);
  };
  add(abilities.subgroup_sizes, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME, features.sizes);
  add(abilities.matrices, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME, features.matrices);
  add(abilities.matrices2, VK_NV_COOPERATIVE_MATRIX_2_EXTENSION_NAME, features.matrices2);
  add(abilities.matrices2, VK_KHR_MAINTENANCE_4_EXTENSION_NAME, features.maintenance4);
  add(abilities.bfloat16, VK_KHR_SHADER_BFLOAT16_EXTENSION_NAME, features.bfloat16);
  return extensions;
}

}  // namespace

LogicalDevice::LogicalDevice(const PhysicalDevice& physical) : queue_family(physical.queue_family) {
  Features features;
  const std::vector<const char*> extensions = enable(features, physical.abilities);
  const float priority = 1.0f;
  auto queue_info = blank<VkDeviceQueueCreateInfo>(VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO);
  queue_info.queueFamilyIndex = queue_family;
  queue_info.queueCount = 1;
  queue_info.pQueuePriorities = &priority;
  auto info = blank<VkDeviceCreateInfo>(VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO);
  info.pNext = &features.core;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue_info;
  info.enabledExtensionCount = uint32_t(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  require(vkCreateDevice(physical.handle, &info, nullptr, &handle), "vkCreateDevice");
  volkLoadDeviceTable(&vk, handle);
  vk.vkGetDeviceQueue(handle, queue_family, 0, &queue);
}

LogicalDevice::~LogicalDevice() { vk.vkDestroyDevice(handle, nullptr); }

void Queue::make_timeline() {
  auto type = blank<VkSemaphoreTypeCreateInfo>(VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO);
  type.semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE;
  auto info = blank<VkSemaphoreCreateInfo>(VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO);
  info.pNext = &type;
  VkSemaphore semaphore = VK_NULL_HANDLE;
  require(device_.vk.vkCreateSemaphore(device_.handle, &info, nullptr, &semaphore), "vkCreateSemaphore");
  timeline_ = OwnedSemaphore(device_, semaphore);
}

Queue::~Queue() {
  if (last_ > 0) device_.vk.vkQueueWaitIdle(device_.queue);
}

Ticket Queue::submit(VkCommandBuffer commands) {
  if (!timeline_) make_timeline();
  const Ticket ticket = last_ + 1;
  const VkSemaphore semaphore = timeline_.get();
  auto timeline = blank<VkTimelineSemaphoreSubmitInfo>(VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO);
  timeline.signalSemaphoreValueCount = 1;
  timeline.pSignalSemaphoreValues = &ticket;
  auto info = blank<VkSubmitInfo>(VK_STRUCTURE_TYPE_SUBMIT_INFO);
  info.pNext = &timeline;
  info.commandBufferCount = 1;
  info.pCommandBuffers = &commands;
  info.signalSemaphoreCount = 1;
  info.pSignalSemaphores = &semaphore;
  require(device_.vk.vkQueueSubmit(device_.queue, 1, &info, VK_NULL_HANDLE), "vkQueueSubmit");
  return last_ = ticket;
}

void Queue::wait(Ticket ticket) const {
  if (ticket == 0) return;
  const VkSemaphore semaphore = timeline_.get();
  auto info = blank<VkSemaphoreWaitInfo>(VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO);
  info.semaphoreCount = 1;
  info.pSemaphores = &semaphore;
  info.pValues = &ticket;
  require(device_.vk.vkWaitSemaphores(device_.handle, &info, std::numeric_limits<uint64_t>::max()), "vkWaitSemaphores");
}

Commands::Commands(const LogicalDevice& device) : device_(&device) {
  auto pool_info = blank<VkCommandPoolCreateInfo>(VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO);
  pool_info.flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT;
  pool_info.queueFamilyIndex = device.queue_family;
  VkCommandPool pool = VK_NULL_HANDLE;
  require(device.vk.vkCreateCommandPool(device.handle, &pool_info, nullptr, &pool), "vkCreateCommandPool");
  pool_ = OwnedCommandPool(device, pool);
  auto info = blank<VkCommandBufferAllocateInfo>(VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO);
  info.commandPool = pool;
  info.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
  info.commandBufferCount = 1;
  require(device.vk.vkAllocateCommandBuffers(device.handle, &info, &handle_), "vkAllocateCommandBuffers");
}

void Commands::begin(VkCommandBufferUsageFlags usage) {
  auto info = blank<VkCommandBufferBeginInfo>(VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO);
  info.flags = usage;
  require(device_->vk.vkBeginCommandBuffer(handle_, &info), "vkBeginCommandBuffer");
}

void Commands::end() { require(device_->vk.vkEndCommandBuffer(handle_), "vkEndCommandBuffer"); }

void memory_barrier(const LogicalDevice& device, VkCommandBuffer commands, Scope before, Scope after) {
  auto barrier = blank<VkMemoryBarrier>(VK_STRUCTURE_TYPE_MEMORY_BARRIER);
  barrier.srcAccessMask = before.access;
  barrier.dstAccessMask = after.access;
  device.vk.vkCmdPipelineBarrier(commands, before.stages, after.stages, 0, 1, &barrier, 0, nullptr, 0, nullptr);
}

}  // namespace turboesm::vulkan
