#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "runtime/operations.h"

// What the plain loops share: operands in an image of memory, and two formulas.
namespace turboesm::conformance {

using Image = std::span<std::byte>;
using Values = std::vector<double>;

inline Values load(Image image, const Tensor& tensor, uint64_t count) {
  std::vector<float> floats(count);
  convert(tensor.dtype, image.data() + tensor.offset, DType::f32, floats.data(), count);
  return Values(floats.begin(), floats.end());
}

inline std::vector<int32_t> load_integers(Image image, const Tensor& tensor, uint64_t count) {
  std::vector<int32_t> integers(count);
  if (count > 0) std::memcpy(integers.data(), image.data() + tensor.offset, count * sizeof(int32_t));
  return integers;
}

inline void store(Image image, const Tensor& tensor, const Values& values) {
  const std::vector<float> floats(values.begin(), values.end());
  convert(DType::f32, floats.data(), tensor.dtype, image.data() + tensor.offset, floats.size());
}

// Normalises exp(scores) to a sum of 1.
inline void softmax(Values& scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - largest);
  for (double& score : scores) score /= sum;
}

inline double dot(const double* a, const double* b, uint64_t count) {
  double sum = 0;
  for (uint64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// Those of the KV cache and of generation, in plain_kv.cpp.
void run(const KvAppend& a, Image image);
void run(const KvQuery& a, Image image);
void run(const KvAttention& a, Image image);
void run(const Sample& a, Image image);

}  // namespace turboesm::conformance
