// Operations on elements, whatever their shape, on the CPU.
#include "runtime/cpu/kernel_tools.h"
#include "runtime/cpu/variant.h"
#include "runtime/random.h"

namespace turboesm::cpu::TURBOESM_CPU_VARIANT {
namespace {

// Hands body(first element, elements) the parts of `count` elements that the blocks stand for.
template <class F>
void for_elements(Range blocks, uint64_t count, F&& body) {
  const uint64_t first = blocks.begin * kElementBlock, last = min_of(blocks.end * kElementBlock, count);
  for (uint64_t i = first; i < last; i += kElementBlock) body(i, min_of(kElementBlock, last - i));
}

}  // namespace

void fill(const Fill& a, Range blocks) {
  for_elements(blocks, a.out.count, [&](uint64_t first, uint64_t count) {
    float values[kElementBlock];
    for (uint64_t i = 0; i < count; ++i) values[i] = a.value;
    store(a.out, first, count, values);
  });
}

void random_normal(const RandomNormal& a, Range blocks) {
  for_elements(blocks, a.out.count, [&](uint64_t first, uint64_t count) {
    float values[kElementBlock];
    for (uint64_t i = 0; i < count; i += 2) {
      random_normal_pair(a.seed, uint32_t((first + i) / 2), values[i], values[i + 1]);
      values[i] *= a.stddev;
      values[i + 1] *= a.stddev;
    }
    store(a.out, first, count, values);
  });
}

void copy(const Copy& a, Range blocks) {
  const uint64_t width = size_of(a.source.dtype);
  for_elements(blocks, a.destination.count, [&](uint64_t first, uint64_t count) {
    std::memcpy(data_of(a.destination) + first * width, data_of(a.source) + first * width, count * width);
  });
}

}  // namespace turboesm::cpu::TURBOESM_CPU_VARIANT
