#include "model/profile.h"

#include <algorithm>

#include <fmt/format.h>

namespace turboesm {
namespace {

std::string kind_of(const Operation& operation) {
  const auto* linear = std::get_if<Linear>(&operation);
  if (!linear) return std::string(name_of(operation));
  return fmt::format("linear {}x{}{}{}", linear->inputs, linear->outputs, linear->gelu ? " gelu" : "",
                     linear->residual ? " residual" : "");
}

}  // namespace

void Profile::add(std::span<const Operation> operations, std::span<const double> seconds) {
  for (size_t i = 0; i < operations.size() && i < seconds.size(); ++i) {
    Row& row = kinds_[kind_of(operations[i])];
    row.count += 1;
    row.seconds += seconds[i];
    row.flops += flops(operations[i]);
    row.bytes += bytes(operations[i]);
  }
}

std::vector<Profile::Row> Profile::rows() const {
  std::vector<Row> rows;
  for (const auto& [name, row] : kinds_) {
    rows.push_back(row);
    rows.back().name = name;
  }
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.seconds > b.seconds; });
  return rows;
}

}  // namespace turboesm
