// What the files of CPU kernels share: how they read and write operands, scratch memory, and sums in a fixed order. All
// of it is local to the file that includes it, since those are compiled once for each instruction set.
#pragma once

#include <cmath>
#include <cstring>
#include <utility>

#include <Eigen/Core>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "runtime/cpu/buffer.h"

namespace turboesm::cpu {
namespace {

template <class T>
T* as(const Tensor& tensor) {
  return reinterpret_cast<T*>(data_of(tensor));
}

inline uint64_t min_of(uint64_t a, uint64_t b) { return a < b ? a : b; }

// ---- 16-bit storage -------------------------------------------------------------------------------------------------

inline void widen_f16(const uint16_t* source, float* destination, uint64_t count) {
  uint64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(destination + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i))));
#endif
  for (; i < count; ++i) destination[i] = f32_from_f16(source[i]);
}

inline void narrow_f16(const float* source, uint16_t* destination, uint64_t count) {
  uint64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(destination + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  for (; i < count; ++i) destination[i] = f16_from_f32(source[i]);
}

// Elements [first, first + count) of a tensor as f32.
inline void load(const Tensor& tensor, uint64_t first, uint64_t count, float* destination) {
  switch (tensor.dtype) {
    case DType::f16: return widen_f16(as<const uint16_t>(tensor) + first, destination, count);
    case DType::bf16: {
      const uint16_t* source = as<const uint16_t>(tensor) + first;
      for (uint64_t i = 0; i < count; ++i) {
        const uint32_t bits = uint32_t(source[i]) << 16;
        std::memcpy(destination + i, &bits, 4);
      }
      return;
    }
    default: std::memcpy(destination, as<const float>(tensor) + first, count * 4);
  }
}

inline void store(const Tensor& tensor, uint64_t first, uint64_t count, const float* source) {
  switch (tensor.dtype) {
    case DType::f16: return narrow_f16(source, as<uint16_t>(tensor) + first, count);
    case DType::bf16:
      for (uint64_t i = 0; i < count; ++i) as<uint16_t>(tensor)[first + i] = bf16_from_f32(source[i]);
      return;
    default: std::memcpy(as<float>(tensor) + first, source, count * 4);
  }
}

// A thread's scratch memory: grows to the largest need and stays.
class Scratch {
 public:
  ~Scratch() { Eigen::internal::aligned_free(data_); }
  float* get(uint64_t floats) {
    if (floats > capacity_) {
      // The allocation may throw, and the thread goes on.
      Eigen::internal::aligned_free(std::exchange(data_, nullptr));
      capacity_ = 0;
      data_ = static_cast<float*>(Eigen::internal::aligned_malloc(floats * sizeof(float)));
      capacity_ = floats;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  uint64_t capacity_ = 0;
};

// ---- Arithmetic in a fixed order ------------------------------------------------------------------------------------

constexpr int kLanes = 16;

template <class F>
inline float sum_of(uint64_t count, F&& term) {
  float lanes[kLanes] = {};
  uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += term(i);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

inline float max_of(const float* values, uint64_t count) {
  float lanes[kLanes];
  for (float& lane : lanes) lane = values[0];
  uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane)
      lanes[lane] = lanes[lane] < values[i + lane] ? values[i + lane] : lanes[lane];
  for (; i < count; ++i) lanes[0] = lanes[0] < values[i] ? values[i] : lanes[0];
  for (int lane = 1; lane < kLanes; ++lane) lanes[0] = lanes[0] < lanes[lane] ? lanes[lane] : lanes[0];
  return lanes[0];
}

// values = exp(values - shift), in place; returns their sum.
inline float exponentiate(float* values, uint64_t count, float shift) {
  Eigen::Map<Eigen::ArrayXf> row(values, Eigen::Index(count));
  row = (row - shift).exp();
  return sum_of(count, [values](uint64_t i) { return values[i]; });
}

}  // namespace
}  // namespace turboesm::cpu
