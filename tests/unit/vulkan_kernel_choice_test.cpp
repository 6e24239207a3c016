// Which kernel a product, attention or attention over a cache takes, by what the device can do, by types, shape and
// format.
#include <string_view>

#include <catch2/catch_test_macros.hpp>

#include "model/kv_codec.h"
#include "runtime/vulkan/lower.h"

namespace turboesm::vulkan {
namespace {

// Of an f16 product without an epilogue, in f32: nothing is run, so its tensors have no memory.
std::string_view shader_for(const Traits& traits, uint32_t rows, uint32_t inputs, uint32_t outputs) {
  const Tensor x{.count = uint64_t(rows) * inputs, .dtype = DType::f16};
  const Tensor weight{.count = uint64_t(outputs) * inputs, .dtype = DType::f16};
  const Tensor y{.count = uint64_t(rows) * outputs};
  return lower(Linear{x, weight, {}, {}, y, rows, inputs, outputs}, traits).shader;
}

// Of attention with q, k and v of one type and results of another.
std::string_view shader_for(const Traits& traits, DType operands, DType results) {
  constexpr uint32_t kTokens = 16384, kHeads = 20, kHeadDim = 64;
  const Tensor q{.count = uint64_t(kTokens) * kHeads * kHeadDim, .dtype = operands};
  const Tensor out{.count = q.count, .dtype = results};
  return lower(Attention{q, q, q, {}, out, kTokens, 16, kHeads, kHeadDim, 1024}, traits).shader;
}

// Of attention over a cache of this preset.
std::string_view shader_for(std::string_view preset, uint32_t head_dim, bool stable_sums = false) {
  KvAttention attention;
  attention.format = parse_kv_preset(preset).format();
  attention.sequences = 64, attention.heads = 20, attention.head_dim = head_dim, attention.capacity = 1024;
  return lower(attention, Traits{.compute_units = 132, .stable_sums = stable_sums, .device_class = "nvidia"}).shader;
}

}  // namespace

TEST_CASE("attention over a cache takes rows of codes where it can", "[unit]") {
  for (const std::string_view preset : {"turbo", "turbo-s", "turbo-xs", "turbo-l", "wht3", "turboesm"}) {
    INFO(preset);
    CHECK(shader_for(preset, 64).starts_with("kv_attention_rows"));
  }
  for (const std::string_view preset : {"int8", "f16"}) {
    INFO(preset);
    CHECK_FALSE(shader_for(preset, 64).starts_with("kv_attention_rows"));
  }
  CHECK_FALSE(shader_for("turbo", 24).starts_with("kv_attention_rows"));  // segments of 12 values, no whole units
  CHECK_FALSE(shader_for("turbo", 64, /*stable_sums=*/true).starts_with("kv_attention_rows"));
}

TEST_CASE("attention takes the kernel of a device's operations on matrices, whatever the 16-bit types", "[unit]") {
  Traits able{.max_shared_bytes = 49152, .compute_units = 132, .device_class = "nvidia"};
  able.matrix_f16 = able.matrix_bf16 = able.matrix2 = true;
  CHECK(shader_for(able, DType::f16, DType::f16) == "attention_coopmat2");
  CHECK(shader_for(able, DType::f16, DType::bf16) == "attention_coopmat2");  // as models in bf16 have it
  CHECK(shader_for(able, DType::bf16, DType::bf16) == "attention_coopmat2_bf16");
  able.matrix2 = false;
  CHECK(shader_for(able, DType::f16, DType::bf16) == "attention_coopmat");
}

TEST_CASE("products of few inputs take the kernel for them where it can and there are tiles enough", "[unit]") {
  const Traits able{.max_shared_bytes = 49152, .compute_units = 132, .device_class = "nvidia", .matrix_f16 = true};
  for (const uint32_t inputs : {16u, 32u, 64u}) CHECK(shader_for(able, 1280, inputs, 8192) == "linear_short_coopmat");
  CHECK(shader_for(able, 1280, 24, 8192) == "linear_coopmat");  // not whole matrices
  CHECK(shader_for(able, 1280, 80, 8192) == "linear_coopmat");
  CHECK(shader_for(able, 1280, 64, 8190) == "linear_coopmat");        // results not aligned
  CHECK(shader_for(able, 127, 64, 32768) == "linear_coopmat");        // fewer rows than a tile has
  CHECK(shader_for(able, 1280, 64, 1024) != "linear_short_coopmat");  // 80 tiles for 132 units

  Traits small = able, plain = able, narrow = able;
  small.max_shared_bytes = 32768;
  CHECK(shader_for(small, 1280, 64, 8192) == "linear_coopmat");
  CHECK(shader_for(small, 1280, 16, 8192) == "linear_short_coopmat");
  narrow.max_workgroup_invocations = 64;
  CHECK(shader_for(narrow, 1280, 64, 8192) == "linear");
  plain.matrix_f16 = false;
  CHECK(shader_for(plain, 1280, 64, 8192) == "linear");
}

TEST_CASE("products of many rows take the kernel for them where it can", "[unit]") {
  const Traits able{.max_shared_bytes = 49152, .compute_units = 132, .device_class = "nvidia", .matrix_f16 = true};
  CHECK(shader_for(able, 16384, 1280, 5120) == "linear_many_coopmat");
  CHECK(shader_for(able, 16383, 1280, 5124) == "linear_many_coopmat");  // the last tiles overlap those before
  CHECK(shader_for(able, 16384, 1288, 5120) == "linear_coopmat");       // not whole steps
  CHECK(shader_for(able, 16384, 1280, 5122) == "linear_coopmat");       // results not aligned
  CHECK(shader_for(able, 16384, 1280, 124) == "linear_coopmat");        // fewer outputs than a tile has
  CHECK(shader_for(able, 120, 1280, 65536) == "linear_coopmat");        // fewer rows
  Traits small = able;
  small.max_shared_bytes = 32768;
  CHECK(shader_for(small, 16384, 1280, 5120) == "linear_coopmat");
}

}  // namespace turboesm::vulkan
