// Fill, RandomNormal and Copy (runtime/operations.h): one element, pair or 16 bytes a thread and step.
#include <algorithm>

#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/product.h"
#include "runtime/cuda/random.cuh"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kThreads = 256;

// Enough blocks to fill the device; each thread goes on with the next item of its stride.
uint32_t blocks_for(uint64_t items, const Launch& l) {
  return uint32_t(std::min<uint64_t>((items + kThreads - 1) / kThreads, 16 * l.gpu.multiprocessors));
}

template <class T>
__global__ void fill(T* out, uint64_t count, float value) {
  let_next_start();
  wait_for_inputs();
  for (uint64_t i = uint64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += uint64_t(gridDim.x) * kThreads)
    out[i] = from_float<T>(value);
}

template <class T>
__global__ void random_normal(T* out, uint32_t pairs, uint32_t seed, float stddev) {
  let_next_start();
  wait_for_inputs();
  for (uint64_t i = uint64_t(blockIdx.x) * kThreads + threadIdx.x; i < pairs; i += uint64_t(gridDim.x) * kThreads) {
    const float2 pair = random_normal_pair(seed, uint32_t(i));
    store2(out + 2 * i, {pair.x * stddev, pair.y * stddev});
  }
}

// `words` 4-byte words, 16 bytes at a time; the addresses are multiples of 16.
__global__ void copy(const uint32_t* source, uint32_t* destination, uint64_t words) {
  let_next_start();
  wait_for_inputs();
  const uint64_t first = uint64_t(blockIdx.x) * kThreads + threadIdx.x, stride = uint64_t(gridDim.x) * kThreads;
  const auto* from = reinterpret_cast<const uint4*>(source);
  auto* to = reinterpret_cast<uint4*>(destination);
  const uint64_t fours = words / 4;
  uint64_t i = first;
  for (; i + 3 * stride < fours; i += 4 * stride) {
    const uint4 a = from[i], b = from[i + stride], c = from[i + 2 * stride], d = from[i + 3 * stride];
    to[i] = a, to[i + stride] = b, to[i + 2 * stride] = c, to[i + 3 * stride] = d;
  }
  for (; i < fours; i += stride) to[i] = from[i];
  for (uint64_t j = fours * 4 + first; j < words; j += stride) destination[j] = source[j];
}

}  // namespace

void launch(const Fill& a, const Launch& l) {
  with_type(a.out.dtype, [&](auto type) {
    using T = decltype(type);
    start(fill<T>, blocks_for(a.out.count, l), kThreads, 0, l, pointer<T>(a.out), a.out.count, a.value);
  });
}

void launch(const RandomNormal& a, const Launch& l) {
  with_type(a.out.dtype, [&](auto type) {
    using T = decltype(type);
    const uint32_t pairs = uint32_t(a.out.count / 2);
    start(random_normal<T>, blocks_for(pairs, l), kThreads, 0, l, pointer<T>(a.out), pairs, a.seed, a.stddev);
  });
}

void fill_random(void* out, uint64_t count, DType dtype, const Launch& l) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const uint32_t pairs = uint32_t(count / 2);
    start(random_normal<T>, blocks_for(pairs, l), kThreads, 0, l, static_cast<T*>(out), pairs, 1u, 1.0f);
  });
}

void launch(const Copy& a, const Launch& l) {
  const uint64_t words = a.destination.bytes() / 4;
  start(copy, blocks_for((words + 3) / 4, l), kThreads, 0, l, pointer<const uint32_t>(a.source),
        pointer<uint32_t>(a.destination), words);
}

}  // namespace turboesm::cuda
