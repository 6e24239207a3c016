#include "runtime/cpu/device.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "runtime/cpu/buffer.h"
#include "runtime/cpu/features.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/thread_pool.h"
#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm {
namespace cpu {

#define TURBOESM_CPU_VARIANT_ENTRY(variant) extern const Kernels kernels_##variant;
#include "cpu_variants.inc"
#undef TURBOESM_CPU_VARIANT_ENTRY

std::vector<const Kernels*> runnable_kernels() {
  std::vector<const Kernels*> runnable;
#define TURBOESM_CPU_VARIANT_ENTRY(variant) \
  if (can_run(#variant)) runnable.push_back(&kernels_##variant);
#include "cpu_variants.inc"
#undef TURBOESM_CPU_VARIANT_ENTRY
  return runnable;
}

CpuBuffer::CpuBuffer(uint64_t size, MemoryLabel label, std::shared_ptr<MemoryLedger> ledger)
    : Buffer(size, label), ledger_(std::move(ledger)) {
  // The operating system would promise more than there is and end the process when the memory is touched.
  // Memory that was allocated and not yet touched still counts as available: hence also the total.
  const uint64_t available = available_memory_bytes(), total = total_memory_bytes();  // 0: unknown
  const uint64_t taken = ledger_->report().total.bytes;
  if (available == 0 || (size <= available && taken + size <= total))
    data_ = static_cast<std::byte*>(::operator new(size, std::align_val_t(kAlignment), std::nothrow));
  if (!data_)
    throw_error(ErrorKind::out_of_memory, "[cpu] {} bytes for {} do not fit: {} bytes of memory are available", size,
                name_of(label), available);
  ledger_->add(label, size);
}

CpuBuffer::~CpuBuffer() {
  ::operator delete(data_, std::align_val_t(kAlignment));
  ledger_->remove(label(), size());
}

namespace {

using Clock = std::chrono::steady_clock;

uint64_t blocks_of(uint64_t count, uint64_t block) { return (count + block - 1) / block; }
uint64_t product_tiles(uint64_t rows, uint64_t outputs) {
  return blocks_of(rows, kProductRows) * blocks_of(outputs, kProductOutputs);
}

// Runs one operation with its items spread over the pool. The grain keeps pieces of cheap items large.
class Runner {
 public:
  Runner(const Kernels& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  void operator()(const TokenDropout& a) const { spread(a, kernels_.token_dropout, a.sequences, 16); }
  void operator()(const Embed& a) const { spread(a, kernels_.embed, a.tokens, 64); }
  void operator()(const LayerNorm& a) const { spread(a, kernels_.layer_norm, a.rows, 32); }
  void operator()(const Linear& a) const { spread(a, kernels_.linear, product_tiles(a.rows, a.outputs), 1); }
  void operator()(const QkvRope& a) const { spread(a, kernels_.qkv_rope, product_tiles(a.tokens, a.outputs()), 1); }
  void operator()(const Attention& a) const {
    spread(a, kernels_.attention, uint64_t(a.sequences) * a.heads * blocks_of(a.max_length, kQueryBlock), 1);
  }
  void operator()(const PoolMean& a) const { spread(a, kernels_.pool_mean, a.sequences, 1); }
  void operator()(const AttentionMaps& a) const {
    spread(a, kernels_.attention_maps, uint64_t(a.heads) * a.length, 16);
  }
  void operator()(const ContactSums& a) const { spread(a, kernels_.contact_sums, a.heads, 1); }
  void operator()(const ContactAccumulate& a) const { spread(a, kernels_.contact_accumulate, a.length - 2, 4); }
  void operator()(const Fill& a) const { spread(a, kernels_.fill, blocks_of(a.out.count, kElementBlock), 16); }
  void operator()(const RandomNormal& a) const {
    spread(a, kernels_.random_normal, blocks_of(a.out.count, kElementBlock), 4);
  }
  void operator()(const Copy& a) const { spread(a, kernels_.copy, blocks_of(a.destination.count, kElementBlock), 64); }
  void operator()(const KvAppend& a) const { spread(a, kernels_.kv_append, uint64_t(a.sequences) * a.heads, 1); }
  void operator()(const KvQuery& a) const { spread(a, kernels_.kv_query, uint64_t(a.rows) * a.heads, 16); }
  void operator()(const KvAttention& a) const { spread(a, kernels_.kv_attention, uint64_t(a.sequences) * a.heads, 1); }
  void operator()(const Sample& a) const { spread(a, kernels_.sample, a.sequences, 16); }

 private:
  template <class Args>
  void spread(const Args& args, void (*kernel)(const Args&, Range), uint64_t items, uint64_t grain) const {
    pool_.for_each(items, grain, [&](uint64_t begin, uint64_t end) { kernel(args, {begin, end}); });
  }

  const Kernels& kernels_;
  ThreadPool& pool_;
};

class CpuRecording final : public Recording {
 public:
  CpuRecording(std::span<const Operation> operations, bool profile)
      : operations_(operations.begin(), operations.end()), profile_(profile) {}

  void run(const Runner& runner) {
    seconds_.clear();
    const Clock::time_point start = Clock::now();
    Clock::time_point last = start;
    for (const Operation& operation : operations_) {
      std::visit(runner, operation);
      if (!profile_) continue;
      const Clock::time_point now = Clock::now();
      seconds_.push_back(std::chrono::duration<double>(now - last).count());
      last = now;
    }
    total_ = std::chrono::duration<double>(Clock::now() - start).count();
  }

  std::vector<double> operation_seconds() const override { return seconds_; }
  double device_seconds() const override { return total_; }

 private:
  std::vector<Operation> operations_;
  bool profile_;
  std::vector<double> seconds_;
  double total_ = 0;
};

// The kernels of `instruction_set`, or the widest when it is empty.
const Kernels& kernels_of(const std::string& instruction_set) {
  for (const Kernels* kernels : runnable_kernels())
    if (instruction_set.empty() || instruction_set == kernels->name) return *kernels;
  throw_error(ErrorKind::device, "[cpu] this processor or this build has no {} kernels", instruction_set);
}

DeviceInfo describe(const Kernels& kernels) {
  DeviceInfo info;
  info.spec = "cpu";
  info.name = processor_name();
  info.driver = fmt::format("{} kernels", kernels.name);
  info.kind = DeviceKind::cpu;
  info.memory_bytes = total_memory_bytes();
  info.features = {fmt::format("{} kernels", kernels.name),
                   fmt::format("{} threads", std::max(1u, std::thread::hardware_concurrency()))};
  return info;
}

// Runs everything in the calling thread and the pool: a submission is complete when submit() returns.
class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const DeviceOptions& options)
      : kernels_(kernels_of(options.instruction_set)), pool_(options.threads), info_(describe(kernels_)) {
    info_.features.back() = fmt::format("{} threads", pool_.size());
  }

  const DeviceInfo& info() const override { return info_; }

  MemoryReport memory() const override {
    MemoryReport report = ledger_->report();
    report.device_bytes = info_.memory_bytes;
    report.budget_bytes = report.total.bytes + available_memory_bytes();
    return report;
  }

  std::unique_ptr<Buffer> allocate(uint64_t size, MemoryLabel label) override {
    return std::make_unique<CpuBuffer>(size, label, ledger_);
  }

  using Device::download;
  using Device::record;
  using Device::upload;

  void upload(Buffer& buffer, uint64_t offset, uint64_t size, const FillChunk& fill) override {
    check_range(buffer, offset, size);
    // Filled in place, in pieces of the size that other devices stage, so that fill() sees the same calls.
    std::byte* data = static_cast<CpuBuffer&>(buffer).data() + offset;
    for (uint64_t done = 0; done < size; done += kChunk) fill({data + done, std::min(kChunk, size - done)}, done);
  }

  void download(const Buffer& buffer, uint64_t offset, std::span<std::byte> destination) override {
    check_range(buffer, offset, destination.size());
    if (destination.empty()) return;
    std::memcpy(destination.data(), static_cast<const CpuBuffer&>(buffer).data() + offset, destination.size());
  }

  std::unique_ptr<Recording> record(std::span<const Operation> operations, const RecordOptions& options) override {
    for (const Operation& operation : operations) check(operation);
    return std::make_unique<CpuRecording>(operations, options.profile);
  }

  Ticket submit(Recording& recording) override {
    static_cast<CpuRecording&>(recording).run(Runner(kernels_, pool_));
    return ++submitted_;
  }

  void wait(Ticket) override {}

 private:
  static constexpr uint64_t kChunk = 16 << 20;

  static void check_range(const Buffer& buffer, uint64_t offset, uint64_t size) {
    if (offset > buffer.size() || size > buffer.size() - offset)
      throw_error(ErrorKind::usage, "[cpu] bytes {} + {} lie outside a buffer of {}", offset, size, buffer.size());
  }

  const Kernels& kernels_;
  ThreadPool pool_;
  DeviceInfo info_;
  std::shared_ptr<MemoryLedger> ledger_ = std::make_shared<MemoryLedger>();
  Ticket submitted_ = 0;
};

std::vector<DeviceListing> list_cpu(std::string&) { return {{describe(kernels_of("")), ""}}; }

std::unique_ptr<Device> open_cpu(uint32_t, const DeviceOptions& options) {
  return std::make_unique<CpuDevice>(options);
}

}  // namespace
}  // namespace cpu

const Backend& cpu_backend() {
  static constexpr Backend backend{"cpu", cpu::list_cpu, cpu::open_cpu};
  return backend;
}

}  // namespace turboesm
