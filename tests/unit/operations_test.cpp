#include "runtime/operations.h"

#include <cmath>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "runtime/backend.h"
#include "runtime/error.h"

namespace turboesm {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

// A buffer of a size, without memory: check() looks at nothing else.
class SizedBuffer final : public Buffer {
 public:
  explicit SizedBuffer(uint64_t size) : Buffer(size, MemoryLabel::activations) {}
};

SizedBuffer& buffer() {
  static SizedBuffer large(uint64_t(1) << 40);
  return large;
}

Tensor tensor(uint64_t count, DType dtype = DType::f32) { return {&buffer(), 0, count, dtype}; }

Linear linear(DType in, DType out, uint32_t rows, uint32_t inputs, uint32_t outputs) {
  return {.x = tensor(uint64_t(rows) * inputs, in),
          .weight = tensor(uint64_t(outputs) * inputs, in),
          .bias = {},
          .residual = {},
          .y = tensor(uint64_t(rows) * outputs, out),
          .rows = rows,
          .inputs = inputs,
          .outputs = outputs};
}

QkvRope qkv_rope(DType in, DType out, uint32_t head_dim) {
  const uint32_t tokens = 10, inputs = 6, heads = 2, outputs = 3 * heads * head_dim;
  return {.x = tensor(tokens * inputs, in),
          .weight = tensor(outputs * inputs, in),
          .bias = tensor(outputs),
          .positions = tensor(tokens, DType::i32),
          .table = tensor(100 * head_dim),
          .qkv = tensor(tokens * outputs, out),
          .tokens = tokens,
          .inputs = inputs,
          .heads = heads,
          .head_dim = head_dim,
          .table_rows = 100};
}

Attention attention(DType dtype, uint32_t head_dim) {
  const Tensor each = tensor(10 * 2 * head_dim, dtype);
  return {.q = each,
          .k = each,
          .v = each,
          .cu_seqlens = tensor(2, DType::i32),
          .out = each,
          .tokens = 10,
          .sequences = 1,
          .heads = 2,
          .head_dim = head_dim,
          .max_length = 10,
          .score_pairs = 100};
}

LayerNorm layer_norm(uint32_t rows, uint32_t width) {
  const Tensor each = tensor(uint64_t(rows) * width);
  return {.x = each, .weight = tensor(width), .bias = tensor(width), .y = each, .rows = rows, .width = width};
}

// One buffer serves all operands.
KvAppend kv_append(KvFormat format, uint32_t head_dim) {
  const KvSideTensors side{
      .mean = {}, .position_mean = {}, .transform = {}, .codebook = tensor(1 << 12), .projection = tensor(1 << 16)};
  return {.k = tensor(1 << 12),
          .v = tensor(1 << 12),
          .appends = tensor(6, DType::i32),
          .table = tensor(1 << 16),
          .k_side = side,
          .v_side = side,
          .cache = tensor(1 << 24, DType::i32),
          .format = format,
          .tokens = 3,
          .sequences = 2,
          .heads = 2,
          .head_dim = head_dim,
          .capacity = 64,
          .table_rows = 64,
          .max_count = 2};
}

KvAttention kv_attention(KvFormat format, uint32_t head_dim) {
  return {.q = tensor(1 << 14),
          .projected = tensor(1 << 14),
          .bias = {},
          .cache = tensor(1 << 24, DType::i32),
          .lengths = tensor(2, DType::i32),
          .k_codebook = tensor(1 << 12),
          .v_codebook = tensor(1 << 12),
          .transform = {},
          .mean = {},
          .out = tensor(1 << 14),
          .format = format,
          .sequences = 2,
          .queries = 2,
          .heads = 2,
          .head_dim = head_dim,
          .capacity = 64};
}

Sample sample() {
  const Tensor integers = tensor(1 << 12, DType::i32);
  return {.logits = tensor(2 * 2 * 33),
          .candidates = integers,
          .limits = integers,
          .tokens = integers,
          .log_probability = tensor(2),
          .ids = integers,
          .positions = integers,
          .appends = integers,
          .lengths = integers,
          .active = integers,
          .sequences = 2,
          .vocab = 33,
          .candidate_count = 20,
          .capacity = 64};
}

Copy copy(const Tensor& source, const Tensor& destination) { return {.source = source, .destination = destination}; }

// check() throws an Error of this kind whose message has both parts.
void check_refused(const Operation& operation, const std::string& part, const std::string& other = "",
                   ErrorKind kind = ErrorKind::usage) {
  CHECK_THROWS_MATCHES(check(operation), Error, MessageMatches(ContainsSubstring(part) && ContainsSubstring(other)));
  try {
    check(operation);
  } catch (const Error& error) {
    CHECK(error.kind() == kind);
    CHECK_THAT(error.what(), ContainsSubstring(fmt::format("[{}]", name_of(operation))));
  }
}

}  // namespace

