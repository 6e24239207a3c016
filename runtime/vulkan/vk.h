#pragma once

#include <volk.h>

#include <string_view>
#include <utility>
#include <vector>

#include "runtime/error.h"

// VK_KHR_shader_bfloat16 (2025) is younger than the oldest headers that this compiles with.
#ifndef VK_KHR_shader_bfloat16
#define VK_KHR_SHADER_BFLOAT16_EXTENSION_NAME "VK_KHR_shader_bfloat16"
constexpr auto VK_COMPONENT_TYPE_BFLOAT16_KHR = VkComponentTypeKHR(1000141000);
constexpr auto VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_BFLOAT16_FEATURES_KHR = VkStructureType(1000141000);
struct VkPhysicalDeviceShaderBfloat16FeaturesKHR {
  VkStructureType sType;
  void* pNext;
  VkBool32 shaderBFloat16Type;
  VkBool32 shaderBFloat16DotProduct;
  VkBool32 shaderBFloat16CooperativeMatrix;
};
#endif

namespace turboesm::vulkan {

std::string_view name_of(VkResult result);

// Throws unless `result` is VK_SUCCESS: Error(out_of_memory) when memory ran out, Error(device) otherwise. `what` is
// the function, or what was being done.
void require(VkResult result, std::string_view what);

// A Vulkan structure with nothing but its type filled in.
template <class T>
T blank(VkStructureType type) {
  T structure{};
  structure.sType = type;
  return structure;
}

// Everything that a pair of calls (count, then array) returns: call(&count, data) -> VkResult.
template <class T, class Call>
std::vector<T> enumerate(std::string_view what, Call&& call, const T& blank = T{}) {
  std::vector<T> items;
  VkResult result = VK_INCOMPLETE;
  while (result == VK_INCOMPLETE) {  // the number may grow between the two calls
    uint32_t count = 0;
    require(call(&count, nullptr), what);
    items.assign(count, blank);
    result = call(&count, items.data());
    items.resize(count);
  }
  require(result, what);
  return items;
}

}  // namespace turboesm::vulkan
