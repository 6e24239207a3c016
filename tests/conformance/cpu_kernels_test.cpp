// The CPU back end's kernels of every instruction set that this processor has, against plain loops. The other files run
// the widest ones alone.
#include <cmath>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "runtime/cpu/kernels.h"
#include "runtime/registry.h"
#include "tests/conformance/harness.h"
#include "tests/rope_table.h"

namespace turboesm::conformance {
namespace {

void add_linear(Harness& harness, DType dtype, uint32_t rows, uint32_t inputs, uint32_t outputs, bool epilogue) {
  harness.add(fmt::format("{} x {} x {}, {}", rows, inputs, outputs, name_of(dtype)), [&](Case& c) -> Operation {
    Rng& rng = harness.rng();
    const uint64_t count = uint64_t(rows) * outputs;
    return Linear{.x = c.input(dtype, rng.normals(uint64_t(rows) * inputs)),
                  .weight = c.input(dtype, rng.normals(uint64_t(outputs) * inputs, 1 / std::sqrt(float(inputs)))),
                  .bias = epilogue ? c.input(DType::f32, rng.normals(outputs)) : Tensor{},
                  .residual = epilogue ? c.input(DType::f32, rng.normals(count)) : Tensor{},
                  .y = c.output(DType::f32, count, rounded(DType::f32, count, sum_error(inputs), 1)),
                  .rows = rows,
                  .inputs = inputs,
                  .outputs = outputs,
                  .gelu = epilogue};
  });
}

void add_qkv_rope(Harness& harness, DType dtype, uint32_t tokens, uint32_t inputs, uint32_t heads, uint32_t head_dim) {
  harness.add(fmt::format("{} tokens, {} heads of {}, {}", tokens, heads, head_dim, name_of(dtype)), [&](Case& c) {
    Rng& rng = harness.rng();
    constexpr uint32_t kRows = 300;  // of the table
    const uint64_t outputs = uint64_t(3) * heads * head_dim, count = tokens * outputs;
    return Operation(QkvRope{.x = c.input(dtype, rng.normals(uint64_t(tokens) * inputs)),
                             .weight = c.input(dtype, rng.normals(outputs * inputs, 1 / std::sqrt(float(inputs)))),
                             .bias = c.input(DType::f32, rng.normals(outputs)),
                             .positions = c.input(rng.integers(tokens, 0, int32_t(kRows))),
                             .table = c.input(DType::f32, rope_table(kRows, head_dim)),
                             .qkv = c.output(dtype, count, rounded(dtype, count, sum_error(inputs) + 5e-7, 1)),
                             .tokens = tokens,
                             .inputs = inputs,
                             .heads = heads,
                             .head_dim = head_dim,
                             .table_rows = kRows,
                             .q_scale = 1 / std::sqrt(float(head_dim))});
  });
}

void add_attention(Harness& harness, DType dtype, uint32_t heads, uint32_t head_dim, const Packing& packing) {
  harness.add(fmt::format("{} tokens, {} heads of {}, {}", packing.tokens(), heads, head_dim, name_of(dtype)),
              [&](Case& c) -> Operation {
                Rng& rng = harness.rng();
                const uint64_t size = uint64_t(packing.tokens()) * heads * head_dim;
                return Attention{.q = c.input(dtype, rng.normals(size, 1 / std::sqrt(float(head_dim)))),
                                 .k = c.input(dtype, rng.normals(size)),
                                 .v = c.input(dtype, rng.normals(size)),
                                 .cu_seqlens = c.input(packing.cu_seqlens),
                                 .out = c.output(dtype, size, rounded(dtype, size, 3e-6)),
                                 .tokens = packing.tokens(),
                                 .sequences = packing.sequences(),
                                 .heads = heads,
                                 .head_dim = head_dim,
                                 .max_length = packing.longest};
              });
}

}  // namespace

TEST_CASE("the CPU kernels of every instruction set agree with plain loops", "[conformance]") {
  if (test_options().device != "cpu") return;  // the device under test is another
  const std::vector<const cpu::Kernels*> all = cpu::runnable_kernels();
  REQUIRE(!all.empty());
  CHECK(all.back()->name == std::string("baseline"));
  for (const cpu::Kernels* kernels : all) {
    DeviceOptions options;
    options.instruction_set = kernels->name;
    auto device = open_device("cpu", options).device;
    CHECK(device->info().driver == std::string(kernels->name) + " kernels");
    Harness harness(std::move(device), 7);
    for (const DType dtype : kFloatTypes) {
      for (const uint32_t rows : {1u, 5u, 13u, 29u, 440u})
        for (const uint32_t inputs : {2u, 34u, 64u, 530u, 544u})
          for (const uint32_t outputs : {33u, 130u})
            add_linear(harness, dtype, rows, inputs, outputs, (rows + inputs) % 2 != 0);
      for (const uint32_t head_dim : {8u, 24u, 64u, 128u}) {
        for (const uint32_t inputs : {66u, 96u}) add_qkv_rope(harness, dtype, 31, inputs, 3, head_dim);
        add_attention(harness, dtype, 2, head_dim, pack({1, 31, 0, 129, 260}));
      }
    }
    harness.finish();
  }
}

}  // namespace turboesm::conformance
