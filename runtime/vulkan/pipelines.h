#pragma once

#include <compare>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "runtime/vulkan/logical_device.h"
#include "runtime/vulkan/lower.h"

namespace turboesm::vulkan {

// Every compute pipeline of one device, made when first asked for and kept until the device is closed. All of them have
// one layout: 128 bytes of push constants (which hold buffer addresses) and no descriptor sets.
class Pipelines {
 public:
  static constexpr uint32_t kPushBytes = 128;  // what every Vulkan device has

  // Compiled code is read from `cache_dir` and, when there is more at the end, written back; empty: neither.
  Pipelines(const PhysicalDevice& physical, const LogicalDevice& device, const std::filesystem::path& cache_dir);
  ~Pipelines();
  Pipelines(const Pipelines&) = delete;
  Pipelines& operator=(const Pipelines&) = delete;

  VkPipelineLayout layout() const { return layout_.get(); }

  // The pipeline of each dispatch, null for those that are empty. What is missing is compiled on all cores: a driver
  // takes up to a second for a kernel of matrix products. Throws Error(device) when there is no such shader, the device
  // lacks the subgroup size that a dispatch requires, or the driver does not compile it.
  std::vector<VkPipeline> get(std::span<const Dispatch> dispatches);

 private:
  struct Key {
    std::string shader;
    std::vector<uint32_t> constants;
    uint32_t subgroup_size;
    auto operator<=>(const Key&) const = default;
  };
  OwnedPipeline compile(const Key& key) const;
  void save() const;

  const PhysicalDevice& physical_;
  const LogicalDevice& device_;
  std::filesystem::path file_;  // empty: not kept on disk
  size_t bytes_on_disk_ = 0;
  OwnedPipelineLayout layout_;
  OwnedPipelineCache cache_;
  std::map<Key, OwnedPipeline> pipelines_;
};

}  // namespace turboesm::vulkan
