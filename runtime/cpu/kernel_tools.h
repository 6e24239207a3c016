// What the files of CPU kernels share: how they read and write operands, scratch memory, and sums in a fixed order. All
// of it is local to the file that includes it, since those are compiled once for each instruction set.
#pragma once

#include <cmath>
#include <cstring>
#include <new>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "runtime/cpu/buffer.h"
#include "runtime/cpu/vector.h"

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
#elif defined(__aarch64__)
  const __fp16* halves = reinterpret_cast<const __fp16*>(source);
  for (; i < count; ++i) destination[i] = halves[i];
#endif
  for (; i < count; ++i) destination[i] = f32_from_f16(source[i]);
}

inline void narrow_f16(const float* source, uint16_t* destination, uint64_t count) {
  uint64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(destination + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__aarch64__)
  __fp16* halves = reinterpret_cast<__fp16*>(destination);
  for (; i < count; ++i) halves[i] = __fp16(source[i]);
#endif
  for (; i < count; ++i) destination[i] = f16_from_f32(source[i]);
}

// bf16_from_f32 of runtime/dtype.h, where the compiler sees it and takes many at once.
inline void narrow_bf16(const float* source, uint16_t* destination, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, source + i, 4);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, nan = (bits >> 16) | 0x40u;
    destination[i] = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  }
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
    case DType::bf16: return narrow_bf16(source, as<uint16_t>(tensor) + first, count);
    default: std::memcpy(as<float>(tensor) + first, source, count * 4);
  }
}

// A thread's scratch memory: grows to the largest need and stays.
class Scratch {
 public:
  ~Scratch() { release(); }
  float* get(uint64_t floats) {
    if (floats > capacity_) {
      release();  // the allocation may throw, and the thread goes on
      data_ = static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t(kAlignment)));
      capacity_ = floats;
    }
    return data_;
  }

 private:
  void release() {
    ::operator delete(std::exchange(data_, nullptr), std::align_val_t(kAlignment));
    capacity_ = 0;
  }

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
  uint64_t i = 0;
  for (; i + kVector <= count; i += kVector) store_vector(values + i, exp(load_vector(values + i) - shift));
  float rest[kVector] = {};
  if (i < count) {
    std::memcpy(rest, values + i, (count - i) * sizeof(float));
    store_vector(rest, exp(load_vector(rest) - shift));
    std::memcpy(values + i, rest, (count - i) * sizeof(float));
  }
  return sum_of(count, [values](uint64_t at) { return values[at]; });
}

}  // namespace
}  // namespace turboesm::cpu
