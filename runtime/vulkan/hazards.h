#pragma once

#include <span>
#include <vector>

#include "runtime/accesses.h"

namespace turboesm::vulkan {

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
