#include <cmath>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "tests/conformance/harness.h"
#include "tests/rope_table.h"

namespace turboesm::conformance {
namespace {

struct Types {
  DType in, out;
};

struct Shape {
  uint32_t tokens, inputs, heads, head_dim;
};

void add_qkv_rope(Harness& harness, Types types, Shape shape) {
  const auto [tokens, inputs, heads, head_dim] = shape;
  const std::string what =
      fmt::format("{} tokens, {} inputs, {} heads of {}, {}", tokens, inputs, heads, head_dim, name_of(types.in));
  harness.add(what, [&](Case& c) -> Operation {
    Rng& rng = harness.rng();
    const uint64_t outputs = uint64_t(3) * heads * head_dim, count = tokens * outputs;
    const uint32_t table_rows = 1 + rng.below(2000);
    // Sums of about 1, which the bias and, when turned, their neighbours may cancel.
    const Tolerance tolerance = rounded(types.out, count, product_error(harness, types.in, inputs) + 5e-7, 1);
    return QkvRope{.x = c.input(types.in, rng.normals(uint64_t(tokens) * inputs)),
                   .weight = c.input(types.in, rng.normals(outputs * inputs, 1 / std::sqrt(float(inputs)))),
                   .bias = c.input(DType::f32, rng.normals(outputs)),
                   .positions = c.input(rng.integers(tokens, 0, int32_t(table_rows))),
                   .table = c.input(DType::f32, rope_table(table_rows, head_dim)),
                   .qkv = c.output(types.out, count, tolerance),
                   .tokens = tokens,
                   .inputs = inputs,
                   .heads = heads,
                   .head_dim = head_dim,
                   .table_rows = table_rows,
                   .q_scale = rng.coin() ? 1 / std::sqrt(float(head_dim)) : 1.0f};
  });
}

// Widths that tiles cut anywhere, inside a head or a third too.
void add_awkward_shapes(Harness& harness, Types types) {
  Rng& rng = harness.rng();
  const auto add = [&](uint32_t head_dim) {
    for (const uint32_t tokens : kAwkwardLengths)
      add_qkv_rope(harness, types, {tokens, rng.pick(kAwkwardWidths), rng.pick({1u, 2u, 3u, 5u}), head_dim});
    // Rows of whole 16-byte loads, which the fast kernels ask for.
    for (const uint32_t tokens : {16u, 81u, 129u})
      add_qkv_rope(harness, types, {tokens, rng.pick({8u, 24u, 72u, 264u}), rng.pick({1u, 2u, 3u}), head_dim});
  };
  for (const uint32_t head_dim : kHeadDims) add(head_dim);
  for (const uint32_t head_dim : kOtherHeadDims) add(head_dim);
}

// Those of the official models.
void add_model_shapes(Harness& harness, Types types) {
  add_qkv_rope(harness, types, {147, 320, 20, 16});
  add_qkv_rope(harness, types, {33, 480, 20, 24});
  add_qkv_rope(harness, types, {2, 1280, 20, 64});
}

// Enough work to fill a GPU, so that a kernel's largest tiles are chosen; and few rows of many inputs, where workgroups
// share tiles.
void add_large_shapes(Harness& harness, Types types) {
  const Shape shapes[] = {{145, 1280, 20, 64}, {34, 5120, 40, 128},  {16, 5120, 3, 8},
                          {147, 5120, 5, 64},  {2050, 1280, 20, 64}, {16400, 136, 20, 16}};
  for (const Shape shape : shapes) add_qkv_rope(harness, types, shape);
}

}  // namespace

TEST_CASE("qkv_rope agrees with the oracle", "[conformance]") {
  conform(3, Units::matrix_cores_too, [](Harness& harness) {
    for (const DType in : kFloatTypes)
      for (const DType out : kFloatTypes) {
        const Types types{in, out};
        add_awkward_shapes(harness, types);
        add_model_shapes(harness, types);
        add_qkv_rope(harness, types, {kManyRows, 8, 1, 8});
        add_qkv_rope(harness, types, {0, 64, 1, 16});
      }
  });
}

TEST_CASE("qkv_rope of large shapes agrees with the oracle", "[conformance]") {
  conform(7, Units::matrix_cores_too, [](Harness& harness) {
    for (const DType in : kFloatTypes)
      for (const DType out : kFloatTypes) {
        if (harness.takes_large()) add_large_shapes(harness, {in, out});
        add_qkv_rope(harness, {in, out}, {65, 64, 2, 16});
      }
  });
}

// Each kernel and tile that a device has, whichever it would take by itself.
TEST_CASE("every variant of qkv_rope agrees with the oracle", "[conformance]") {
  conform_variants(42, [](Harness& harness) {
    for (const Types types :
         {Types{DType::f16, DType::f16}, Types{DType::bf16, DType::bf16}, Types{DType::bf16, DType::f32}})
      for (const Shape shape :
           {Shape{150, 512, 4, 64}, Shape{150, 320, 5, 64}, Shape{33, 1032, 3, 24}, Shape{3, 512, 2, 16}})
        add_qkv_rope(harness, types, shape);
  });
}

}  // namespace turboesm::conformance
