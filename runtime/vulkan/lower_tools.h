#pragma once

#include <algorithm>
#include <initializer_list>

#include "runtime/vulkan/lower.h"

// What the files that lower operations share.
namespace turboesm::vulkan {

inline constexpr uint32_t kMaxGroups = 65535;  // per dimension; what Vulkan guarantees
// Of workgroups that share a result, at the start of the scratch memory; zero at rest. What they leave each other comes
// behind.
inline constexpr uint32_t kScratchCounters = 16384;

constexpr uint32_t ceil_div(uint64_t n, uint64_t d) { return uint32_t((n + d - 1) / d); }
constexpr uint32_t capped(uint64_t groups) { return uint32_t(std::min<uint64_t>(groups, kMaxGroups)); }
constexpr uint32_t id_of(DType dtype) { return uint32_t(dtype); }

template <class Push>
Dispatch dispatch(std::string_view shader, std::initializer_list<uint32_t> constants, std::array<uint32_t, 3> groups,
                  const Push& push) {
  Dispatch result{.shader = shader, .constants = constants, .groups = groups};
  result.set_push(push);
  return result;
}

}  // namespace turboesm::vulkan
