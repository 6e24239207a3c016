#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/plan.h"

namespace turboesm::desktop {

// What the memory chart and its table show: the same context in every preset, side by side. All of it is the library's
// plan_memory() and max_length(), as `turboesm plan` prints them.
struct PlanView {
  struct Key {  // all that it depends on
    std::string device;
    DType dtype = DType::f32;
    uint64_t budget = 0;  // bytes
    std::string size;     // an official one; empty: `own`
    Esm2Config own;
    uint32_t length = 0, batch = 0;
    bool operator==(const Key&) const = default;
  };
  struct Preset {
    std::string name, what;
    double bits_per_value = 0;
    MemoryPlan plan;                        // at the length asked for
    std::vector<uint64_t> curve;            // total bytes, at each of `lengths`
    uint32_t longest = 0;                   // of this size
    std::vector<uint32_t> longest_by_size;  // of each official size
  };

  Key key;
  std::vector<uint32_t> lengths;  // tokens
  std::vector<Preset> presets;
};

// The longest length that is looked for.
inline constexpr uint32_t kLongestContext = 1u << 20;

PlanView make_plan_view(const PlanView::Key& key, const DeviceInfo& device);

}  // namespace turboesm::desktop
