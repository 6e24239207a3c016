#include "apps/desktop/graphics.h"

#include <algorithm>
#include <string_view>

#define GLFW_INCLUDE_NONE
#include <GLFW/glfw3.h>

// GLFW declares this one only where Vulkan's headers came before it with their prototypes.
extern "C" VkResult glfwCreateWindowSurface(VkInstance, GLFWwindow*, const VkAllocationCallbacks*, VkSurfaceKHR*);

namespace turboesm::desktop {
namespace {

using vulkan::blank;
using vulkan::enumerate;
using vulkan::require;

constexpr const char* kValidationLayer = "VK_LAYER_KHRONOS_validation";

VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,
                                          const VkDebugUtilsMessengerCallbackDataEXT* data, void* messages) {
  static_cast<vulkan::ValidationMessages*>(messages)->add(data->pMessage);
  return VK_FALSE;
}

bool has_instance_extension(std::string_view name) {
  const auto extensions =
      enumerate<VkExtensionProperties>("listing instance extensions", [](uint32_t* count, VkExtensionProperties* data) {
        return vkEnumerateInstanceExtensionProperties(nullptr, count, data);
      });
  return std::ranges::any_of(extensions, [&](const auto& e) { return name == e.extensionName; });
}

bool has_device_extension(VkPhysicalDevice device, std::string_view name) {
  const auto extensions =
      enumerate<VkExtensionProperties>("listing device extensions", [&](uint32_t* count, VkExtensionProperties* data) {
        return vkEnumerateDeviceExtensionProperties(device, nullptr, count, data);
      });
  return std::ranges::any_of(extensions, [&](const auto& e) { return name == e.extensionName; });
}

int rank(VkPhysicalDeviceType type) {
  return type == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU ? 0 : type == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU ? 1 : 2;
}

}  // namespace

Graphics::Graphics(GLFWwindow* window, bool validation) {
  if (volkInitialize() != VK_SUCCESS || !glfwVulkanSupported())
    throw_error(
        ErrorKind::device,
        "the window needs Vulkan, and no loader library with a driver that can show a window was found; install "
        "libvulkan1 and your GPU's driver (mesa-vulkan-drivers, or NVIDIA's own)");
  if (validation) messages_ = std::make_unique<vulkan::ValidationMessages>();
  create_instance();
  require(glfwCreateWindowSurface(instance, window, nullptr, &surface), "glfwCreateWindowSurface");
  choose_device();
  create_device();
}

