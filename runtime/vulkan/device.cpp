#include <filesystem>
#include <variant>

#include "runtime/backend.h"
#include "runtime/vulkan/compile.h"
#include "runtime/vulkan/instance.h"
#include "runtime/vulkan/logical_device.h"
#include "runtime/vulkan/memory.h"
#include "runtime/vulkan/physical_device.h"
#include "runtime/vulkan/pipelines.h"
#include "runtime/vulkan/recording.h"
#include "runtime/vulkan/staging.h"
#include "runtime/vulkan/tune.h"

namespace turboesm {
namespace vulkan {
namespace {

PhysicalDevice inspect_indexed(const Instance& instance, uint32_t index, const DeviceOptions& options) {
  const std::vector<VkPhysicalDevice> handles = instance.physical_devices();
  if (index >= handles.size())
    throw_error(ErrorKind::device, "vulkan:{} does not exist: Vulkan's drivers found {} device{}", index,
                handles.size(), handles.size() == 1 ? "" : "s");
  PhysicalDevice device = inspect(instance, handles[index], index, options.matrix_cores);
  device.traits.stable_sums = options.stable_sums;
  return device;
}

PhysicalDevice find_usable(const Instance& instance, uint32_t index, const DeviceOptions& options) {
  PhysicalDevice device = inspect_indexed(instance, index, options);
  if (!device.problem.empty())
    throw_error(ErrorKind::device, "{} ({}) cannot be used: {}", device.info.spec, device.info.name, device.problem);
  return device;
}

class VulkanDevice final : public Device {
 public:
  VulkanDevice(uint32_t index, const DeviceOptions& options)
      : instance_(options.validation),
        physical_(find_usable(instance_, index, options)),
        device_(physical_),
        memory_(instance_, physical_, device_),
        pipelines_(physical_, device_, options.cache_dir),
        queue_(device_),
        staging_(device_, memory_, queue_) {
    instance_.raise_validation_messages();
  }

  const DeviceInfo& info() const override { return physical_.info; }
  MemoryReport memory() const override { return memory_.report(); }

  std::unique_ptr<Buffer> allocate(uint64_t size, MemoryLabel label) override {
    std::unique_ptr<Buffer> buffer = memory_.allocate(size, label);
    instance_.raise_validation_messages();
    return buffer;
  }

  void upload(Buffer& buffer, uint64_t offset, uint64_t size, const FillChunk& fill) override {
    staging_.upload(range_of(buffer, offset, size), offset, size, fill);
    instance_.raise_validation_messages();
  }

  void download(const Buffer& buffer, uint64_t offset, std::span<std::byte> destination) override {
    staging_.download(range_of(buffer, offset, destination.size()), offset, destination);
    instance_.raise_validation_messages();
  }

  std::unique_ptr<Recording> record(std::span<const Operation> operations, const RecordOptions& options) override {
    for (const Operation& operation : operations) require_own_buffers(operation);
    if (info().scratch_bytes > 0 && !scratch_) make_scratch();
    auto recording = std::make_unique<VulkanRecording>(physical_, device_, pipelines_, queue_, operations, options);
    instance_.raise_validation_messages();
    return recording;
  }

  std::vector<std::string> variants(const Operation& operation) const override {
    Traits traits = physical_.traits;
    traits.scratch_bytes = info().scratch_bytes;  // though it is taken only when the first program is recorded
    std::vector<std::string> names;
    for (Variant& variant : vulkan::variants(operation, traits)) names.push_back(std::move(variant.name));
    return names;
  }

  std::string tune() override {
    if (info().scratch_bytes > 0 && !scratch_) make_scratch();
    const Traits& traits = physical_.traits;
    const auto record_by = [this](std::span<const Operation> operations, std::span<const Dispatch> by) {
      return std::make_unique<VulkanRecording>(physical_, device_, pipelines_, queue_, operations, RecordOptions{}, by);
    };
    return measure_linear_rates(*this, traits, record_by);
  }

