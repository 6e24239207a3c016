#include "runtime/vulkan/pipelines.h"

#include <algorithm>
#include <thread>
#include <utility>

#include <fmt/ranges.h>

#include "runtime/cpu/thread_pool.h"
#include "runtime/vulkan/pipeline_file.h"
#include "shaders/shaders.h"

namespace turboesm::vulkan {
namespace {

OwnedPipelineLayout make_layout(const LogicalDevice& device) {
  const VkPushConstantRange range{VK_SHADER_STAGE_COMPUTE_BIT, 0, Pipelines::kPushBytes};
  auto info = blank<VkPipelineLayoutCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO);
  info.pushConstantRangeCount = 1;
  info.pPushConstantRanges = &range;
  VkPipelineLayout layout = VK_NULL_HANDLE;
  require(device.vk.vkCreatePipelineLayout(device.handle, &info, nullptr, &layout), "vkCreatePipelineLayout");
  return {device, layout};
}

OwnedPipelineCache make_cache(const LogicalDevice& device, std::span<const std::byte> data) {
  auto info = blank<VkPipelineCacheCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO);
  info.initialDataSize = data.size();
  info.pInitialData = data.data();
  VkPipelineCache cache = VK_NULL_HANDLE;
  require(device.vk.vkCreatePipelineCache(device.handle, &info, nullptr, &cache), "vkCreatePipelineCache");
  return {device, cache};
}

OwnedShaderModule make_module(const LogicalDevice& device, const std::string& shader) {
  const std::span<const uint32_t> code = spirv(shader);
  auto info = blank<VkShaderModuleCreateInfo>(VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO);
  info.codeSize = code.size_bytes();
  info.pCode = code.data();
  VkShaderModule module = VK_NULL_HANDLE;
  require(device.vk.vkCreateShaderModule(device.handle, &info, nullptr, &module),
          fmt::format("vkCreateShaderModule({})", shader));
  return {device, module};
}

}  // namespace

Pipelines::Pipelines(const PhysicalDevice& physical, const LogicalDevice& device,
                     const std::filesystem::path& cache_dir)
    : physical_(physical), device_(device), layout_(make_layout(device)) {
  std::vector<std::byte> data;
  if (!cache_dir.empty()) {
    file_ = pipeline_file_path(cache_dir, physical.pipeline_identity);
    data = read_pipeline_file(file_, physical.pipeline_identity);
    bytes_on_disk_ = data.size();
  }
  cache_ = make_cache(device, data);
}

Pipelines::~Pipelines() {
  if (file_.empty() || pipelines_.empty()) return;
  try {
    save();
  } catch (const std::exception&) {  // the next start compiles again
  }
}

void Pipelines::save() const {
  size_t size = 0;
  require(device_.vk.vkGetPipelineCacheData(device_.handle, cache_.get(), &size, nullptr), "vkGetPipelineCacheData");
  if (size <= bytes_on_disk_) return;
  std::vector<std::byte> data(size);
  require(device_.vk.vkGetPipelineCacheData(device_.handle, cache_.get(), &size, data.data()),
          "vkGetPipelineCacheData");
  data.resize(size);
  write_pipeline_file(file_, data);
}

std::vector<VkPipeline> Pipelines::get(std::span<const Dispatch> dispatches) {
  std::map<Key, OwnedPipeline> missing;  // whose entries stay where they are when they are merged
  std::vector<const OwnedPipeline*> of_dispatches;
  for (const Dispatch& dispatch : dispatches) {
    of_dispatches.push_back(nullptr);
    if (is_empty(dispatch)) continue;
    Key key{std::string(dispatch.shader), dispatch.constants, dispatch.subgroup_size};
    const auto found = pipelines_.find(key);
    of_dispatches.back() =
        found != pipelines_.end() ? &found->second : &missing.try_emplace(std::move(key)).first->second;
  }
  if (!missing.empty()) {
    std::vector<std::pair<const Key, OwnedPipeline>*> entries;
    for (auto& entry : missing) entries.push_back(&entry);
    cpu::ThreadPool threads(
        uint32_t(std::min<size_t>(entries.size(), std::max(std::thread::hardware_concurrency(), 1u))));
    threads.for_each(entries.size(), 1, [&](uint64_t begin, uint64_t end) {
      for (uint64_t i = begin; i < end; ++i) entries[i]->second = compile(entries[i]->first);
    });
    pipelines_.merge(missing);
  }
  std::vector<VkPipeline> pipelines;
  for (const OwnedPipeline* pipeline : of_dispatches) pipelines.push_back(pipeline ? pipeline->get() : VK_NULL_HANDLE);
  return pipelines;
}

OwnedPipeline Pipelines::compile(const Key& key) const {
  const Traits& traits = physical_.traits;
  const bool any_size = key.subgroup_size == 0;
  if (!any_size && (key.subgroup_size < traits.min_subgroup_size || key.subgroup_size > traits.max_subgroup_size))
    throw_error(ErrorKind::device, "{}: shader {} wants subgroups of {}, the device has {} to {}", physical_.info.spec,
                key.shader, key.subgroup_size, traits.min_subgroup_size, traits.max_subgroup_size);
  const OwnedShaderModule module = make_module(device_, key.shader);

  std::vector<VkSpecializationMapEntry> entries;  // constant_id i is the i-th constant
  for (uint32_t i = 0; i < key.constants.size(); ++i)
    entries.push_back({i, uint32_t(i * sizeof(uint32_t)), sizeof(uint32_t)});
  VkSpecializationInfo specialization{};
  specialization.mapEntryCount = uint32_t(entries.size());
  specialization.pMapEntries = entries.data();
  specialization.dataSize = key.constants.size() * sizeof(uint32_t);
  specialization.pData = key.constants.data();

  auto size = blank<VkPipelineShaderStageRequiredSubgroupSizeCreateInfo>(
      VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO);
  size.requiredSubgroupSize = key.subgroup_size;
  auto info = blank<VkComputePipelineCreateInfo>(VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO);
  info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  info.stage.module = module.get();
  info.stage.pName = "main";
  info.stage.pSpecializationInfo = &specialization;
  info.layout = layout_.get();
  if (!any_size && physical_.abilities.subgroup_sizes) {
    info.stage.pNext = &size;
    if (physical_.abilities.full_subgroups)
      info.stage.flags = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
  }
  VkPipeline pipeline = VK_NULL_HANDLE;
  const VkResult result =
      device_.vk.vkCreateComputePipelines(device_.handle, cache_.get(), 1, &info, nullptr, &pipeline);
  if (result != VK_SUCCESS)
    require(result, fmt::format("compiling shader {} with constants [{}] for {}", key.shader,
                                fmt::join(key.constants, ", "), physical_.info.name));
  return {device_, pipeline};
}

}  // namespace turboesm::vulkan
