#include "runtime/vulkan/physical_device.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "runtime/vulkan/features.h"
#include "runtime/vulkan/linear_rates.h"
#include "runtime/vulkan/staging.h"
#include "shaders/shaders.h"

namespace turboesm::vulkan {
namespace {

constexpr uint64_t kScratchBytes = 16 << 20;  // for what workgroups leave each other where several share a result

using Extensions = std::set<std::string, std::less<>>;

Extensions extensions_of(VkPhysicalDevice device) {
  Extensions names;
  const auto list = enumerate<VkExtensionProperties>(
      "vkEnumerateDeviceExtensionProperties", [&](uint32_t* count, VkExtensionProperties* data) {
        return vkEnumerateDeviceExtensionProperties(device, nullptr, count, data);
      });
  for (const VkExtensionProperties& extension : list) names.emplace(extension.extensionName);
  return names;
}

// The structures of an extension may be chained only where the extension exists.
struct Properties {
  VkPhysicalDeviceProperties2 core = blank<VkPhysicalDeviceProperties2>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2);
  VkPhysicalDeviceVulkan11Properties v11 =
      blank<VkPhysicalDeviceVulkan11Properties>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES);
  VkPhysicalDeviceVulkan12Properties v12 =
      blank<VkPhysicalDeviceVulkan12Properties>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES);
  VkPhysicalDeviceMaintenance4Properties maintenance4 =
      blank<VkPhysicalDeviceMaintenance4Properties>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_PROPERTIES);
  VkPhysicalDeviceSubgroupSizeControlProperties sizes = blank<VkPhysicalDeviceSubgroupSizeControlProperties>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES);
  VkPhysicalDeviceShaderSMBuiltinsPropertiesNV nvidia = blank<VkPhysicalDeviceShaderSMBuiltinsPropertiesNV>(
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SM_BUILTINS_PROPERTIES_NV);
  VkPhysicalDeviceShaderCorePropertiesAMD amd =
      blank<VkPhysicalDeviceShaderCorePropertiesAMD>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_CORE_PROPERTIES_AMD);
  VkPhysicalDeviceShaderCoreProperties2AMD amd2 =
      blank<VkPhysicalDeviceShaderCoreProperties2AMD>(VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_CORE_PROPERTIES_2_AMD);

  Properties(VkPhysicalDevice device, const Extensions& extensions) {
    chain(core, v11);
    chain(core, v12);
    if (extensions.contains(VK_KHR_MAINTENANCE_4_EXTENSION_NAME)) chain(core, maintenance4);
    if (extensions.contains(VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME)) chain(core, sizes);
    if (extensions.contains(VK_NV_SHADER_SM_BUILTINS_EXTENSION_NAME)) chain(core, nvidia);
    if (extensions.contains(VK_AMD_SHADER_CORE_PROPERTIES_EXTENSION_NAME)) chain(core, amd);
    if (extensions.contains(VK_AMD_SHADER_CORE_PROPERTIES_2_EXTENSION_NAME)) chain(core, amd2);
    vkGetPhysicalDeviceProperties2(device, &core);
  }
  Properties(const Properties&) = delete;  // the chain points into itself

  uint32_t compute_units() const {
    if (nvidia.shaderSMCount) return nvidia.shaderSMCount;
    if (amd2.activeComputeUnitCount) return amd2.activeComputeUnitCount;
    return amd.shaderEngineCount * amd.shaderArraysPerEngineCount * amd.computeUnitsPerShaderArray;
  }
};

void read_features(Features& features, VkPhysicalDevice device, const Extensions& extensions) {
  if (extensions.contains(VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME)) chain(features.core, features.sizes);
  if (extensions.contains(VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME)) chain(features.core, features.matrices);
  if (extensions.contains(VK_NV_COOPERATIVE_MATRIX_2_EXTENSION_NAME)) chain(features.core, features.matrices2);
  if (extensions.contains(VK_KHR_MAINTENANCE_4_EXTENSION_NAME)) chain(features.core, features.maintenance4);
  if (extensions.contains(VK_KHR_SHADER_BFLOAT16_EXTENSION_NAME)) chain(features.core, features.bfloat16);
  vkGetPhysicalDeviceFeatures2(device, &features.core);
}

