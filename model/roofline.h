#pragma once

#include <algorithm>
#include <string_view>

// The roofline model (Williams, Waterman and Patterson 2009): work takes at least as long as its bytes take at the
// memory's bandwidth, and as long as its operations take at the arithmetic's rate.
namespace turboesm {

// What no way of doing a piece of work can do without.
struct Work {
  double flops = 0;  // multiply and add counted as two
  double bytes = 0;  // read and written, each once
};

// What a device was measured to do at best (measure_limits in model/bench.h).
struct DeviceLimits {
  double bytes_per_second = 0;  // of a copy, read and written
  double flops_per_second = 0;  // of a large product in one dtype
};

struct Roofline {
  double memory = 0, arithmetic = 0;  // seconds
  double floor() const { return std::max(memory, arithmetic); }
  std::string_view bound_by() const { return memory > arithmetic ? "memory" : "arithmetic"; }
};

inline Roofline roofline(const Work& work, const DeviceLimits& limits) {
  return {work.bytes / limits.bytes_per_second, work.flops / limits.flops_per_second};
}

}  // namespace turboesm
