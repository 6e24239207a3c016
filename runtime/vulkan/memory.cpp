#include "runtime/vulkan/memory.h"

#include <algorithm>
#include <array>

#include "runtime/vulkan/lower.h"

namespace turboesm::vulkan {
namespace {

constexpr uint64_t kAlignment = 256;
// Buffers of this size have a VkDeviceMemory of their own: what is freed goes back to the driver at once. Smaller ones
// share blocks, since drivers limit the number of allocations (4096 is common).
constexpr uint64_t kDedicatedBytes = 16u << 20;
constexpr uint64_t kBlockBytes = 32u << 20;

uint64_t device_address(const LogicalDevice& device, VkBuffer buffer) {
  auto info = blank<VkBufferDeviceAddressInfo>(VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO);
  info.buffer = buffer;
  return device.vk.vkGetBufferDeviceAddress(device.handle, &info);
}

}  // namespace

uint64_t address_of(const Tensor& tensor) {
  return tensor ? static_cast<const AddressedBuffer*>(tensor.buffer)->address() + tensor.offset : 0;
}

VulkanBuffer::VulkanBuffer(Memory& memory, uint64_t size, MemoryLabel label, VkBuffer handle, VmaAllocation allocation,
                           const VmaAllocationInfo& info)
    : AddressedBuffer(size, label, device_address(memory.device_, handle)),
      memory_(memory),
      handle_(handle),
      allocation_(allocation),
      allocated_bytes_(info.size),
      mapped_(static_cast<std::byte*>(info.pMappedData)) {
  memory_.ledger_.add(label, allocated_bytes_);
}

VulkanBuffer::~VulkanBuffer() {
  vmaDestroyBuffer(memory_.allocator_, handle_, allocation_);
  memory_.ledger_.remove(label(), allocated_bytes_);
}

void VulkanBuffer::flush(uint64_t bytes) const {
  require(vmaFlushAllocation(memory_.allocator_, allocation_, 0, bytes), "vmaFlushAllocation");
}

void VulkanBuffer::invalidate(uint64_t bytes) const {
  require(vmaInvalidateAllocation(memory_.allocator_, allocation_, 0, bytes), "vmaInvalidateAllocation");
}

Memory::Memory(const Instance& instance, const PhysicalDevice& physical, const LogicalDevice& device)
    : physical_(physical), device_(device) {
  VmaVulkanFunctions functions{};
  functions.vkGetInstanceProcAddr = vkGetInstanceProcAddr;
  functions.vkGetDeviceProcAddr = vkGetDeviceProcAddr;
  VmaAllocatorCreateInfo info{};
  info.flags = VMA_ALLOCATOR_CREATE_BUFFER_DEVICE_ADDRESS_BIT | VMA_ALLOCATOR_CREATE_EXTERNALLY_SYNCHRONIZED_BIT;
  if (physical.abilities.memory_budget) info.flags |= VMA_ALLOCATOR_CREATE_EXT_MEMORY_BUDGET_BIT;
  info.physicalDevice = physical.handle;
  info.device = device.handle;
  info.instance = instance.handle();
  info.vulkanApiVersion = VK_API_VERSION_1_2;
  info.preferredLargeHeapBlockSize = kBlockBytes;
  info.pVulkanFunctions = &functions;
  require(vmaCreateAllocator(&info, &allocator_), "vmaCreateAllocator");
}

Memory::~Memory() { vmaDestroyAllocator(allocator_); }

std::unique_ptr<VulkanBuffer> Memory::allocate(uint64_t size, MemoryLabel label) {
  return create(size, label, Place::device);
}

std::unique_ptr<VulkanBuffer> Memory::allocate_staging(uint64_t size) {
  return create(size, MemoryLabel::staging, Place::host);
}

std::unique_ptr<VulkanBuffer> Memory::create(uint64_t size, MemoryLabel label, Place place) {
  if (size == 0) throw_error(ErrorKind::usage, "a buffer for {} of 0 bytes was asked for", name_of(label));
  if (size > physical_.max_allocation_bytes)
    throw_error(ErrorKind::out_of_memory,
                "{}: a buffer of {} bytes for {} is larger than the largest that its driver "
                "allows, {} bytes",
                physical_.info.spec, size, name_of(label), physical_.max_allocation_bytes);

  auto buffer_info = blank<VkBufferCreateInfo>(VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO);
  buffer_info.size = size;
  buffer_info.usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                      VK_BUFFER_USAGE_TRANSFER_DST_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;
  VmaAllocationCreateInfo allocation_info{};
  if (place == Place::device) {
    allocation_info.usage = VMA_MEMORY_USAGE_AUTO_PREFER_DEVICE;
    allocation_info.requiredFlags = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
    // Some drivers would rather page than fail; without a reported budget there is nothing to hold them to.
    if (physical_.abilities.memory_budget) allocation_info.flags |= VMA_ALLOCATION_CREATE_WITHIN_BUDGET_BIT;
    if (size >= kDedicatedBytes) allocation_info.flags |= VMA_ALLOCATION_CREATE_DEDICATED_MEMORY_BIT;
  } else {
    allocation_info.usage = VMA_MEMORY_USAGE_AUTO_PREFER_HOST;
    allocation_info.flags = VMA_ALLOCATION_CREATE_HOST_ACCESS_RANDOM_BIT | VMA_ALLOCATION_CREATE_MAPPED_BIT |
                            VMA_ALLOCATION_CREATE_DEDICATED_MEMORY_BIT;
  }

  VkBuffer handle = VK_NULL_HANDLE;
  VmaAllocation allocation = VK_NULL_HANDLE;
  VmaAllocationInfo info{};
  const VkResult result =
      vmaCreateBufferWithAlignment(allocator_, &buffer_info, &allocation_info, kAlignment, &handle, &allocation, &info);
  if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY)
    throw_out_of_memory(size, label);
  require(result, "vmaCreateBuffer");
  return std::make_unique<VulkanBuffer>(*this, size, label, handle, allocation, info);
}

void Memory::throw_out_of_memory(uint64_t size, MemoryLabel label) const {
  const VmaBudget now = budget();
  throw_error(ErrorKind::out_of_memory,
              "{} ({}): {} bytes for {} do not fit: {} bytes are in use by this program, and "
              "the driver grants it {} of {}",
              physical_.info.spec, physical_.info.name, size, name_of(label), ledger_.report().total.bytes, now.budget,
              physical_.info.memory_bytes);
}

VmaBudget Memory::budget() const {
  std::array<VmaBudget, VK_MAX_MEMORY_HEAPS> heaps{};
  vmaGetHeapBudgets(allocator_, heaps.data());
  VmaBudget heap = heaps[physical_.memory_heap];
  heap.budget = std::min<uint64_t>(heap.budget, physical_.info.memory_bytes);
  return heap;
}

MemoryReport Memory::report() const {
  MemoryReport report = ledger_.report();
  report.device_bytes = physical_.info.memory_bytes;
  if (physical_.abilities.memory_budget) {
    const VmaBudget now = budget();
    report.budget_bytes = now.budget;
    if (!physical_.traits.software)  // Mesa's counts all programs' memory
      report.driver_bytes = std::min<uint64_t>(now.usage, physical_.info.memory_bytes);
  }
  return report;
}

}  // namespace turboesm::vulkan
