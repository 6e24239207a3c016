#pragma once

#include <string>

#include "runtime/backend.h"
#include "runtime/vulkan/instance.h"
#include "runtime/vulkan/lower.h"
#include "runtime/vulkan/pipeline_file.h"
#include "runtime/vulkan/vk.h"

namespace turboesm::vulkan {

// Optional abilities that are used where a device has them, and are then enabled.
struct Abilities {
  bool memory_budget = false;       // VK_EXT_memory_budget
  bool portability_subset = false;  // VK_KHR_portability_subset, which must be enabled where it exists
  bool subgroup_sizes = false;      // VK_EXT_subgroup_size_control: a pipeline may ask for its size
  bool full_subgroups = false;      //   and for workgroups without partly filled subgroups
  bool int16 = false;
  bool int64 = false;
  bool float16 = false;    // arithmetic
  bool storage16 = false;  // 16-bit loads and stores
  bool memory_model = false;
  bool matrices = false;  // VK_KHR_cooperative_matrix
  bool bfloat16 = false;  // VK_KHR_shader_bfloat16, as a component of cooperative matrices
  // VK_NV_cooperative_matrix2's operations on elements, reductions, conversions and tensors, with what SPIR-V 1.6
  // needs: Vulkan 1.3 and VK_KHR_maintenance4
  bool matrices2 = false;
};

// A physical device as its driver describes it.
struct PhysicalDevice {
  VkPhysicalDevice handle = VK_NULL_HANDLE;
  DeviceInfo info;
  std::string problem;  // why it cannot be used; empty: it can
  Abilities abilities;
  Traits traits;
  PipelineIdentity pipeline_identity;
  uint32_t queue_family = 0;
  uint32_t timestamp_bits = 0;        // valid bits of a timestamp; 0: none are to be had
  double timestamp_seconds = 0;       // one tick
  uint64_t max_allocation_bytes = 0;  // largest buffer that can be asked for
  uint32_t memory_heap = 0;           // the device-local heap that info.memory_bytes counts
};

// Never throws for what a device lacks: that goes into `problem`. `index` is the device's place in
// Instance::physical_devices(), and in its name "vulkan:<index>". Without `matrix_cores`, cooperative matrices count as
// missing.
PhysicalDevice inspect(const Instance& instance, VkPhysicalDevice handle, uint32_t index, bool matrix_cores);

}  // namespace turboesm::vulkan
