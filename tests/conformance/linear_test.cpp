#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "tests/conformance/harness.h"

namespace turboesm::conformance {
namespace {

struct Types {
  DType in, out;
};
constexpr Types kTypes[] = {{DType::f32, DType::f32},  {DType::f16, DType::f32},   {DType::f16, DType::f16},
                            {DType::bf16, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f16}};

struct Shape {
  uint32_t rows, inputs, outputs;
};

struct Epilogue {
  bool bias = false, gelu = false, residual = false, in_place = false;
};

Epilogue random_epilogue(Rng& rng) { return {rng.coin(), rng.coin(), rng.coin(), rng.coin()}; }

// With `nan` the last row of x has a NaN: what rounds to 16 bits and what takes the larger of two could lose it.
void add_linear(Harness& harness, Types types, Shape shape, Epilogue epilogue, bool nan = false) {
  const uint32_t rows = shape.rows, inputs = shape.inputs, outputs = shape.outputs;
  const bool in_place = epilogue.residual && epilogue.in_place && types.out == DType::f32;
  const uint64_t count = uint64_t(rows) * outputs;
  const std::string what = fmt::format("{} rows, {} inputs, {} outputs, {}{}{}{}{}", rows, inputs, outputs,
                                       name_of(types.in), epilogue.bias ? ", bias" : "", epilogue.gelu ? ", gelu" : "",
                                       in_place            ? ", residual in place"
                                       : epilogue.residual ? ", residual"
                                                           : "",
                                       nan ? ", a NaN" : "");
  harness.add(what, [&](Case& c) -> Operation {
    Rng& rng = harness.rng();
    // Sums of about 1, which bias, residual and their own signs may cancel.
    Tolerance tolerance = rounded(types.out, count, product_error(harness, types.in, inputs), 1);
    tolerance.nans = nan;
    const Tensor y = in_place ? c.in_out(rng.normals(count), tolerance) : c.output(types.out, count, tolerance);
    std::vector<float> x = rng.normals(uint64_t(rows) * inputs);
    if (nan) x[uint64_t(rows - 1) * inputs + inputs / 3] = std::numeric_limits<float>::quiet_NaN();
    return Linear{.x = c.input(types.in, x),
                  .weight = c.input(types.in, rng.normals(uint64_t(outputs) * inputs, 1 / std::sqrt(float(inputs)))),
                  .bias = epilogue.bias ? c.input(DType::f32, rng.normals(outputs)) : Tensor{},
                  .residual = in_place            ? y
                              : epilogue.residual ? c.input(DType::f32, rng.normals(count))
                                                  : Tensor{},
                  .y = y,
                  .rows = rows,
                  .inputs = inputs,
                  .outputs = outputs,
                  .gelu = epilogue.gelu};
  });
}

uint32_t random_outputs(Rng& rng, DType out) {
  return out == DType::f32 ? rng.pick({1u, 2u, 6u, 33u, 34u, 66u, 126u, 130u, 320u})
                           : rng.pick({2u, 6u, 10u, 34u, 66u, 126u, 130u, 320u});
}

void add_awkward_shapes(Harness& harness) {
  Rng& rng = harness.rng();
  for (const Types types : kTypes)
    for (const uint32_t inputs : kAwkwardWidths)
      for (int repeat = 0; repeat < 24; ++repeat)
        add_linear(harness, types, {rng.pick(kAwkwardLengths), inputs, random_outputs(rng, types.out)},
                   random_epilogue(rng));
}

// Rows of whole 16-byte loads, which the fast kernels ask for, beside their tiles' edges.
void add_aligned_shapes(Harness& harness) {
  Rng& rng = harness.rng();
  for (const Types types : kTypes)
    for (const uint32_t inputs : {8u, 16u, 24u, 40u, 64u, 72u, 128u, 136u, 264u})
      for (int repeat = 0; repeat < 6; ++repeat) {
        const uint32_t rows = rng.pick({1u, 15u, 16u, 17u, 48u, 64u, 80u, 81u, 127u, 128u, 129u, 257u});
        const uint32_t outputs = rng.pick({4u, 8u, 12u, 16u, 20u, 36u, 64u, 68u, 128u, 132u, 256u, 260u});
        add_linear(harness, types, {rows, inputs, outputs}, random_epilogue(rng));
      }
}

// The matrices of the official models, at the row counts where a tiling ends.
void add_model_shapes(Harness& harness) {
  Rng& rng = harness.rng();
  const Shape shapes[] = {{147, 320, 960}, {65, 320, 1280}, {64, 1280, 320}, {33, 480, 1440}, {2, 640, 2560},
                          {31, 2560, 640}, {5, 5120, 1280}, {1, 1280, 5120}, {257, 320, 33},  {128, 128, 128},
                          {129, 256, 256}, {127, 192, 384}, {1023, 32, 64},  {1024, 64, 32},  {1025, 40, 24}};
  for (const Types types : kTypes)
    for (const Shape shape : shapes) {
      if (types.out != DType::f32 && shape.outputs % 2 != 0) continue;
      add_linear(harness, types, shape, random_epilogue(rng));
      add_linear(harness, types, shape, {.bias = true, .gelu = true});
      if (types.out == DType::f32)
        add_linear(harness, types, shape, {.bias = true, .residual = true, .in_place = true});
    }
}

// Enough work to fill a GPU, so that a kernel's largest tiles are chosen; more than a CPU can be asked for.
void add_large_shapes(Harness& harness) {
  Rng& rng = harness.rng();
  const Shape shapes[] = {{147, 1280, 3840},  {147, 5120, 1280}, {300, 1280, 1280},  {2050, 264, 3848},
                          {2050, 264, 3872},  {4100, 640, 1290}, {16400, 136, 1288}, {16400, 136, 1312},
                          {2050, 1280, 1312}, {8192, 256, 2048}};
  for (const Types types : kTypes)
    for (const Shape shape : shapes) {
      add_linear(harness, types, shape, random_epilogue(rng));
      add_linear(harness, types, shape, {.bias = true, .gelu = true});
      if (types.out == DType::f32)
        add_linear(harness, types, shape, {.bias = true, .residual = true, .in_place = true});
    }
  for (const Types types : kTypes)
    for (const uint32_t inputs : {16u, 64u}) add_linear(harness, types, {1300, inputs, 2052}, {});
}

}  // namespace

TEST_CASE("linear agrees with the oracle", "[conformance]") {
  conform(1, Units::matrix_cores_too, [](Harness& harness) {
    add_awkward_shapes(harness);
    add_aligned_shapes(harness);
    add_model_shapes(harness);
    for (const Types types : kTypes) {
      add_linear(harness, types, {kManyRows, 8, 2}, {.bias = true});
      add_linear(harness, types, {3, 8, kManyRows + 1}, {.bias = true});
      add_linear(harness, types, {0, 64, 64}, {.bias = true});
    }
  });
}

TEST_CASE("linear of large shapes agrees with the oracle", "[conformance]") {
  conform(6, Units::matrix_cores_too, [](Harness& harness) {
    if (harness.takes_large()) add_large_shapes(harness);
    add_linear(harness, {DType::f16, DType::f16}, {257, 64, 68}, {.bias = true, .gelu = true});
  });
}

TEST_CASE("linear keeps a NaN", "[conformance]") {
  conform(7, Units::matrix_cores_too, [](Harness& harness) {
    for (const Types types : kTypes)
      for (const Shape shape : {Shape{150, 512, 264}, Shape{5, 64, 66}})
        for (const Epilogue epilogue :
             {Epilogue{.bias = true}, Epilogue{.bias = true, .gelu = true}, Epilogue{.bias = true, .residual = true}})
          add_linear(harness, types, shape, epilogue, true);
  });
}

// Each kernel and tile that a device has, whichever it would take by itself.
TEST_CASE("every variant of linear agrees with the oracle", "[conformance]") {
  conform_variants(41, [](Harness& harness) {
    constexpr Shape kShapes[] = {{150, 512, 264}, {150, 320, 264}, {33, 1032, 260}, {5, 520, 320}};
    constexpr Shape kShortShapes[] = {{128, 16, 128}, {129, 32, 132}, {300, 48, 260}, {257, 64, 388}};
    constexpr Epilogue kEpilogues[] = {
        {}, {.bias = true, .gelu = true}, {.bias = true, .residual = true, .in_place = true}};
    for (const Types types : {Types{DType::f16, DType::f16}, Types{DType::f16, DType::f32},
                              Types{DType::bf16, DType::bf16}, Types{DType::bf16, DType::f32}}) {
      for (const Shape shape : kShapes)
        for (const Epilogue epilogue : kEpilogues) add_linear(harness, types, shape, epilogue);
      for (const Shape shape : kShortShapes) add_linear(harness, types, shape, {});
    }
  });
}

// GELU alone, over the range where erf is neither 0 nor 1 and beyond: the identity matrix hands it its arguments.
TEST_CASE("linear's GELU is exact over its whole range", "[conformance]") {
  conform(2, Units::any, [](Harness& harness) {
    constexpr uint32_t kWidth = 128, kRows = 512;
    harness.add("identity weight, arguments -16 .. 16", [&](Case& c) -> Operation {
      std::vector<float> x(kRows * kWidth), identity(kWidth * kWidth);
      for (uint32_t i = 0; i < x.size(); ++i) x[i] = 32.0f * float(i) / float(x.size()) - 16.0f;
      for (uint32_t i = 0; i < kWidth; ++i) identity[i * kWidth + i] = 1;
      // Near -4 the two halves of GELU cancel: right to a few 2^-24 of the argument, no better.
      const Tolerance tolerance{.relative = 1e-7, .scale = 1};
      return Linear{.x = c.input(DType::f32, x),
                    .weight = c.input(DType::f32, identity),
                    .bias = {},
                    .residual = {},
                    .y = c.output(DType::f32, x.size(), tolerance),
                    .rows = kRows,
                    .inputs = kWidth,
                    .outputs = kWidth,
                    .gelu = true};
    });
  });
}

}  // namespace turboesm::conformance
