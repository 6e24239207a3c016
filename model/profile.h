#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "runtime/operations.h"

namespace turboesm {

// Where a model's time goes, by kind of operation; linear layers of different shapes are different kinds.
class Profile {
 public:
  struct Row {
    std::string name;
    uint32_t count = 0;
    double seconds = 0, flops = 0;
    uint64_t bytes = 0;
  };

  // Adds one run: the operations and Recording::operation_seconds().
  void add(std::span<const Operation> operations, std::span<const double> seconds);
  std::vector<Row> rows() const;  // the slowest kind first

 private:
  std::map<std::string, Row> kinds_;
};

}  // namespace turboesm
