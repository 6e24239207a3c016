#pragma once

#include <span>
#include <vector>

#include "runtime/backend.h"
#include "runtime/vulkan/logical_device.h"
#include "runtime/vulkan/pipelines.h"

namespace turboesm::vulkan {

// A command buffer of dispatches, with the barriers between them, that can be submitted many times, also while it runs.
class VulkanRecording final : public Recording {
 public:
  // The operations' buffers are this device's. `by`, where it is not empty, has the dispatch that computes each of
  // them. Throws what check(), lower() and Pipelines::get() throw.
  VulkanRecording(const PhysicalDevice& physical, const LogicalDevice& device, Pipelines& pipelines, Queue& queue,
                  std::span<const Operation> operations, const RecordOptions& options,
                  std::span<const Dispatch> by = {});
  ~VulkanRecording() override;

  Ticket submit();

  std::vector<double> operation_seconds() const override;
  double device_seconds() const override;

 private:
  void record(Pipelines& pipelines, std::span<const Operation> operations, std::span<const Dispatch> by);
  Dispatch choose(const Operation& operation) const;
  void record_dispatch(VkPipelineLayout layout, VkPipeline pipeline, const Dispatch& dispatch, VkPipeline& bound);
  void write_timestamp();                  // the next one, when all that was recorded before has finished
  std::vector<double> timestamps() const;  // seconds, of the last completed submission; empty before the first

  const PhysicalDevice& physical_;
  const LogicalDevice& device_;
  Queue& queue_;
  RecordOptions options_;
  Commands commands_;
  OwnedQueryPool queries_;
  uint32_t timestamp_count_ = 0;
  Ticket last_ = 0;
};

}  // namespace turboesm::vulkan
