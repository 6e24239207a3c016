#include "runtime/vulkan/recording.h"

#include "runtime/vulkan/hazards.h"

namespace turboesm::vulkan {
namespace {

OwnedQueryPool make_queries(const LogicalDevice& device, uint32_t count) {
  auto info = blank<VkQueryPoolCreateInfo>(VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO);
  info.queryType = VK_QUERY_TYPE_TIMESTAMP;
  info.queryCount = count;
  VkQueryPool pool = VK_NULL_HANDLE;
  require(device.vk.vkCreateQueryPool(device.handle, &info, nullptr, &pool), "vkCreateQueryPool");
  return {device, pool};
}

}  // namespace

VulkanRecording::VulkanRecording(const PhysicalDevice& physical, const LogicalDevice& device, Pipelines& pipelines,
                                 Queue& queue, std::span<const Operation> operations, const RecordOptions& options,
                                 std::span<const Dispatch> by)
    : physical_(physical), device_(device), queue_(queue), options_(options), commands_(device) {
  for (const Operation& operation : operations) check(operation);
  const uint32_t count = options.profile ? uint32_t(operations.size()) + 1 : 2;
  if (physical.timestamp_bits > 0) queries_ = make_queries(device, count);
  commands_.begin(VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT);
  if (queries_) device_.vk.vkCmdResetQueryPool(commands_.get(), queries_.get(), 0, count);
  memory_barrier(device_, commands_.get(), kCompute | kTransfer, kCompute);  // orders it after all earlier submissions
  record(pipelines, operations, by);
  commands_.end();
}

VulkanRecording::~VulkanRecording() {
  try {
    queue_.wait(last_);
  } catch (const Error&) {  // the device is lost: nothing runs any more
  }
}

void VulkanRecording::record(Pipelines& pipelines, std::span<const Operation> operations,
                             std::span<const Dispatch> by) {
  std::vector<Dispatch> dispatches(by.begin(), by.end());
  if (by.empty())
    for (const Operation& operation : operations) dispatches.push_back(choose(operation));
  const std::vector<VkPipeline> of_dispatches = pipelines.get(dispatches);

  HazardTracker hazards;
  VkPipeline bound = VK_NULL_HANDLE;
  write_timestamp();
  for (size_t i = 0; i < operations.size(); ++i) {
    const Traits& traits = physical_.traits;
    const Dispatch& dispatch = dispatches[i];
    std::vector<AccessedRange> accesses = accesses_of(operations[i], address_of);
    if (dispatch.uses_scratch)
      accesses.push_back({traits.scratch_address, traits.scratch_address + traits.scratch_bytes, true});
    const bool conflict = hazards.needs_barrier_before(accesses);
    if (conflict || options_.profile) memory_barrier(device_, commands_.get(), kCompute, kCompute);
    if (of_dispatches[i]) record_dispatch(pipelines.layout(), of_dispatches[i], dispatch, bound);
    if (options_.profile) write_timestamp();
  }
  if (!options_.profile) write_timestamp();
}

Dispatch VulkanRecording::choose(const Operation& operation) const {
  if (options_.variant) {
    const std::vector<Variant> all = variants(operation, physical_.traits);
    if (*options_.variant < all.size()) return all[*options_.variant].dispatch;
  }
  return lower(operation, physical_.traits);
}

void VulkanRecording::record_dispatch(VkPipelineLayout layout, VkPipeline pipeline, const Dispatch& dispatch,
                                      VkPipeline& bound) {
  const auto [x, y, z] = dispatch.groups;
  const VkCommandBuffer commands = commands_.get();
  if (pipeline != bound) device_.vk.vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
  bound = pipeline;
  if (dispatch.push_bytes > 0)
    device_.vk.vkCmdPushConstants(commands, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, dispatch.push_bytes,
                                  dispatch.push.data());
  device_.vk.vkCmdDispatch(commands, x, y, z);
}

void VulkanRecording::write_timestamp() {
  if (!queries_) return;
  device_.vk.vkCmdWriteTimestamp(commands_.get(), VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, queries_.get(),
                                 timestamp_count_++);
}

Ticket VulkanRecording::submit() { return last_ = queue_.submit(commands_.get()); }

std::vector<double> VulkanRecording::timestamps() const {
  if (!queries_ || last_ == 0) return {};
  queue_.wait(last_);
  std::vector<uint64_t> ticks(timestamp_count_);
  require(device_.vk.vkGetQueryPoolResults(device_.handle, queries_.get(), 0, timestamp_count_,
                                           ticks.size() * sizeof(uint64_t), ticks.data(), sizeof(uint64_t),
                                           VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT),
          "vkGetQueryPoolResults");
  const uint64_t mask = physical_.timestamp_bits >= 64 ? ~uint64_t(0) : (uint64_t(1) << physical_.timestamp_bits) - 1;
  std::vector<double> seconds;  // since the first one, so that a counter of few bits may wrap
  for (const uint64_t tick : ticks)
    seconds.push_back(double((tick - ticks.front()) & mask) * physical_.timestamp_seconds);
  return seconds;
}

std::vector<double> VulkanRecording::operation_seconds() const {
  const std::vector<double> times = options_.profile ? timestamps() : std::vector<double>{};
  std::vector<double> seconds;
  for (size_t i = 1; i < times.size(); ++i) seconds.push_back(times[i] - times[i - 1]);
  return seconds;
}

double VulkanRecording::device_seconds() const {
  const std::vector<double> times = timestamps();
  return times.empty() ? 0 : times.back();
}

}  // namespace turboesm::vulkan
