// Every kernel variant that an operation can ask for is compiled by the device's driver; nothing is run. Mesa's AMD
// driver does this for cards that the machine does not have.
#include <catch2/catch_test_macros.hpp>
#include <set>
#include <vector>

#include "runtime/device_choice.h"
#include "runtime/vulkan/addressed_buffer.h"
#include "runtime/vulkan/compile.h"
#include "tests/conformance/kv_data.h"
#include "tests/options.h"

namespace turboesm {
namespace {

constexpr uint32_t kTokens = 2048;  // the most; all operands lie in one buffer, for nothing is run
constexpr uint64_t kBufferBytes = uint64_t(64) << 20;
constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr uint32_t kHeadDims[] = {16, 24, 32, 64, 128};

// Builds operations whose operands are all at the start of one buffer.
class Builder {
 public:
  explicit Builder(Buffer& buffer) : buffer_(buffer) {}

  void add_all() {
    add_independent_of_model();
    for (const DType dtype : kDTypes) {
      add_embedding(dtype);
      for (const uint32_t rows : {1u, 2u, 8u, 16u, 147u, kTokens}) add_linears(dtype, rows);
      add_short_linears(dtype);
      for (const uint32_t head_dim : kHeadDims) add_attention(dtype, head_dim);
    }
    for (const conformance::NamedFormat& format : conformance::kv_formats()) {
      add_cache(format.format, 64, 1, 8192);
      if (!in_use(format.format)) continue;
      for (const uint32_t head_dim : kHeadDims) {
        add_cache(format.format, head_dim, 1, 64);
        add_cache(format.format, head_dim, 2, 8192);
      }
      for (const uint32_t head_dim : {64u, 128u}) add_cache(format.format, head_dim, 4, 64);
    }
    using enum KvScale;
    for (const uint32_t head_dim : {32u, 64u, 128u})
      for (const KvSide& side : {KvSide{.bits = {3, 0}, .scale_bits = 8, .scale = searched, .gaussian = true},
                                 KvSide{.bits = {4, 0}, .scale_bits = 16, .scale = corrected, .gaussian = true},
                                 KvSide{.bits = {4, 0}}, KvSide{.bits = {16, 0}}})
        add_many(side, head_dim);
    add_many({.segments = 2, .bits = {4, 2}, .scale_bits = 8, .scale = searched, .gaussian = true}, 64);
    add(Sample{f32(8 * 33), i32(20), i32(4), i32(4 * 512), f32(4), i32(8), i32(8), i32(12), i32(4), i32(4), 4, 33, 20,
               512});
  }

  const std::vector<Operation>& operations() const { return operations_; }

 private:
  Tensor tensor(DType dtype, uint64_t count) const { return {&buffer_, 0, count, dtype}; }
  Tensor f32(uint64_t count) const { return tensor(DType::f32, count); }
  Tensor i32(uint64_t count) const { return tensor(DType::i32, count); }
  void add(Operation operation) { operations_.push_back(std::move(operation)); }

  void add_independent_of_model() {
    const uint32_t length = 100, heads = 20, residues = length - 2;
    const uint64_t map = uint64_t(heads) * length * length;
    add(TokenDropout{i32(kTokens), i32(5), f32(4), kTokens, 4});
    add(PoolMean{f32(kTokens * 320), i32(5), f32(4 * 320), kTokens, 4, 320});
    add(ContactSums{f32(map), f32(heads * (length - 1)), heads, length});
    add(ContactAccumulate{f32(map), f32(heads * (length - 1)), f32(heads), f32(residues * residues), heads, length});
    add(Copy{f32(1001), f32(1001)});
    add(Copy{i32(4096), i32(4096)});
  }

  void add_embedding(DType dtype) {
    for (const Tensor scale : {Tensor{}, f32(4)})
      add(Embed{i32(kTokens), i32(5), scale, tensor(dtype, 33 * 320), f32(kTokens * 320), kTokens, 4, 33, 320});
    for (const uint32_t width : {322u, 1280u, 5120u})
      add(LayerNorm{f32(kTokens * width), f32(width), f32(width), tensor(dtype, kTokens * width), kTokens, width});
    add(Fill{tensor(dtype, 1000), 1.0f});
    add(RandomNormal{tensor(dtype, 1000), 1, 1.0f});
  }

  void add_linears(DType dtype, uint32_t rows) {
    struct Shape {
      uint32_t inputs, outputs;
    };
    for (const auto [inputs, outputs] : {Shape{320, 960}, Shape{480, 480}, Shape{1280, 5120}, Shape{5120, 1280}}) {
      const Tensor x = tensor(dtype, rows * inputs), weight = tensor(dtype, inputs * outputs), bias = f32(outputs);
      const Tensor y = tensor(dtype, rows * outputs), wide_y = f32(rows * outputs);
      add(Linear{x, weight, {}, {}, wide_y, rows, inputs, outputs, false});
      add(Linear{x, weight, bias, {}, y, rows, inputs, outputs, false});
      add(Linear{x, weight, bias, {}, y, rows, inputs, outputs, true});
      add(Linear{x, weight, bias, wide_y, wide_y, rows, inputs, outputs, false});
    }
    add(Linear{tensor(dtype, rows * 640), tensor(dtype, 33 * 640), f32(33), {}, f32(rows * 33), rows, 640, 33, false});
    add(Linear{tensor(dtype, rows * 66), tensor(dtype, 34 * 66), f32(34), {}, f32(rows * 34), rows, 66, 34, false});
  }