TEST_CASE("operations have names", "[unit]") {
  CHECK(name_of(Operation(TokenDropout{})) == "token_dropout");
  CHECK(name_of(Operation(linear(DType::f32, DType::f32, 1, 2, 2))) == "linear");
  CHECK(name_of(Operation(ContactAccumulate{})) == "contact_accumulate");
}

TEST_CASE("check accepts operands that fit", "[unit]") {
  CHECK_NOTHROW(check(linear(DType::f32, DType::f32, 3, 10, 33)));
  CHECK_NOTHROW(check(linear(DType::f16, DType::f32, 3, 10, 33)));
  CHECK_NOTHROW(check(linear(DType::bf16, DType::bf16, 3, 10, 34)));
  CHECK_NOTHROW(check(linear(DType::f32, DType::f32, 0, 10, 4)));
  CHECK_NOTHROW(check(layer_norm(5, 6)));
  CHECK_NOTHROW(check(qkv_rope(DType::f32, DType::f16, 8)));
  CHECK_NOTHROW(check(qkv_rope(DType::bf16, DType::f16, 24)));
  for (const uint32_t head_dim : {8u, 16u, 24u, 40u, 128u, 256u}) CHECK_NOTHROW(check(attention(DType::f16, head_dim)));
  CHECK_NOTHROW(check(Fill{.out = tensor(7), .value = 1}));
  CHECK_NOTHROW(check(copy(tensor(6, DType::bf16), tensor(6, DType::bf16))));
}

TEST_CASE("check refuses operands by name", "[unit]") {
  LayerNorm a = layer_norm(4, 16);
  SECTION("missing") {
    a.bias = {};
    check_refused(a, "bias", "missing");
  }
  SECTION("of the wrong type") {
    a.x.dtype = DType::bf16;
    check_refused(a, "x is bf16", "f32");
    a.x.dtype = DType::i32;
    check_refused(a, "x is i32");
  }
  SECTION("too small") {
    a.y.count = 63;
    check_refused(a, "y has 63", "64");
  }
  SECTION("misaligned") {
    a.weight.offset = 8;
    check_refused(a, "weight", "byte 8");
  }
  SECTION("past the end of the buffer") {
    SizedBuffer small(256 + 12);
    a.x = {&small, 0, 64, DType::f32};
    CHECK_NOTHROW(check(a));
    a.x.offset = 16;
    check_refused(a, "x ends at byte 272", "268");
    a.x.offset = uint64_t(1) << 63;
    check_refused(a, "x");
    a.x = {&small, 0, ~uint64_t(0) / 2, DType::f32};  // its size in bytes overflows
    check_refused(a, "x");
  }
  SECTION("too many for 32-bit indices: a smaller batch helps") {
    check_refused(layer_norm(1 << 24, 128), "x", "2147483648", ErrorKind::out_of_memory);
  }
  SECTION("optional ones too, when there") {
    Linear b = linear(DType::f32, DType::f32, 2, 4, 6);
    b.bias = tensor(5);
    check_refused(b, "bias has 5", "6");
    b.bias = tensor(6, DType::f16);
    check_refused(b, "bias is f16");
  }
}

