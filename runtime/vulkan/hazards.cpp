#include "runtime/vulkan/hazards.h"

namespace turboesm::vulkan {

bool HazardTracker::needs_barrier_before(std::span<const AccessedRange> accesses) {
  const bool needed = conflict(accesses, since_barrier_);
  if (needed) since_barrier_.clear();
  since_barrier_.insert(since_barrier_.end(), accesses.begin(), accesses.end());
  return needed;
}

}  // namespace turboesm::vulkan
