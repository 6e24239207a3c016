#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/operations.h"

namespace turboesm::vulkan {

// The device addresses [begin, end) that an operation touches.
struct AccessedRange {
  uint64_t begin = 0, end = 0;
  bool writes = false;  // or reads and writes

  bool conflicts_with(const AccessedRange& other) const {
    return (writes || other.writes) && std::max(begin, other.begin) < std::min(end, other.end);
  }
};

// Of every operand, exactly the elements that the operation needs.
std::vector<AccessedRange> accesses_of(const Operation& operation);

// Decides where a list of operations needs a barrier: before an operation that reads what an unordered one wrote, or
// writes what an unordered one reads or wrote.
class HazardTracker {
 public:
  // Takes the next operation's accesses; true when a barrier must come before it.
  bool needs_barrier_before(std::span<const AccessedRange> accesses);

 private:
  std::vector<AccessedRange> since_barrier_;
};

}  // namespace turboesm::vulkan