  // Sums of few products, enough of them to fill a device.
  void add_short_linears(DType dtype) {
    for (const uint32_t inputs : {16u, 32u, 64u, 128u})
      add(Linear{tensor(dtype, kTokens * inputs),
                 tensor(dtype, kTokens * inputs),
                 {},
                 {},
                 f32(kTokens * kTokens),
                 kTokens,
                 inputs,
                 kTokens,
                 false});
  }

  void add_qkv_rope(DType dtype, uint32_t tokens, uint32_t heads, uint32_t head_dim) {
    const uint32_t inputs = 1280, outputs = 3 * heads * head_dim;
    for (const DType out : {dtype, DType::f16})
      add(QkvRope{tensor(dtype, tokens * inputs), tensor(dtype, outputs * inputs), f32(outputs), i32(tokens),
                  f32(1024 * head_dim), tensor(out, tokens * outputs), tokens, inputs, heads, head_dim, 1024});
  }

  void add_attention(DType dtype, uint32_t head_dim) {
    const uint32_t heads = 20, length = 512;
    const Tensor values = tensor(dtype, uint64_t(kTokens) * heads * head_dim);
    for (const uint32_t tokens : {2u, 16u, 147u, kTokens}) add_qkv_rope(dtype, tokens, 480 / head_dim, head_dim);
    for (const uint32_t longest : {1u, 70u, kTokens})
      add(Attention{values, values, values, i32(5), values, kTokens, 4, heads, head_dim, longest});
    add(AttentionMaps{values, values, f32(uint64_t(heads) * length * length), kTokens, 0, length, heads, head_dim});
  }

  // The baselines, and a format with each part that there is.
  static bool in_use(const KvFormat& f) {
    const bool plain = f.k.scale == KvScale::searched && f.k.bits[0] == 3 && f.v.bits[0] == 4;
    return f.k.bits[0] >= 8 || plain || f.k.segments == 2;
  }

  // Many tokens at once.
  void add_many(KvSide side, uint32_t head_dim) {
    const uint32_t heads = 2, width = heads * head_dim, tokens = 64;
    const bool copied = side.bits[0] == 16;
    const Tensor values = tensor(DType::f16, tokens * width), mean = copied ? Tensor{} : f32(width);
    const Tensor square = copied ? Tensor{} : f32(width * head_dim), book = f32(heads * 64);
    const KvFormat format{side, side};
    add(KvAppend{.k = values,
                 .v = values,
                 .appends = i32(3),
                 .table = f32(tokens * head_dim),
                 .k_side = {mean, mean, square, book, {}},
                 .v_side = {mean, {}, square, book, {}},
                 .cache = i32(heads * (tokens / KV_BLOCK) * format.block_words(head_dim)),
                 .format = format,
                 .tokens = tokens,
                 .sequences = 1,
                 .heads = heads,
                 .head_dim = head_dim,
                 .capacity = tokens,
                 .table_rows = tokens,
                 .max_count = tokens});
  }

  // `capacity` decides whether workgroups share a sequence.
  void add_cache(const KvFormat& format, uint32_t head_dim, uint32_t queries, uint32_t capacity) {
    const uint32_t heads = 2, width = heads * head_dim;
    const Tensor rows = f32(queries * width), square = f32(heads * head_dim * head_dim), mean = f32(width);
    const Tensor values = tensor(queries == 1 ? DType::f16 : DType::f32, 4 * width), table = f32(capacity * head_dim);
    const Tensor k_book = f32(heads * 64), v_book = f32(heads * 64);
    const Tensor cache = i32(uint64_t(heads) * (capacity / KV_BLOCK) * format.block_words(head_dim));
    add(KvAppend{values,
                 values,
                 i32(3),
                 table,
                 {mean, mean, square, k_book, square},
                 {mean, {}, square, v_book, {}},
                 cache,
                 format,
                 2,
                 1,
                 heads,
                 head_dim,
                 capacity,
                 capacity});
    add(KvQuery{values, square, square, mean, rows, rows, values, queries, heads, head_dim});
    const Tensor bias = queries == 1 ? Tensor{} : f32(uint64_t(queries) * heads * capacity);
    add(KvAttention{rows, rows, bias, cache, i32(1), k_book, v_book, square, mean, values, format, 1, queries, heads,
                    head_dim, capacity});
  }

  Buffer& buffer_;
  std::vector<Operation> operations_;
};

// Without validation: a distribution's layers may be older than the extensions of its drivers. The conformance tests
// run with it.
void compile_everything(bool matrix_cores) {
  const DeviceSpec device = parse_device_spec(test_options().device);
  REQUIRE(device.backend == "vulkan");
  vulkan::AddressedBuffer buffer(kBufferBytes, MemoryLabel::activations, 4096);
  Builder builder(buffer);
  builder.add_all();

  std::set<size_t> kinds;
  for (const Operation& operation : builder.operations()) kinds.insert(operation.index());
  REQUIRE(kinds.size() == std::variant_size_v<Operation>);
  DeviceOptions options;
  options.matrix_cores = matrix_cores;
  CHECK_NOTHROW(vulkan::compile(device.index, options, builder.operations()));
}

}  // namespace

TEST_CASE("every operation compiles in every variant", "[pipelines]") { compile_everything(true); }

TEST_CASE("every operation compiles without matrix cores", "[pipelines]") { compile_everything(false); }

}  // namespace turboesm
