#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>

namespace turboesm {

// What device memory is for. Every allocation has exactly one.
enum class MemoryLabel : uint32_t { weights, activations, kv, staging };
inline constexpr uint32_t kMemoryLabels = 4;
std::string_view name_of(MemoryLabel label);

struct MemoryUse {
  uint64_t bytes = 0;  // allocated now, as the allocator rounded it
  uint64_t peak = 0;   // most at any time since the device was opened
  uint64_t count = 0;  // allocations now
};

struct MemoryReport {
  std::array<MemoryUse, kMemoryLabels> by_label;
  MemoryUse total;            // its peak is of the sum, not the sum of the peaks
  uint64_t device_bytes = 0;  // device-local memory in all
  uint64_t budget_bytes = 0;  // what the driver lets this process have now; 0: it does not say
  uint64_t driver_bytes = 0;  // what the driver says this process has; 0: it does not say

  // What this program may have of the device: the driver's word where there is one.
  uint64_t limit_bytes() const { return budget_bytes ? budget_bytes : device_bytes; }
  // What the driver counts beyond our allocations: its own tables, pipelines, what blocks of memory hold unused.
  uint64_t other_bytes() const { return driver_bytes > total.bytes ? driver_bytes - total.bytes : 0; }
  uint64_t free_bytes() const {
    const uint64_t used = total.bytes + other_bytes();
    return limit_bytes() > used ? limit_bytes() - used : 0;
  }

  const MemoryUse& operator[](MemoryLabel label) const { return by_label[uint32_t(label)]; }
};

// Counts allocations; every back end owns one. Thread safe.
class MemoryLedger {
 public:
  void add(MemoryLabel label, uint64_t bytes);
  void remove(MemoryLabel label, uint64_t bytes);
  MemoryReport report() const;

 private:
  struct Counter {
    std::atomic<uint64_t> bytes{0}, peak{0}, count{0};
    void add(uint64_t amount);
    void remove(uint64_t amount);
    MemoryUse use() const { return {bytes.load(), peak.load(), count.load()}; }
  };
  std::array<Counter, kMemoryLabels> labels_;
  Counter total_;
};

}  // namespace turboesm
