#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "tests/conformance/harness.h"

namespace turboesm::conformance {
namespace {

// Attention maps are positive: their sums do not cancel.
std::vector<float> random_maps(Rng& rng, uint32_t heads, uint32_t length) {
  return rng.uniforms(uint64_t(heads) * length * length, 0, 1);
}

void add_contact_sums(Harness& harness, uint32_t heads, uint32_t length) {
  harness.add(fmt::format("{} heads, length {}", heads, length), [&](Case& c) -> Operation {
    return ContactSums{.maps = c.input(DType::f32, random_maps(harness.rng(), heads, length)),
                       .sums = c.output(DType::f32, uint64_t(heads) * (length - 1), {sum_error(length)}),
                       .heads = heads,
                       .length = length};
  });
}

void add_contact_accumulate(Harness& harness, uint32_t heads, uint32_t length) {
  harness.add(fmt::format("{} heads, length {}", heads, length), [&](Case& c) -> Operation {
    Rng& rng = harness.rng();
    const uint64_t residues = length - 2;
    // About what maps of this kind sum to, so that the average product is of the size of the map.
    std::vector<float> sums = rng.uniforms(heads * (residues + 1), 0.8f * float(residues), 1.2f * float(residues));
    for (uint64_t h = 0; h < heads; ++h) sums[h * (residues + 1) + residues] *= float(residues);
    return ContactAccumulate{.maps = c.input(DType::f32, random_maps(rng, heads, length)),
                             .sums = c.input(DType::f32, sums),
                             .weight = c.input(DType::f32, rng.normals(heads)),
                             .logits = c.in_out(rng.normals(residues * residues), {sum_error(heads), 1}),
                             .heads = heads,
                             .length = length};
  });
}

constexpr uint32_t kLengths[] = {3, 4, 5, 31, 32, 33, 34, 63, 64, 65, 66, 67};

}  // namespace

TEST_CASE("contact_sums agrees with the oracle", "[conformance]") {
  conform(20, Units::any, [](Harness& harness) {
    for (const uint32_t heads : {1u, 2u, 3u, 5u, 20u, 40u})
      for (const uint32_t length : kLengths) add_contact_sums(harness, heads, length);
    for (const uint32_t length : kLongLengths) add_contact_sums(harness, 1, length);
    add_contact_sums(harness, kManyRows, 3);
  });
}

TEST_CASE("contact_accumulate agrees with the oracle", "[conformance]") {
  conform(21, Units::any, [](Harness& harness) {
    for (const uint32_t heads : {1u, 2u, 3u, 5u, 20u, 40u})
      for (const uint32_t length : kLengths) add_contact_accumulate(harness, heads, length);
    for (const uint32_t length : kLongLengths) add_contact_accumulate(harness, 1, length);
  });
}

}  // namespace turboesm::conformance