void Graphics::create_instance() {
  auto application = blank<VkApplicationInfo>(VK_STRUCTURE_TYPE_APPLICATION_INFO);
  application.pApplicationName = "turboesm-desktop";
  application.apiVersion = VK_API_VERSION_1_1;
  auto info = blank<VkInstanceCreateInfo>(VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO);
  info.pApplicationInfo = &application;
  uint32_t count = 0;
  const char** needed = glfwGetRequiredInstanceExtensions(&count);
  std::vector<const char*> extensions(needed, needed + count);
  if (has_instance_extension(VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME)) {  // shows MoltenVK's devices
    extensions.push_back(VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME);
    info.flags |= VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
  }

  auto messenger = blank<VkDebugUtilsMessengerCreateInfoEXT>(VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT);
  messenger.messageSeverity =
      VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
  messenger.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT;
  messenger.pfnUserCallback = on_message;
  messenger.pUserData = messages_.get();
  const VkValidationFeatureEnableEXT synchronization = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
  auto features = blank<VkValidationFeaturesEXT>(VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT);
  features.enabledValidationFeatureCount = 1;
  features.pEnabledValidationFeatures = &synchronization;
  features.pNext = &messenger;
  if (messages_) {
    extensions.push_back(VK_EXT_DEBUG_UTILS_EXTENSION_NAME);
    extensions.push_back(VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME);
    info.pNext = &features;
    info.enabledLayerCount = 1;
    info.ppEnabledLayerNames = &kValidationLayer;
  }
  info.enabledExtensionCount = uint32_t(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  const VkResult result = vkCreateInstance(&info, nullptr, &instance);
  if (result == VK_ERROR_LAYER_NOT_PRESENT || result == VK_ERROR_EXTENSION_NOT_PRESENT)
    throw_error(ErrorKind::device, "the window cannot be validated: install vulkan-validationlayers");
  require(result, "vkCreateInstance");
  volkLoadInstanceOnly(instance);
  if (messages_)
    require(function<PFN_vkCreateDebugUtilsMessengerEXT>("vkCreateDebugUtilsMessengerEXT")(instance, &messenger,
                                                                                           nullptr, &messenger_),
            "vkCreateDebugUtilsMessengerEXT");
}

void Graphics::choose_device() {
  const auto supports_surface =
      function<PFN_vkGetPhysicalDeviceSurfaceSupportKHR>("vkGetPhysicalDeviceSurfaceSupportKHR");
  int best = 3;
  for (VkPhysicalDevice candidate : enumerate<VkPhysicalDevice>(
           "vkEnumeratePhysicalDevices",
           [&](uint32_t*count, VkPhysicalDevice*data) { return vkEnumeratePhysicalDevices(instance, count, data); })) {
    VkPhysicalDeviceProperties properties{};
    vkGetPhysicalDeviceProperties(candidate, &properties);
    if (rank(properties.deviceType) >= best || !has_device_extension(candidate, VK_KHR_SWAPCHAIN_EXTENSION_NAME))
      continue;
    uint32_t count = 0;
    vkGetPhysicalDeviceQueueFamilyProperties(candidate, &count, nullptr);
    std::vector<VkQueueFamilyProperties> families(count);
    vkGetPhysicalDeviceQueueFamilyProperties(candidate, &count, families.data());
    for (uint32_t family = 0; family < count; ++family) {
      VkBool32 supported = VK_FALSE;
      require(supports_surface(candidate, family, surface, &supported), "vkGetPhysicalDeviceSurfaceSupportKHR");
      if (!supported || !(families[family].queueFlags & VK_QUEUE_GRAPHICS_BIT)) continue;
      physical = candidate;
      queue_family = family;
      name = properties.deviceName;
      best = rank(properties.deviceType);
      break;
    }
  }
  if (!physical) throw_error(ErrorKind::device, "no Vulkan device can show a window on this display");
}

void Graphics::create_device() {
  const float priority = 1;
  auto queue_info = blank<VkDeviceQueueCreateInfo>(VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO);
  queue_info.queueFamilyIndex = queue_family;
  queue_info.queueCount = 1;
  queue_info.pQueuePriorities = &priority;
  std::vector<const char*> extensions{VK_KHR_SWAPCHAIN_EXTENSION_NAME};
  if (has_device_extension(physical, "VK_KHR_portability_subset")) extensions.push_back("VK_KHR_portability_subset");
  auto info = blank<VkDeviceCreateInfo>(VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO);
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue_info;
  info.enabledExtensionCount = uint32_t(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  require(vkCreateDevice(physical, &info, nullptr, &device), "vkCreateDevice");
  volkLoadDeviceTable(&vk, device);
  vk.vkGetDeviceQueue(device, queue_family, 0, &queue);

  VmaVulkanFunctions functions{};
  functions.vkGetInstanceProcAddr = vkGetInstanceProcAddr;
  functions.vkGetDeviceProcAddr = vkGetDeviceProcAddr;
  VmaAllocatorCreateInfo allocator_info{};
  allocator_info.flags = VMA_ALLOCATOR_CREATE_EXTERNALLY_SYNCHRONIZED_BIT;
  allocator_info.physicalDevice = physical;
  allocator_info.device = device;
  allocator_info.instance = instance;
  allocator_info.vulkanApiVersion = VK_API_VERSION_1_1;
  allocator_info.pVulkanFunctions = &functions;
  require(vmaCreateAllocator(&allocator_info, &allocator), "vmaCreateAllocator");
}

Graphics::~Graphics() {
  if (allocator) vmaDestroyAllocator(allocator);
  if (device) vk.vkDestroyDevice(device, nullptr);
  if (surface) function<PFN_vkDestroySurfaceKHR>("vkDestroySurfaceKHR")(instance, surface, nullptr);
  if (messenger_)
    function<PFN_vkDestroyDebugUtilsMessengerEXT>("vkDestroyDebugUtilsMessengerEXT")(instance, messenger_, nullptr);
  if (instance) vkDestroyInstance(instance, nullptr);
}

HostBuffer::HostBuffer(const Graphics& graphics, uint64_t size, VkBufferUsageFlags usage)
    : allocator_(graphics.allocator), size_(size) {
  auto info = blank<VkBufferCreateInfo>(VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO);
  info.size = size;
  info.usage = usage;
  VmaAllocationCreateInfo allocation_info{};
  allocation_info.usage = VMA_MEMORY_USAGE_AUTO_PREFER_HOST;
  allocation_info.flags = VMA_ALLOCATION_CREATE_HOST_ACCESS_RANDOM_BIT | VMA_ALLOCATION_CREATE_MAPPED_BIT;
  VmaAllocationInfo allocated{};
  require(vmaCreateBuffer(allocator_, &info, &allocation_info, &handle_, &allocation_, &allocated), "vmaCreateBuffer");
  mapped_ = static_cast<std::byte*>(allocated.pMappedData);
}

HostBuffer::~HostBuffer() { vmaDestroyBuffer(allocator_, handle_, allocation_); }

void HostBuffer::flush() const { require(vmaFlushAllocation(allocator_, allocation_, 0, size_), "vmaFlushAllocation"); }

void HostBuffer::invalidate() const {
  require(vmaInvalidateAllocation(allocator_, allocation_, 0, size_), "vmaInvalidateAllocation");
}

}  // namespace turboesm::desktop
