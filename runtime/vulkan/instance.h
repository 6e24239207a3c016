#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/vulkan/vk.h"

namespace turboesm::vulkan {

// What the validation layers have said and nobody has been told yet. Thread safe: a layer may call from any thread.
class ValidationMessages {
 public:
  void add(std::string message);
  std::vector<std::string> take();  // all, in order; empty afterwards

 private:
  std::mutex mutex_;
  std::vector<std::string> messages_;
};

// The connection to the Vulkan loader and its drivers.
class Instance {
 public:
  // Throws Error(device) with one sentence that says what to install when there is no loader, no driver or, with
  // `validation`, no validation layer.
  explicit Instance(bool validation);

  // A message that came too late for raise_validation_messages() is printed and ends the program, so that no test run
  // with validation can pass over it.
  ~Instance();
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  std::vector<VkPhysicalDevice> physical_devices() const;

  // Throws Error(device) with what the validation layers said since the last call, if anything.
  void raise_validation_messages() const;

  VkInstance handle() const { return handle_; }

  // An extension's function; null where the driver lacks it. (volk's globals hold core functions only for us: an
  // extension's pointers differ from instance to instance.)
  template <class Function>
  Function function(const char* name) const {
    return reinterpret_cast<Function>(vkGetInstanceProcAddr(handle_, name));
  }

 private:
  VkInstance handle_ = VK_NULL_HANDLE;
  VkDebugUtilsMessengerEXT messenger_ = VK_NULL_HANDLE;
  std::unique_ptr<ValidationMessages> messages_;  // null without validation
};

}  // namespace turboesm::vulkan