// Drivers that report an ability which does not do what it says.
struct KnownFault {
  VkDriverId driver;
  bool Abilities::*ability;
  std::string_view reason;
};
constexpr KnownFault kKnownFaults[] = {
    {VK_DRIVER_ID_AMD_PROPRIETARY, &Abilities::matrices,
     "this driver reports cooperative matrices on GPUs without matrix units"},
    {VK_DRIVER_ID_AMD_OPEN_SOURCE, &Abilities::matrices,
     "this driver reports cooperative matrices on GPUs without matrix units"},
};

DeviceKind kind_of(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return DeviceKind::discrete_gpu;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return DeviceKind::integrated_gpu;
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return DeviceKind::software_gpu;
    default: return DeviceKind::virtual_gpu;
  }
}

void read_memory(PhysicalDevice& device) {
  VkPhysicalDeviceMemoryProperties memory{};
  vkGetPhysicalDeviceMemoryProperties(device.handle, &memory);
  for (uint32_t i = 0; i < memory.memoryHeapCount; ++i) {
    const VkMemoryHeap& heap = memory.memoryHeaps[i];
    if (!(heap.flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) || heap.size <= device.info.memory_bytes) continue;
    device.info.memory_bytes = heap.size;
    device.memory_heap = i;
  }
}

