#include "tests/conformance/data.h"

#include <algorithm>

#include "runtime/random.h"

namespace turboesm::conformance {

std::vector<float> Rng::normals(uint64_t count, float stddev, float mean) {
  std::vector<float> values(count + count % 2);
  const uint32_t seed = next();
  for (uint64_t i = 0; i < values.size(); i += 2) random_normal_pair(seed, uint32_t(i / 2), values[i], values[i + 1]);
  values.resize(count);
  for (float& value : values) value = mean + stddev * value;
  return values;
}

std::vector<float> Rng::uniforms(uint64_t count, float begin, float end) {
  std::vector<float> values(count);
  for (float& value : values) value = uniform(begin, end);
  return values;
}

std::vector<int32_t> Rng::integers(uint64_t count, int32_t begin, int32_t end) {
  std::vector<int32_t> values(count);
  for (int32_t& value : values) value = begin + int32_t(below(uint32_t(end - begin)));
  return values;
}

void Packing::add(uint32_t length) {
  cu_seqlens.push_back(cu_seqlens.back() + int32_t(length));
  longest = std::max(longest, length);
  score_pairs += double(length) * length;
}

Packing pack(std::span<const uint32_t> lengths) {
  Packing packing;
  for (uint32_t length : lengths) packing.add(length);
  return packing;
}

Packing random_packing(Rng& rng, uint32_t most) {
  Packing packing;
  const uint32_t sequences = 1 + rng.below(most);
  for (uint32_t b = 0; b < sequences; ++b)
    packing.add(rng.below(4) == 0 ? rng.pick({0u, 1u, 2u, 2u}) : rng.pick(kAwkwardLengths));
  if (packing.tokens() == 0) packing.add(rng.pick(kAwkwardLengths));
  return packing;
}

Packing short_sequences(Rng& rng, uint32_t tokens) {
  Packing packing;
  while (packing.tokens() < tokens) packing.add(std::min(rng.below(7), tokens - packing.tokens()));
  return packing;
}

}  // namespace turboesm::conformance