TEST_CASE("check refuses sizes and types that do not go together", "[unit]") {
  check_refused(layer_norm(4, 15), "width");
  check_refused(layer_norm(4, 0), "width");
  check_refused(linear(DType::f32, DType::f32, 3, 9, 4), "inputs");
  check_refused(linear(DType::f32, DType::f32, 3, 0, 4), "inputs");
  check_refused(linear(DType::f16, DType::f16, 3, 8, 33), "outputs");
  Linear mixed = linear(DType::f16, DType::f32, 3, 8, 4);
  mixed.weight.dtype = DType::bf16;
  check_refused(mixed, "one dtype");
  for (const uint32_t head_dim : {0u, 4u, 20u, 264u}) {
    check_refused(attention(DType::f16, head_dim), "head_dim");
    check_refused(qkv_rope(DType::f16, DType::f16, head_dim), "head_dim");
  }
  QkvRope joint = qkv_rope(DType::f16, DType::f32, 16);
  joint.weight.dtype = DType::f32;
  check_refused(joint, "one dtype");
  joint = qkv_rope(DType::f16, DType::f32, 16);
  joint.inputs = 5;
  check_refused(joint, "inputs");
  joint = qkv_rope(DType::f16, DType::f32, 16);
  joint.heads = 1 << 16;
  check_refused(joint, "2^20");
  joint = qkv_rope(DType::f16, DType::f32, 16);
  joint.table_rows = 101;
  check_refused(joint, "table has 1600", "1616");
  joint = qkv_rope(DType::f16, DType::f32, 16);
  joint.qkv.count -= 1;
  check_refused(joint, "qkv has 959", "960");
  Attention crowded = attention(DType::f32, 8);
  crowded.sequences = 65536;
  check_refused(crowded, "65535");
  check_refused(AttentionMaps{.q = tensor(160),
                              .k = tensor(160),
                              .out = tensor(200),
                              .tokens = 10,
                              .begin = 5,
                              .length = 6,
                              .heads = 2,
                              .head_dim = 8},
                "sequence");
  for (const uint32_t length : {0u, 1u, 2u})
    check_refused(ContactSums{.maps = tensor(100), .sums = tensor(100), .heads = 1, .length = length}, "residue");
  check_refused(Fill{.out = tensor(7, DType::f16), .value = 1}, "even");
  check_refused(RandomNormal{.out = tensor(7)}, "even");
  check_refused(copy(tensor(4), tensor(5)), "one count");
  check_refused(copy(tensor(4), tensor(4, DType::i32)), "one dtype");
  check_refused(copy(tensor(3, DType::f16), tensor(3, DType::f16)), "multiple of 4");
}

TEST_CASE("check accepts every format of a cache", "[unit]") {
  using enum KvScale;
  const KvSide exact{.bits = {16, 0}}, integers{.bits = {8, 0}, .scale_bits = 8, .scale = absmax};
  const KvSide codes{.bits = {3, 0}, .scale_bits = 16, .scale = searched, .qjl = true};
  const KvSide split{.segments = 2, .bits = {4, 3}, .scale_bits = 8, .scale = norm}, bare{.bits = {1, 0}};
  for (const KvSide& k : {exact, integers, codes, split, bare})
    for (const KvSide& v : {exact, integers, split, bare})
      for (const uint32_t head_dim : {8u, 24u, 64u, 256u}) {
        CHECK_NOTHROW(check(kv_append({k, v}, head_dim)));
        CHECK_NOTHROW(check(kv_attention({k, v}, head_dim)));
      }
}

