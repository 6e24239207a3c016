#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace turboesm {

// The cosines and sines of rotary embedding as QkvRope reads them, [rows, head_dim]: cos_0, sin_0, cos_1, sin_1, ...
inline std::vector<float> rope_table(uint32_t rows, uint32_t head_dim) {
  std::vector<float> table;
  for (uint32_t position = 0; position < rows; ++position)
    for (uint32_t i = 0; i < head_dim; i += 2) {
      const double angle = position / std::pow(10000.0, double(i) / head_dim);
      table.push_back(float(std::cos(angle)));
      table.push_back(float(std::sin(angle)));
    }
  return table;
}

}  // namespace turboesm
