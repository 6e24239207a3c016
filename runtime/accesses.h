#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/operations.h"

// Which memory operations touch, and whether two may run at the same time.
namespace turboesm {

// The device addresses [begin, end) that an operation touches.
struct AccessedRange {
  uint64_t begin = 0, end = 0;
  bool writes = false;            // or reads and writes
  std::string_view operand = {};  // its name

  bool conflicts_with(const AccessedRange& other) const {
    return (writes || other.writes) && std::max(begin, other.begin) < std::min(end, other.end);
  }
};

// Of every operand, exactly the elements that the operation needs. address_of(tensor) is where its first element lies.
template <class AddressOf>
std::vector<AccessedRange> accesses_of(const Operation& operation, AddressOf&& address_of) {
  std::vector<AccessedRange> ranges;
  std::visit(
      [&](const auto& a) {
        a.operands([&](std::string_view name, const Tensor& tensor, uint64_t elements, Access access, uint32_t) {
          if (!tensor) return;
          const uint64_t begin = address_of(tensor);
          ranges.push_back({begin, begin + elements * size_of(tensor.dtype), access != Access::read, name});
        });
      },
      operation);
  return ranges;
}

// Whether one of two operations writes what the other reads or writes.
inline bool conflict(std::span<const AccessedRange> first, std::span<const AccessedRange> second) {
  return std::ranges::any_of(first, [&](const AccessedRange& a) {
    return std::ranges::any_of(second, [&](const AccessedRange& b) { return a.conflicts_with(b); });
  });
}

}  // namespace turboesm