  Ticket submit(Recording& recording) override {
    const Ticket ticket = static_cast<VulkanRecording&>(recording).submit();
    instance_.raise_validation_messages();
    return ticket;
  }

  void wait(Ticket ticket) override {
    if (ticket > queue_.last())
      throw_error(ErrorKind::usage, "ticket {} was never given out; the last is {}", ticket, queue_.last());
    queue_.wait(ticket);
    instance_.raise_validation_messages();
  }

 private:
  // Zeros, as kernels expect and leave it.
  void make_scratch() {
    const uint64_t size = info().scratch_bytes;
    scratch_ = memory_.allocate(size, MemoryLabel::activations);
    const Operation fill = Fill{Tensor{scratch_.get(), 0, size / 4, DType::f32}, 0.0f};
    VulkanRecording recording(physical_, device_, pipelines_, queue_, {&fill, 1}, {});
    queue_.wait(recording.submit());
    physical_.traits.scratch_address = scratch_->address();
    physical_.traits.scratch_bytes = size;
  }

  const VulkanBuffer& own(const Buffer& buffer) const {
    const auto* ours = dynamic_cast<const VulkanBuffer*>(&buffer);
    if (!ours || &ours->memory() != &memory_)
      throw_error(ErrorKind::usage, "a buffer is not of {}", physical_.info.spec);
    return *ours;
  }

  const VulkanBuffer& range_of(const Buffer& buffer, uint64_t offset, uint64_t size) const {
    if (offset > buffer.size() || size > buffer.size() - offset)
      throw_error(ErrorKind::usage, "{} bytes at {} lie outside a buffer of {}", size, offset, buffer.size());
    return own(buffer);
  }

  void require_own_buffers(const Operation& operation) const {
    std::visit(
        [this](const auto& a) {
          a.operands([this](std::string_view, const Tensor& tensor, uint64_t, Access, uint32_t) {
            if (tensor) own(*tensor.buffer);
          });
        },
        operation);
  }

  // Destroyed from the last to the first: the queue waits for what runs before anything that it uses goes.
  Instance instance_;
  PhysicalDevice physical_;
  LogicalDevice device_;
  Memory memory_;
  std::unique_ptr<VulkanBuffer> scratch_;
  Pipelines pipelines_;
  Queue queue_;
  Staging staging_;
};

std::vector<DeviceListing> list(std::string& problem) {
  std::vector<DeviceListing> listings;
  try {
    const Instance instance(false);
    for (const VkPhysicalDevice handle : instance.physical_devices()) {
      PhysicalDevice device = inspect(instance, handle, uint32_t(listings.size()), true);
      listings.push_back({std::move(device.info), std::move(device.problem)});
    }
    if (listings.empty()) problem = "Vulkan: its drivers found no device";
  } catch (const std::exception& error) {
    problem = error.what();
  }
  return listings;
}

std::unique_ptr<Device> open(uint32_t index, const DeviceOptions& options) {
  return std::make_unique<VulkanDevice>(index, options);
}

}  // namespace

void compile(uint32_t index, const DeviceOptions& options, std::span<const Operation> operations) {
  const Instance instance(options.validation);
  PhysicalDevice physical = inspect_indexed(instance, index, options);
  // Nothing runs, so any address does.
  physical.traits.scratch_bytes = physical.info.scratch_bytes;
  physical.traits.scratch_address = physical.traits.scratch_bytes;
  const LogicalDevice device(physical);
  Pipelines pipelines(physical, device, options.cache_dir);
  std::vector<Dispatch> dispatches;
  for (const Operation& operation : operations) {
    check(operation);
    dispatches.push_back(lower(operation, physical.traits));
  }
  pipelines.get(dispatches);
  instance.raise_validation_messages();
}

}  // namespace vulkan

const Backend& vulkan_backend() {
  static constexpr Backend backend{"vulkan", vulkan::list, vulkan::open};
  return backend;
}

}  // namespace turboesm
