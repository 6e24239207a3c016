#include "runtime/vulkan/hazards.h"

#include <algorithm>
#include <variant>

#include "runtime/vulkan/lower.h"

namespace turboesm::vulkan {

std::vector<AccessedRange> accesses_of(const Operation& operation) {
  std::vector<AccessedRange> ranges;
  std::visit(
      [&](const auto& a) {
        a.operands([&](std::string_view, const Tensor& tensor, uint64_t elements, Access access, uint32_t) {
          const uint64_t begin = address_of(tensor);
          ranges.push_back({begin, begin + elements * size_of(tensor.dtype), access != Access::read});
        });
      },
      operation);
  return ranges;
}

bool HazardTracker::needs_barrier_before(std::span<const AccessedRange> accesses) {
  const bool conflict = std::ranges::any_of(accesses, [&](const AccessedRange& now) {
    return std::ranges::any_of(since_barrier_,
                               [&](const AccessedRange& earlier) { return now.conflicts_with(earlier); });
  });
  if (conflict) since_barrier_.clear();
  since_barrier_.insert(since_barrier_.end(), accesses.begin(), accesses.end());
  return conflict;
}

}  // namespace turboesm::vulkan
