#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <span>
#include <vector>

#include "runtime/dtype.h"

// Seeded sizes and values for the conformance tests: the same on every machine and standard library.
namespace turboesm::conformance {

// Sizes at and beside the edges of tiles, subgroups and vector loads.
inline constexpr uint32_t kAwkwardLengths[] = {1, 2, 3, 31, 32, 33, 63, 64, 65};
inline constexpr uint32_t kLongLengths[] = {1023, 1024, 1025};
inline constexpr uint32_t kAwkwardWidths[] = {2, 6, 10, 34, 66, 126, 130, 320, 480, 640};
inline constexpr uint32_t kHeadDims[] = {16, 24, 32, 64, 128};  // those of the official models
inline constexpr uint32_t kOtherHeadDims[] = {8, 40, 256};
inline constexpr uint32_t kManyRows = 70001;  // more than the 65535 workgroups that Vulkan guarantees in one dimension
inline constexpr DType kFloatTypes[] = {DType::f32, DType::f16, DType::bf16};

class Rng {
 public:
  explicit Rng(uint32_t seed) : engine_(seed) {}
  uint32_t next() { return uint32_t(engine_()); }
  uint32_t below(uint32_t end) { return next() % end; }  // [0, end)
  bool coin() { return (next() & 0x8000) != 0; }
  float uniform(float begin, float end) { return begin + (end - begin) * float(next() >> 8) * 0x1p-24f; }

  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[below(uint32_t(values.size()))];
  }
  template <class T, size_t n>
  T pick(const T (&values)[n]) {
    return values[below(n)];
  }

  std::vector<float> normals(uint64_t count, float stddev = 1, float mean = 0);
  std::vector<float> uniforms(uint64_t count, float begin, float end);
  std::vector<int32_t> integers(uint64_t count, int32_t begin, int32_t end);  // [begin, end)

 private:
  std::mt19937 engine_;
};

// A batch of packed sequences: sequence b is rows cu_seqlens[b] .. cu_seqlens[b + 1].
struct Packing {
  std::vector<int32_t> cu_seqlens{0};
  uint32_t longest = 0;
  double score_pairs = 0;  // sum of length^2

  void add(uint32_t length);
  uint32_t sequences() const { return uint32_t(cu_seqlens.size()) - 1; }
  uint32_t tokens() const { return uint32_t(cu_seqlens.back()); }
};

Packing pack(std::span<const uint32_t> lengths);
inline Packing pack(std::initializer_list<uint32_t> lengths) {
  return pack(std::span(lengths.begin(), lengths.size()));
}

// Up to `most` sequences of awkward lengths, empty ones and ones without a residue (<cls> <eos>) among them; at least
// one token in all.
Packing random_packing(Rng& rng, uint32_t most);

// Many short sequences of 0 to 6 tokens, `tokens` in all.
Packing short_sequences(Rng& rng, uint32_t tokens);

}  // namespace turboesm::conformance
