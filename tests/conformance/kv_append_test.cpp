#include <algorithm>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "tests/conformance/kv_data.h"
#include "tests/rope_table.h"

namespace turboesm::conformance {
namespace {

// New tokens of one sequence.
struct Append {
  uint32_t position, count;
};

// What values go through before they are quantized.
struct Centring {
  bool mean = false, position_mean = false, transform = false;
  bool shared = false;  // one transform and one codebook for all heads
};

constexpr uint32_t kPositions[] = {0, 1, 5, 31, 32, 33, 63, 77};
constexpr uint32_t kSlack = 20;  // of max_count over what comes, at most
constexpr uint32_t kCounts[] = {0, 1, 5, 32, 33, 64, 100};

// Values of all sizes, a token of zeros among them.
std::vector<float> random_tokens(Rng& rng, uint32_t tokens, uint64_t width) {
  std::vector<float> values = rng.normals(tokens * width, rng.pick({1.0f, 1.0f, 0.03f, 40.0f}));
  if (tokens > 1) std::fill_n(values.begin() + int64_t(rng.below(tokens) * width), width, 0.0f);
  return values;
}

KvSideTensors random_side(Case& c, Rng& rng, const KvSide& side, Centring centring, uint32_t heads, uint32_t d) {
  KvSideTensors t;
  const uint32_t copies = centring.shared ? 1 : heads;
  if (centring.mean) t.mean = c.input(DType::f32, rng.normals(uint64_t(heads) * d, 0.5f));
  if (centring.position_mean) t.position_mean = c.input(DType::f32, rng.normals(uint64_t(heads) * d, 0.5f));
  if (centring.transform) t.transform = c.input(DType::f32, random_matrices(rng, copies, d));
  if (side.has_codebook()) t.codebook = c.input(DType::f32, random_codebook(rng, side, copies));
  if (side.qjl) t.projection = c.input(DType::f32, rng.normals(uint64_t(d) * d));
  return t;
}

void add_append(Harness& harness, const NamedFormat& format, DType dtype, uint32_t heads, uint32_t head_dim,
                const std::vector<Append>& appends, Centring k_centring, Centring v_centring) {
  Rng& rng = harness.rng();
  uint32_t tokens = rng.below(3), end = 0, longest = 0;  // some rows of k and v are nobody's
  std::vector<int32_t> rows;
  std::string what = fmt::format("{}, {} heads of {}, k{}{}{}, v{}{}, tokens", format.name, heads, head_dim,
                                 k_centring.mean ? " mean" : "", k_centring.position_mean ? " position mean" : "",
                                 k_centring.transform ? " transform" : "", v_centring.mean ? " mean" : "",
                                 v_centring.transform ? " transform" : "");
  for (const Append& append : appends) {
    rows.insert(rows.end(), {int32_t(tokens), int32_t(append.position), int32_t(append.count)});
    tokens += append.count;
    end = std::max(end, append.position + append.count);
    longest = std::max(longest, append.count);
    what += fmt::format(" {}+{}", append.position, append.count);
  }
  // Many f16 tokens may take a way that packs other bits: kv_append_many_test.cpp.
  const auto may_differ = [&](const KvSide& side) { return side.has_codebook() && side.scale == KvScale::none; };
  const bool is_whole = head_dim == 32 || head_dim == 64 || head_dim == 128;
  if (dtype == DType::f16 && longest + kSlack >= KV_BLOCK && is_whole &&
      (may_differ(format.format.k) || may_differ(format.format.v)))
    dtype = DType::bf16;
  harness.add(what, [&](Case& c) -> Operation {
    const uint32_t capacity =
        (end + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK + KV_BLOCK * rng.below(2) + KV_BLOCK * (end == 0);
    const uint32_t sequences = uint32_t(appends.size()), table_rows = std::max(1u, end) + rng.below(3);
    const uint64_t width = uint64_t(heads) * head_dim;
    const uint64_t words = sequences * heads * uint64_t(capacity / KV_BLOCK) * format.format.block_words(head_dim);
    KvAppend a{.k = c.input(dtype, random_tokens(rng, tokens, width)),
               .v = c.input(dtype, random_tokens(rng, tokens, width)),
               .appends = c.input(rows),
               .table = {},
               .k_side = random_side(c, rng, format.format.k, k_centring, heads, head_dim),
               .v_side = random_side(c, rng, format.format.v, v_centring, heads, head_dim),
               .cache = c.in_out(random_words(rng, words)),
               .format = format.format,
               .tokens = tokens,
               .sequences = sequences,
               .heads = heads,
               .head_dim = head_dim,
               .capacity = capacity,
               .table_rows = table_rows,
               .max_count = std::max(1u, longest) + rng.pick({0u, 0u, 1u, kSlack})};
    if (k_centring.position_mean) a.table = c.input(DType::f32, rope_table(table_rows, head_dim));
    return a;
  });
}

Centring random_centring(Rng& rng, bool is_k) {
  return {.mean = rng.coin(), .position_mean = is_k && rng.coin(), .transform = rng.coin(), .shared = rng.coin()};
}

}  // namespace

TEST_CASE("kv_append packs the oracle's bits", "[conformance]") {
  conform(50, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    const auto random_append = [&](uint32_t count) { return Append{rng.pick(kPositions), count}; };
    // A decoding step, a few tokens, and longer runs: with f16 and many tokens perhaps by another kernel.
    const auto add = [&](const NamedFormat& format, DType dtype, uint32_t head_dim, Centring k, Centring v) {
      const uint32_t heads = rng.pick({1u, 2u, 3u});
      add_append(harness, format, dtype, heads, head_dim,
                 {random_append(1), random_append(rng.below(2)), random_append(1)}, k, v);
      add_append(harness, format, dtype, heads, head_dim, {random_append(5), random_append(rng.pick({1u, 7u, 9u}))}, k,
                 v);
      add_append(harness, format, dtype, heads, head_dim, {random_append(rng.pick({32u, 33u, 64u, 100u}))}, k, v);
    };
    for (const FormatCase& each : format_cases(harness, true))
      for (const uint32_t head_dim : each.head_dims)
        add(each.format, rng.pick(kFloatTypes), head_dim, random_centring(rng, true), random_centring(rng, false));

    const Centring all{.mean = true, .position_mean = true, .transform = true};
    const Centring all_of_v{.mean = true, .transform = true};
    const NamedFormat& ours = kv_format("4|3 and 4|2 bits searched, 8-bit scales");
    const NamedFormat& widest = kv_format("3|2 bits with QJL, 4|3 bits");
    for (const uint32_t head_dim : kHeadDims) add(ours, DType::f32, head_dim, all, all_of_v);
    for (const uint32_t head_dim : kOtherHeadDims) add(widest, DType::f32, head_dim, all, all_of_v);
    // Positions and counts one by one.
    for (const uint32_t position : kPositions)
      add_append(harness, ours, DType::f32, 2, 16, {{position, rng.pick(kCounts)}, {position, 1}}, all, all_of_v);
    for (const NamedFormat& format : {ours, widest})
      for (const uint32_t count : kCounts)
        add_append(harness, format, DType::f16, 2, 24, {{rng.pick(kPositions), count}}, all, all_of_v);
    for (const DType dtype : kFloatTypes)
      add_append(harness, widest, dtype, 20, 16, {{3, 30}, {0, 0}, {64, 64}, {1, 2}}, all, all_of_v);
    add_append(harness, ours, DType::f32, 2, 16, {{0, 0}, {0, 0}}, all, all_of_v);
    for (const uint32_t head_dim : {32u, 64u, 128u})
      add_append(harness, kv_format("f16"), DType::f16, 3, head_dim, {{0, 70}, {37, 0}, {17, 133}}, {}, {});
  });
}

// Tokens that come one at a time leave the bits that they leave when they come at once.
TEST_CASE("kv_append does not depend on how the tokens come", "[conformance]") {
  const auto device = open_device_under_test();
  Rng rng(51);
  constexpr uint32_t kTokens = 70, kHeads = 3, kHeadDim = 24, kCapacity = 96;
  for (const char* name : {"f16", "int8", "3 bits with QJL and no scales", "3|2 bits with QJL, 4|3 bits",
                           "4|3 and 4|2 bits searched, 8-bit scales"}) {
    const NamedFormat& format = kv_format(name);
    const uint64_t size = uint64_t(kTokens) * kHeads * kHeadDim;
    const uint64_t words = uint64_t(kHeads) * (kCapacity / KV_BLOCK) * format.format.block_words(kHeadDim);
    DeviceOperands operands(*device, 8 * size + 4 * words + 65536);
    KvAppend a;
    a.k = operands.upload(rng.normals(size));
    a.v = operands.upload(rng.normals(size));
    a.appends = operands.place(DType::i32, 3);
    a.cache = operands.place(DType::i32, words);
    for (auto [t, side] : {std::pair{&a.k_side, &format.format.k}, {&a.v_side, &format.format.v}}) {
      if (side->has_codebook()) t->codebook = operands.upload(random_codebook(rng, *side, kHeads));
      if (side->qjl) t->projection = operands.upload(rng.normals(uint64_t(kHeadDim) * kHeadDim));
      t->transform = operands.upload(random_matrices(rng, 1, kHeadDim));
    }
    a.format = format.format;
    a.tokens = kTokens, a.sequences = 1, a.heads = kHeads, a.head_dim = kHeadDim, a.capacity = kCapacity;

    // The cache's bits after appends of `step` tokens each.
    const auto append = [&](uint32_t step) {
      a.max_count = step;
      const Operation operation = a;
      const auto recording = device->record({&operation, 1});
      device->upload<int32_t>(a.cache, std::vector<int32_t>(words, -1));
      for (uint32_t t = 0; t < kTokens; t += step) {
        const int32_t row[3] = {int32_t(t), int32_t(t), int32_t(std::min(step, kTokens - t))};
        device->upload<int32_t>(a.appends, row);
        device->wait(device->submit(*recording));
      }
      std::vector<int32_t> cache(words);
      device->download<int32_t>(a.cache, cache);
      return cache;
    };
    INFO(format.name);
    const std::vector<int32_t> at_once = append(kTokens);
    CHECK((append(1) == at_once));
    CHECK((append(33) == at_once));
  }
}

}  // namespace turboesm::conformance