// A family for compute alone, where there is one, does not wait for what a desktop draws. False when none computes.
bool choose_queue_family(PhysicalDevice& device) {
  uint32_t count = 0;
  vkGetPhysicalDeviceQueueFamilyProperties(device.handle, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  vkGetPhysicalDeviceQueueFamilyProperties(device.handle, &count, families.data());
  const auto computes = [](const auto& family) {
    return family.queueCount > 0 && family.queueFlags & VK_QUEUE_COMPUTE_BIT;
  };
  const auto only_computes = [&](const auto& family) {
    return computes(family) && !(family.queueFlags & VK_QUEUE_GRAPHICS_BIT);
  };
  auto found = std::ranges::find_if(families, only_computes);
  if (found == families.end()) found = std::ranges::find_if(families, computes);
  if (found == families.end()) return false;
  device.queue_family = uint32_t(found - families.begin());
  device.timestamp_bits = found->timestampValidBits;
  return true;
}

std::string problem_of(const Properties& properties, const Features& features) {
  constexpr VkSubgroupFeatureFlags kSubgroupOperations =
      VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_ARITHMETIC_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
  std::string missing;
  const auto need = [&](bool present, std::string_view what) {
    if (!present) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", what);
  };
  need(features.v12.bufferDeviceAddress, "buffer device addresses");
  need(features.v12.scalarBlockLayout, "scalar block layout");
  need(features.v12.timelineSemaphore, "timeline semaphores");
  need((properties.v11.subgroupSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT) &&
           (properties.v11.subgroupSupportedOperations & kSubgroupOperations) == kSubgroupOperations,
       "subgroup arithmetic and shuffles in compute shaders");
  need(properties.core.properties.limits.maxComputeWorkGroupInvocations >= 256, "workgroups of 256 invocations");
  need(properties.core.properties.limits.maxComputeSharedMemorySize >= 32768, "32 KiB of shared memory");
  return missing.empty() ? "" : fmt::format("its driver lacks {}", missing);
}

// What attention on matrix units uses beyond that.
constexpr VkSubgroupFeatureFlags kMatrixOperations = VK_SUBGROUP_FEATURE_VOTE_BIT;

void read_abilities(PhysicalDevice& device, const Extensions& extensions, const Properties& properties,
                    const Features& features, bool matrix_cores) {
  Abilities& abilities = device.abilities;
  abilities.memory_budget = extensions.contains(VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
  abilities.portability_subset = extensions.contains("VK_KHR_portability_subset");
  abilities.subgroup_sizes =
      features.sizes.subgroupSizeControl && (properties.sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT);
  abilities.full_subgroups = abilities.subgroup_sizes && features.sizes.computeFullSubgroups;
  abilities.int16 = features.core.features.shaderInt16;
  abilities.int64 = features.core.features.shaderInt64;
  abilities.float16 = features.v12.shaderFloat16;
  abilities.storage16 = features.v11.storageBuffer16BitAccess;
  abilities.memory_model = features.v12.vulkanMemoryModel && features.v12.vulkanMemoryModelDeviceScope;
  abilities.matrices = matrix_cores && features.matrices.cooperativeMatrix && abilities.float16 &&
                       abilities.memory_model &&
                       (properties.v11.subgroupSupportedOperations & kMatrixOperations) == kMatrixOperations;
  abilities.bfloat16 = features.bfloat16.shaderBFloat16Type && features.bfloat16.shaderBFloat16CooperativeMatrix;
  for (const KnownFault& fault : kKnownFaults) {
    if (fault.driver != properties.v12.driverID || !(abilities.*fault.ability)) continue;
    abilities.*fault.ability = false;
    device.info.features.push_back(fmt::format("ignored: {}", fault.reason));
  }
  abilities.bfloat16 = abilities.bfloat16 && abilities.matrices;
  // attention_coopmat2.comp relies on which of a matrix's elements an invocation has on NVIDIA's cards.
  const auto& matrices2 = features.matrices2;
  abilities.matrices2 = abilities.matrices && properties.v12.driverID == VK_DRIVER_ID_NVIDIA_PROPRIETARY &&
                        properties.core.properties.apiVersion >= VK_API_VERSION_1_3 &&
                        features.maintenance4.maintenance4 && matrices2.cooperativeMatrixReductions &&
                        matrices2.cooperativeMatrixConversions && matrices2.cooperativeMatrixPerElementOperations &&
                        matrices2.cooperativeMatrixTensorAddressing && has_spirv("attention_coopmat2");
}

bool is_16x16x16(const VkCooperativeMatrixPropertiesKHR& shape, VkComponentTypeKHR input) {
  return shape.scope == VK_SCOPE_SUBGROUP_KHR && shape.MSize == 16 && shape.NSize == 16 && shape.KSize == 16 &&
         shape.AType == input && shape.BType == input && shape.CType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
         shape.ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR && !shape.saturatingAccumulation;
}

void read_matrix_shapes(const Instance& instance, PhysicalDevice& device) {
  const auto list_shapes = instance.function<PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR>(
      "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
  if (!device.abilities.matrices || !list_shapes) return;
  const auto shapes = enumerate<VkCooperativeMatrixPropertiesKHR>(
      "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR",
      [&](uint32_t* count, VkCooperativeMatrixPropertiesKHR* data) { return list_shapes(device.handle, count, data); },
      blank<VkCooperativeMatrixPropertiesKHR>(VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR));
  const auto multiplies = [&](VkComponentTypeKHR type) {
    return std::ranges::any_of(shapes, [&](const auto& shape) { return is_16x16x16(shape, type); });
  };
  device.traits.matrix_f16 = multiplies(VK_COMPONENT_TYPE_FLOAT16_KHR);
  device.traits.matrix_bf16 = device.abilities.bfloat16 && multiplies(VK_COMPONENT_TYPE_BFLOAT16_KHR);
  if (device.traits.matrix_f16) device.info.matrix_core_dtypes |= kF16;
  if (device.traits.matrix_bf16) device.info.matrix_core_dtypes |= kBF16;
}

void read_traits(PhysicalDevice& device, const Properties& properties) {
  const VkPhysicalDeviceLimits& limits = properties.core.properties.limits;
  Traits& traits = device.traits;
  traits.subgroup_size = properties.v11.subgroupSize;
  traits.min_subgroup_size = device.abilities.subgroup_sizes ? properties.sizes.minSubgroupSize : traits.subgroup_size;
  traits.max_subgroup_size = device.abilities.subgroup_sizes ? properties.sizes.maxSubgroupSize : traits.subgroup_size;
  traits.max_shared_bytes = limits.maxComputeSharedMemorySize;
  traits.max_workgroup_invocations = limits.maxComputeWorkGroupInvocations;
  traits.compute_units = properties.compute_units();
  traits.matrix2 = device.abilities.matrices2;
  traits.software = device.info.kind == DeviceKind::software_gpu;
  traits.device_class = device_class_of(properties.core.properties.vendorID, traits.software);
  traits.lanes = traits.software && device.abilities.int64 && traits.min_subgroup_size == traits.max_subgroup_size &&
                 (properties.v11.subgroupSupportedOperations & VK_SUBGROUP_FEATURE_BALLOT_BIT);
  device.info.subgroup_size = traits.subgroup_size;
  // Metal, below a portability subset, has no order between the memory accesses of different workgroups.
  if (!device.abilities.portability_subset) device.info.scratch_bytes = kScratchBytes;
  device.info.staging_chunk_bytes = Staging::kChunkBytes;
}

void describe_features(PhysicalDevice& device) {
  const Traits& traits = device.traits;
  const auto add = [&](bool present, std::string words) {
    if (present) device.info.features.push_back(std::move(words));
  };
  add(traits.matrix_f16, "fp16 cooperative matrices 16x16x16");
  add(traits.matrix_bf16, "bf16 cooperative matrices 16x16x16");
  add(device.abilities.matrices2, "operations on elements of cooperative matrices");
  add(true, device.abilities.subgroup_sizes
                ? fmt::format("subgroup sizes {}..{}", traits.min_subgroup_size, traits.max_subgroup_size)
                : fmt::format("subgroup size {}", traits.subgroup_size));
  add(true, fmt::format("{} KiB shared memory", traits.max_shared_bytes / 1024));
  add(traits.compute_units > 0, fmt::format("{} compute units", traits.compute_units));
  add(device.abilities.float16, "fp16 arithmetic");
  add(device.abilities.storage16, "16-bit storage");
  add(device.abilities.memory_budget, "memory budget");
  add(device.timestamp_bits > 0, "timestamps");
  add(device.abilities.portability_subset, "portability subset");
}

}  // namespace

PhysicalDevice inspect(const Instance& instance, VkPhysicalDevice handle, uint32_t index, bool matrix_cores) {
  VkPhysicalDeviceProperties basic{};
  vkGetPhysicalDeviceProperties(handle, &basic);
  PhysicalDevice device;
  device.handle = handle;
  device.info.spec = fmt::format("vulkan:{}", index);
  device.info.name = basic.deviceName;
  device.info.kind = kind_of(basic.deviceType);
  device.pipeline_identity = {basic.vendorID, basic.deviceID, basic.driverVersion, {}};
  std::ranges::copy(basic.pipelineCacheUUID, device.pipeline_identity.uuid.begin());
  read_memory(device);
  if (basic.apiVersion < VK_API_VERSION_1_2) {
    device.problem = fmt::format("its driver has Vulkan {}.{}, 1.2 is needed", VK_API_VERSION_MAJOR(basic.apiVersion),
                                 VK_API_VERSION_MINOR(basic.apiVersion));
    return device;
  }

  const Extensions extensions = extensions_of(handle);
  const Properties properties(handle, extensions);
  Features features;
  read_features(features, handle, extensions);
  device.info.driver = fmt::format("{} {}", properties.v12.driverName, properties.v12.driverInfo);
  device.timestamp_seconds = double(basic.limits.timestampPeriod) * 1e-9;
  device.max_allocation_bytes = properties.v11.maxMemoryAllocationSize;
  if (properties.maintenance4.maxBufferSize)
    device.max_allocation_bytes = std::min(device.max_allocation_bytes, properties.maintenance4.maxBufferSize);
  device.problem = problem_of(properties, features);
  if (device.info.memory_bytes == 0) device.problem = "it has no memory of its own";
  if (!choose_queue_family(device)) device.problem = "it has no queue that computes";
  read_abilities(device, extensions, properties, features, matrix_cores);
  read_traits(device, properties);
  read_matrix_shapes(instance, device);
  describe_features(device);
  return device;
}

}  // namespace turboesm::vulkan
