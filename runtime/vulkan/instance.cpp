#include "runtime/vulkan/instance.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace turboesm::vulkan {
namespace {

constexpr const char* kValidationLayer = "VK_LAYER_KHRONOS_validation";

void load_vulkan() {
  static const VkResult loaded = volkInitialize();
  if (loaded != VK_SUCCESS)
    throw_error(ErrorKind::device,
                "Vulkan: no loader library was found; install libvulkan1 (Debian, Ubuntu), "
                "vulkan-loader (Fedora) or vulkan-icd-loader (Arch) and your GPU's driver");
  if (volkGetInstanceVersion() < VK_API_VERSION_1_2)
    throw_error(ErrorKind::device, "Vulkan: the loader library is older than Vulkan 1.2; install a newer one");
}

// Loads volk's global functions of an instance. They are the loader's own entry points, which serve every instance.
void load_functions(VkInstance instance) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  volkLoadInstanceOnly(instance);
}

bool has_extension(const char* layer, std::string_view name) {
  const auto extensions = enumerate<VkExtensionProperties>(
      "listing instance extensions", [&](uint32_t* count, VkExtensionProperties* data) {
        return vkEnumerateInstanceExtensionProperties(layer, count, data);
      });
  return std::ranges::any_of(extensions, [&](const auto& extension) { return name == extension.extensionName; });
}

void require_validation_layer() {
  const auto layers = enumerate<VkLayerProperties>("listing layers", vkEnumerateInstanceLayerProperties);
  if (std::ranges::none_of(layers, [](const auto& layer) { return !std::strcmp(layer.layerName, kValidationLayer); }))
    throw_error(ErrorKind::device,
                "Vulkan: validation was asked for, but the layer {} is not installed; install "
                "vulkan-validationlayers (Debian, Ubuntu) or vulkan-validation-layers (Fedora, Arch)",
                kValidationLayer);
  for (const char* extension : {VK_EXT_DEBUG_UTILS_EXTENSION_NAME, VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME})
    if (!has_extension(kValidationLayer, extension) && !has_extension(nullptr, extension))
      throw_error(ErrorKind::device, "Vulkan: validation was asked for, but {} lacks {}", kValidationLayer, extension);
}

VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,
                                          const VkDebugUtilsMessengerCallbackDataEXT* data, void* messages) {
  static_cast<ValidationMessages*>(messages)->add(data->pMessage);
  return VK_FALSE;
}

VkDebugUtilsMessengerCreateInfoEXT messenger_info(ValidationMessages* messages) {
  auto info = blank<VkDebugUtilsMessengerCreateInfoEXT>(VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT);
  info.messageSeverity =
      VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
  info.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT;
  info.pfnUserCallback = on_message;
  info.pUserData = messages;
  return info;
}

std::string joined(const std::vector<std::string>& messages) {
  std::string text = fmt::format("{} message{}", messages.size(), messages.size() == 1 ? "" : "s");
  for (const std::string& message : messages) text += "\n  " + message;
  return text;
}

// An instance with all drivers; with the validation layers when `messages` is given, which hear what they say.
VkInstance create_instance(ValidationMessages* messages) {
  auto application = blank<VkApplicationInfo>(VK_STRUCTURE_TYPE_APPLICATION_INFO);
  application.pApplicationName = "turboesm";
  application.apiVersion = std::min(volkGetInstanceVersion(), VK_API_VERSION_1_3);  // what we use
  auto info = blank<VkInstanceCreateInfo>(VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO);
  info.pApplicationInfo = &application;
  std::vector<const char*> extensions;
  if (has_extension(nullptr, VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME)) {  // shows MoltenVK's devices
    extensions.push_back(VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME);
    info.flags |= VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
  }

  const VkValidationFeatureEnableEXT synchronization = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
  VkDebugUtilsMessengerCreateInfoEXT messenger = messenger_info(messages);
  auto features = blank<VkValidationFeaturesEXT>(VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT);
  features.enabledValidationFeatureCount = 1;
  features.pEnabledValidationFeatures = &synchronization;
  features.pNext = &messenger;  // reports on the creation and destruction of the instance itself
  if (messages) {
    extensions.push_back(VK_EXT_DEBUG_UTILS_EXTENSION_NAME);
    extensions.push_back(VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME);
    info.pNext = &features;
    info.enabledLayerCount = 1;
    info.ppEnabledLayerNames = &kValidationLayer;
  }
  info.enabledExtensionCount = uint32_t(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();

  VkInstance handle = VK_NULL_HANDLE;
  const VkResult result = vkCreateInstance(&info, nullptr, &handle);
  if (result == VK_ERROR_INCOMPATIBLE_DRIVER)
    throw_error(ErrorKind::device,
                "Vulkan: no driver was found; install your GPU's (mesa-vulkan-drivers for AMD and "
                "Intel, NVIDIA's own)");
  require(result, "vkCreateInstance");
  load_functions(handle);
  return handle;
}

}  // namespace

void ValidationMessages::add(std::string message) {
  const std::lock_guard lock(mutex_);
  messages_.push_back(std::move(message));
}

std::vector<std::string> ValidationMessages::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(messages_, {});
}

Instance::Instance(bool validation) {
  load_vulkan();
  if (!validation) {
    // Never destroyed, which would unload the drivers: one that is loaded again and again runs out of what loading
    // takes (NVIDIA's after some twenty times), and no device is found from then on.
    static const VkInstance shared = create_instance(nullptr);
    handle_ = shared;
    return;
  }
  require_validation_layer();
  messages_ = std::make_unique<ValidationMessages>();
  handle_ = create_instance(messages_.get());
  const VkDebugUtilsMessengerCreateInfoEXT messenger = messenger_info(messages_.get());
  require(function<PFN_vkCreateDebugUtilsMessengerEXT>("vkCreateDebugUtilsMessengerEXT")(handle_, &messenger, nullptr,
                                                                                         &messenger_),
          "vkCreateDebugUtilsMessengerEXT");
}

Instance::~Instance() {
  if (!messages_) return;
  function<PFN_vkDestroyDebugUtilsMessengerEXT>("vkDestroyDebugUtilsMessengerEXT")(handle_, messenger_, nullptr);
  vkDestroyInstance(handle_, nullptr);
  const std::vector<std::string> unheard = messages_->take();
  if (unheard.empty()) return;
  fmt::print(stderr, "Vulkan validation: {}\n", joined(unheard));
  std::abort();
}

std::vector<VkPhysicalDevice> Instance::physical_devices() const {
  return enumerate<VkPhysicalDevice>("vkEnumeratePhysicalDevices", [&](uint32_t* count, VkPhysicalDevice* data) {
    return vkEnumeratePhysicalDevices(handle_, count, data);
  });
}

void Instance::raise_validation_messages() const {
  if (!messages_) return;
  const std::vector<std::string> messages = messages_->take();
  if (!messages.empty()) throw_error(ErrorKind::device, "Vulkan validation: {}", joined(messages));
}

}  // namespace turboesm::vulkan
