#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/dtype.h"
#include "runtime/memory.h"
#include "runtime/operations.h"

// What a GPU is to us. A program is a list of operations (runtime/operations.h); a Device records the list once into
// something that it can replay with almost no host work (a Vulkan command buffer, a CUDA graph, a list of calls on the
// CPU). What varies between replays (token ids, positions, lengths) lives in small device buffers. Nothing is shared
// between back ends: a device owns its buffers, and data crosses through host memory only.
namespace turboesm {

enum class DeviceKind { cpu, discrete_gpu, integrated_gpu, virtual_gpu, software_gpu };
std::string_view name_of(DeviceKind kind);

struct DeviceInfo {
  std::string spec;    // what --device takes to mean this one: "cpu", "vulkan:0", "cuda:0"
  std::string name;    // "NVIDIA H200"
  std::string driver;  // driver or instruction set, with version
  DeviceKind kind = DeviceKind::cpu;
  uint64_t memory_bytes = 0;        // device-local memory in all
  uint32_t matrix_core_dtypes = 0;  // kF16 | kBF16: products run on matrix units (cooperative matrices)
  uint32_t subgroup_size = 1;       // the size that kernels are launched with
  uint64_t scratch_bytes = 0;       // that kernels take beside their operands, once, counted as activations
  uint64_t staging_chunk_bytes =
      0;  // uploads and downloads go through one such chunk of memory, larger ones through two
  std::vector<std::string> features;  // what decides which kernel variants run, for `turboesm devices`
};

// A piece of device memory. Freed on destruction, which must come before the device's own and not while a submission
// that uses it is running.
class Buffer {
 public:
  virtual ~Buffer() = default;
  uint64_t size() const { return size_; }  // bytes, as asked for
  MemoryLabel label() const { return label_; }

 protected:
  Buffer(uint64_t size, MemoryLabel label) : size_(size), label_(label) {}

 private:
  uint64_t size_;
  MemoryLabel label_;
};

// A captured list of operations, for Device::submit. It refers to the buffers of its operations, which must outlive it.
class Recording {
 public:
  virtual ~Recording() = default;
  // Seconds that each operation of the last completed submission took on the device, in the order recorded; empty
  // unless recorded with RecordOptions::profile.
  virtual std::vector<double> operation_seconds() const = 0;
  // Seconds on the device's own clock from the first operation's start to the last one's end.
  virtual double device_seconds() const = 0;
};

struct RecordOptions {
  bool profile = false;  // time every operation; orders them strictly, so the sum is a little more than the whole
  std::optional<uint32_t> variant = {};  // operations that have as many by that one of their variants()
};

// Counts submissions of one device; a later one has a larger ticket.
using Ticket = uint64_t;

// Writes the bytes [offset, offset + chunk.size()) of an upload into `chunk`.
using FillChunk = std::function<void(std::span<std::byte> chunk, uint64_t offset)>;

// One device, used from one thread at a time and closed before main returns. Every member throws Error(device) when the
// driver fails.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;

  // What is allocated, by label, and what the driver says of the whole device.
  virtual MemoryReport memory() const = 0;

  // `size` > 0 bytes, 256-byte aligned, contents undefined. Throws Error(out_of_memory) with the sizes when it does not
  // fit; the device stays usable.
  virtual std::unique_ptr<Buffer> allocate(uint64_t size, MemoryLabel label) = 0;

  // Writes [offset, offset + size) of `buffer`, chunk by chunk through a staging area of bounded size, so that large
  // weights never exist twice in host memory. Ordered after all earlier submissions; done when it returns.
  virtual void upload(Buffer& buffer, uint64_t offset, uint64_t size, const FillChunk& fill) = 0;

  // Reads [offset, offset + destination.size()); waits for all earlier submissions.
  virtual void download(const Buffer& buffer, uint64_t offset, std::span<std::byte> destination) = 0;

  // Checks, compiles and captures. Operations run as if one after another; those that do not touch each other's
  // operands may overlap.
  virtual std::unique_ptr<Recording> record(std::span<const Operation> operations, const RecordOptions& options) = 0;
  std::unique_ptr<Recording> record(std::span<const Operation> operations) { return record(operations, {}); }

  // The kernels and tile sizes by which it could compute `operation`, for benchmarks to compare and tests to cover;
  // empty where there is no choice.
  virtual std::vector<std::string> variants(const Operation& /*operation*/) const { return {}; }

  // Measures what the choice among tiles of linear layers goes by, and returns the file of the sources that holds it
  // for devices of this class; empty where no file does. Takes seconds, and gigabytes on a GPU.
  virtual std::string tune() { return {}; }

  // Starts a recording, after all earlier submissions. A recording may be submitted again while it runs; its runs
  // follow one another.
  virtual Ticket submit(Recording& recording) = 0;
  virtual void wait(Ticket ticket) = 0;

  // Conveniences over the above.
  void upload(Buffer& buffer, uint64_t offset, std::span<const std::byte> source);
  template <class T>
  void upload(const Tensor& tensor, std::span<const T> values) {
    upload(*tensor.buffer, tensor.offset, std::as_bytes(values));
  }
  template <class T>
  void download(const Tensor& tensor, std::span<T> values) {
    download(*tensor.buffer, tensor.offset, std::as_writable_bytes(values));
  }
  void run(std::span<const Operation> operations);  // record, submit, wait
};

struct DeviceOptions {
  bool matrix_cores = true;         // false: plain variants only
  bool stable_sums = false;         // Vulkan: attention over a cache sums in the same order in every version, if slower
  bool tf32 = false;                // CUDA: products of f32 may round their operands to 10 bits of mantissa (TF32)
  bool arbitrary_products = false;  // CUDA, for tests: a product's sizes pick the way it is computed; none is timed
  bool validation = false;          // Vulkan's validation layers, synchronization included; a message is an Error
  std::filesystem::path cache_dir;  // where compiled pipelines are kept; empty: nowhere
  uint32_t threads = 0;             // CPU back end; 0: every core
  std::string instruction_set;      // CPU back end: "avx2" and so on, as its driver is named; empty: the widest
};

// A device that could be opened, or the reason why it cannot.
struct DeviceListing {
  DeviceInfo info;
  std::string problem;  // empty: usable
};

// What a back end gives the registry (runtime/registry.h).
struct Backend {
  std::string_view name;
  // Never throws: a back end that cannot start lists nothing and says why in `problem`.
  std::vector<DeviceListing> (*list)(std::string& problem);
  std::unique_ptr<Device> (*open)(uint32_t index, const DeviceOptions& options);
};

}  // namespace turboesm
