#pragma once

#include "runtime/vulkan/vk.h"

namespace turboesm::vulkan {

// Links `item` behind the head of a chain of Vulkan structures.
template <class Head, class Item>
void chain(Head& head, Item& item) {
  item.pNext = head.pNext;
  head.pNext = &item;
}

// The features that we ask about and enable. Those of Vulkan 1.2 are chained to `core`; an extension's structure may be
// chained only where the extension exists.
struct Features {
  VkPhysicalDeviceFeatures2 core = blank<VkPhysicalDeviceFeatures2>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2);
  VkPhysicalDeviceVulkan11Features v11 =
      blank<VkPhysicalDeviceVulkan11Features>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES);
  VkPhysicalDeviceVulkan12Features v12 =
      blank<VkPhysicalDeviceVulkan12Features>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES);

  // VK_EXT_subgroup_size_control
  VkPhysicalDeviceSubgroupSizeControlFeatures sizes = blank<VkPhysicalDeviceSubgroupSizeControlFeatures>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES);
  // VK_KHR_cooperative_matrix
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrices = blank<VkPhysicalDeviceCooperativeMatrixFeaturesKHR>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR);
  // VK_KHR_shader_bfloat16
  VkPhysicalDeviceShaderBfloat16FeaturesKHR bfloat16 =
      blank<VkPhysicalDeviceShaderBfloat16FeaturesKHR>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_BFLOAT16_FEATURES_KHR);
  // VK_NV_cooperative_matrix2
  VkPhysicalDeviceCooperativeMatrix2FeaturesNV matrices2 = blank<VkPhysicalDeviceCooperativeMatrix2FeaturesNV>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_2_FEATURES_NV);
  // VK_KHR_maintenance4
  VkPhysicalDeviceMaintenance4Features maintenance4 =
      blank<VkPhysicalDeviceMaintenance4Features>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_FEATURES);

  Features() {
    chain(core, v11);
    chain(core, v12);
  }
  Features(const Features&) = delete;  // the chain points into itself
  Features& operator=(const Features&) = delete;
};

}  // namespace turboesm::vulkan