TEST_CASE("check refuses caches and formats that do not exist", "[unit]") {
  using enum KvScale;
  const KvSide exact{.bits = {16, 0}};
  const auto refuse = [&](const KvSide& side, const std::string& rule) {
    check_refused(kv_append({side, exact}, 64), rule);
    check_refused(kv_append({exact, side}, 64), rule);
    check_refused(kv_attention({side, exact}, 64), rule);
  };
  for (const uint32_t bits : {0u, 5u, 7u, 12u, 33u}) refuse({.bits = {bits, 0}}, "bits");
  refuse({.segments = 0, .bits = {3, 0}}, "segments");
  refuse({.segments = 3, .bits = {3, 3}}, "segments");
  refuse({.segments = 2, .bits = {3, 0}}, "bits");
  refuse({.segments = 2, .bits = {16, 16}}, "two segments");
  refuse({.segments = 2, .bits = {4, 8}}, "two segments");
  refuse({.bits = {3, 0}, .scale_bits = 12, .scale = norm}, "0, 8 or 16");
  refuse({.bits = {3, 0}, .scale_bits = 0, .scale = norm}, "scale_bits");
  refuse({.bits = {3, 0}, .scale_bits = 16, .scale = none}, "scale_bits");
  refuse({.bits = {8, 0}, .scale_bits = 16, .scale = norm}, "absmax");
  refuse({.bits = {8, 0}}, "absmax");
  refuse({.bits = {16, 0}, .scale_bits = 16, .scale = absmax}, "no scale");
  refuse({.bits = {16, 0}, .qjl = true}, "qjl");
  check_refused(kv_append({exact, {.bits = {3, 0}, .qjl = true}}, 64), "K only");

  for (const uint32_t head_dim : {0u, 4u, 20u, 264u}) check_refused(kv_append({exact, exact}, head_dim), "head_dim");
  for (const uint32_t capacity : {0u, 31u, 33u}) {
    KvAppend append = kv_append({exact, exact}, 64);
    append.capacity = capacity;
    check_refused(append, "capacity");
    KvAttention attention = kv_attention({exact, exact}, 64);
    attention.capacity = capacity;
    check_refused(attention, "capacity");
  }
  KvAppend append = kv_append({exact, exact}, 64);
  append.table_rows = 1000;
  append.table = {};
  CHECK_NOTHROW(check(append));  // no position_mean, no table
  append.k_side.position_mean = tensor(128);
  check_refused(append, "table");
  append = kv_append({exact, exact}, 64);
  append.v_side.position_mean = tensor(128);
  check_refused(append, "K only");
  append = kv_append({exact, exact}, 64);
  append.v.dtype = DType::f16;
  check_refused(append, "one dtype");
  append = kv_append({exact, exact}, 64);
  append.max_count = 0;
  check_refused(append, "max_count");
  append = kv_append({exact, exact}, 64);
  append.cache.count = 16383;
  check_refused(append, "cache has 16383", "16384");
  append.cache = tensor(uint64_t(1) << 33, DType::i32);
  append.capacity = 1 << 25;
  check_refused(append, "cache", "smaller batch", ErrorKind::out_of_memory);

  for (const uint32_t queries : {0u, 5u}) {
    KvAttention attention = kv_attention({exact, exact}, 64);
    attention.queries = queries;
    check_refused(attention, "1 to 4 queries");
  }
  KvAttention attention = kv_attention({{.bits = {3, 0}}, exact}, 64);
  attention.k_codebook = {};
  check_refused(attention, "k_codebook", "missing");
  attention.k_codebook = tensor(14);
  check_refused(attention, "k_codebook has 14", "15");
  attention.k_codebook = tensor(15);
  CHECK_NOTHROW(check(attention));
  attention.k_codebook = tensor(16);  // more than one, so one for each head
  check_refused(attention, "k_codebook has 16", "30");
  attention.sequences = 65536;
  check_refused(attention, "65535");
  KvQuery query;
  query.heads = 65536, query.head_dim = 8;
  check_refused(query, "65535");
}

TEST_CASE("check refuses what cannot be sampled from", "[unit]") {
  CHECK_NOTHROW(check(sample()));
  const auto refuse = [](auto change, const std::string& rule) {
    Sample a = sample();
    change(a);
    check_refused(a, rule);
  };
  for (const uint32_t count : {0u, 65u}) refuse([=](Sample& a) { a.candidate_count = count; }, "candidates");
  for (const float top_p : {0.0f, -0.5f, 1.01f, NAN}) refuse([=](Sample& a) { a.top_p = top_p; }, "top_p");
  for (const float temperature : {-1.0f, INFINITY, NAN})
    refuse([=](Sample& a) { a.temperature = temperature; }, "temperature");
  refuse([](Sample& a) { a.vocab = 0; }, "vocab");
  refuse([](Sample& a) { a.capacity = 0; }, "capacity");
  refuse([](Sample& a) { a.sequences = 65536; }, "65535");
  Sample greedy = sample();
  greedy.temperature = 0;
  CHECK_NOTHROW(check(greedy));
}

TEST_CASE("work is counted in operations and bytes", "[unit]") {
  const Linear a = linear(DType::f16, DType::f32, 3, 10, 7);
  CHECK(flops(a) == 2.0 * 3 * 10 * 7);
  CHECK(bytes(a) == 2 * 30 + 2 * 70 + 4 * 21);
  Linear with_residual = a;
  with_residual.residual = with_residual.y;
  CHECK(bytes(with_residual) == bytes(a) + 4 * 21);
  const QkvRope joint = qkv_rope(DType::f16, DType::bf16, 8);
  CHECK(flops(joint) == 2.0 * 10 * 6 * 48);
  CHECK(bytes(joint) == 2 * 10 * 6 + 2 * 48 * 6 + 4 * 48 + 4 * 10 + 4 * 100 * 8 + 2 * 10 * 48);
  CHECK(flops(attention(DType::f32, 16)) == 4.0 * 100 * 2 * 16);
  CHECK(bytes(copy(tensor(100), tensor(100))) == 800);
  // The logits of a contact map are read and written.
  CHECK(
      bytes(ContactAccumulate{
          .maps = tensor(50), .sums = tensor(8), .weight = tensor(2), .logits = tensor(9), .heads = 2, .length = 5}) ==
      4 * (50 + 8 + 2 + 2 * 9));
}

}  // namespace turboesm
