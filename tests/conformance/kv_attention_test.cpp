#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "shaders/include/kv_scale.h"
#include "tests/conformance/kv_data.h"
#include "tests/rope_table.h"

namespace turboesm::conformance {
namespace {

// ---- kv_query -------------------------------------------------------------------------------------------------------

struct QueryParts {
  bool transform, shared, projection, position;
  DType stored_position = DType::f32;
};

void add_query(Harness& harness, DType dtype, uint32_t rows, uint32_t heads, uint32_t head_dim, QueryParts parts) {
  Rng& rng = harness.rng();
  const std::string what =
      fmt::format("{} rows, {} heads of {}{}{}{}", rows, heads, head_dim, parts.transform ? ", transform" : "",
                  parts.projection ? ", projection" : "", parts.position ? ", position" : "");
  harness.add(what, [&](Case& c) -> Operation {
    const uint64_t width = uint64_t(heads) * head_dim, size = rows * width;
    const Tolerance tolerance{3 * sum_error(head_dim)};
    KvQuery a;
    a.rows = rows, a.heads = heads, a.head_dim = head_dim;
    a.q = c.input(dtype, rng.normals(size));
    if (parts.transform) a.transform = c.input(DType::f32, random_matrices(rng, parts.shared ? 1 : heads, head_dim));
    if (parts.projection) a.projection = c.input(DType::f32, rng.normals(uint64_t(head_dim) * head_dim));
    if (parts.position) a.position_mean = c.input(DType::f32, rng.normals(width));
    a.out = c.output(DType::f32, size, parts.transform ? tolerance : kExact);
    if (parts.projection) a.projected = c.output(DType::f32, size, tolerance);
    if (parts.position) {
      const DType stored = parts.stored_position;
      a.position = c.output(stored, size, rounded(stored, size, 1e-6));
    }
    return a;
  });
}

// ---- kv_attention ---------------------------------------------------------------------------------------------------

uint32_t f16_between(Rng& rng, float begin, float end) { return f16_from_f32(rng.uniform(begin, end)); }

// A code for a scale near `size`, now and then that of 0. No encoder stores the codes of subnormal numbers.
uint32_t random_scale(Rng& rng, uint32_t scale_bits, float size) {
  if (rng.below(40) == 0) return 0;
  if (scale_bits == 16) return f16_between(rng, 0.5f * size, 2 * size);
  return kv_scale_below(8, size * rng.uniform(0.5f, 2));
}

void set_bits(uint32_t& word, uint32_t shift, uint32_t bits, uint32_t value) {
  const uint32_t mask = (~0u >> (32 - bits)) << shift;
  word = (word & ~mask) | value << shift;
}

// Makes the numbers of a token sane in a block of random bits: codes may be any, but not scales, norms and floats.
void tame(Rng& rng, const KvSide& side, uint32_t head_dim, uint32_t t, uint32_t* words) {
  const uint32_t n = head_dim / side.segments, bits = side.bits[0];
  for (uint32_t i = 0; i < n && bits >= 16; ++i) {
    const float value = rng.uniform(-2, 2);
    const uint32_t e = kv_element(n, t, i), w = e * bits / 32;
    set_bits(words[kv_code_word(n, t, i, w)], e * bits % 32, bits,
             bits == 16 ? f16_from_f32(rng.below(50) ? value : value * 0x1p-18f) : std::bit_cast<uint32_t>(value));
  }
  uint32_t* scales = words + kv_scales_at(n, side.segments, bits, side.bits[1]);
  for (uint32_t segment = 0; segment < side.segments && side.scale_bits > 0; ++segment)
    set_bits(scales[segment * side.scale_bits + kv_scale_word(side.scale_bits, t)], kv_scale_shift(side.scale_bits, t),
             side.scale_bits,
             random_scale(rng, side.scale_bits,
                          bits == 8                       ? 1.0f / 100
                          : side.scale == KvScale::absmax ? 0.15f
                                                          : 1.0f));
  if (side.qjl) {
    uint32_t* norms = words + kv_signs_at(n, side.segments, bits, side.bits[1], side.scale_bits) + head_dim;
    set_bits(norms[kv_scale_word(16, t)], kv_scale_shift(16, t), 16, random_scale(rng, 16, 0.5f));
  }
}

// Random codes for the tokens of each sequence; behind its last one random bits, NaN and infinity among the floats.
std::vector<int32_t> random_cache(Rng& rng, const KvFormat& format, uint32_t heads, uint32_t head_dim,
                                  uint32_t capacity, const std::vector<uint32_t>& lengths) {
  const uint64_t block_words = format.block_words(head_dim), row_words = capacity / KV_BLOCK * block_words;
  std::vector<int32_t> cache = random_words(rng, lengths.size() * heads * row_words);
  for (uint64_t row = 0; row < lengths.size() * heads; ++row)
    for (uint32_t j = 0; j < lengths[row / heads]; ++j) {
      uint32_t* block = reinterpret_cast<uint32_t*>(&cache[row * row_words + j / KV_BLOCK * block_words]);
      tame(rng, format.k, head_dim, j % KV_BLOCK, block);
      tame(rng, format.v, head_dim, j % KV_BLOCK, block + format.k.block_words(head_dim));
    }
  return cache;
}

struct AttentionParts {
  bool bias, transform, mean, shared;
};
AttentionParts random_parts(Rng& rng) { return {rng.coin(), rng.coin(), rng.coin(), rng.coin()}; }

void add_attention(Harness& harness, const NamedFormat& format, DType out, uint32_t queries, uint32_t heads,
                   uint32_t head_dim, const std::vector<uint32_t>& lengths, AttentionParts parts) {
  Rng& rng = harness.rng();
  std::string what =
      fmt::format("{}, {} queries, {} heads of {}{}{}{}, lengths", format.name, queries, heads, head_dim,
                  parts.bias ? ", bias" : "", parts.transform ? ", transform" : "", parts.mean ? ", mean" : "");
  for (const uint32_t length : lengths) what += fmt::format(" {}", length);
  harness.add(what, [&](Case& c) -> Operation {
    const KvFormat& f = format.format;
    const uint32_t sequences = uint32_t(lengths.size()), longest = *std::max_element(lengths.begin(), lengths.end());
    const uint32_t capacity = (longest / KV_BLOCK + 1 + rng.below(2)) * KV_BLOCK, copies = parts.shared ? 1 : heads;
    const uint64_t rows = uint64_t(sequences) * queries, width = uint64_t(heads) * head_dim;
    const uint64_t stored = rows * width;
    KvAttention a;
    a.format = f;
    a.sequences = sequences, a.queries = queries, a.heads = heads, a.head_dim = head_dim, a.capacity = capacity;
    a.q = c.input(DType::f32, rng.normals(stored, rng.pick({1.0f, 2.0f}) / std::sqrt(float(head_dim))));
    a.cache = c.input(random_cache(rng, f, heads, head_dim, capacity, lengths));
    a.lengths = c.input(std::vector<int32_t>(lengths.begin(), lengths.end()));
    // Scores reach 10 or so; Vulkan's exp is right to some (3 + 2 x 10) 2^-24 there.
    a.out = c.output(out, stored, rounded(out, stored, harness.rounds_centroids(out) ? 6e-3 : 5e-6));
    if (f.k.qjl) a.projected = c.input(DType::f32, rng.normals(stored));
    if (parts.bias) {
      std::vector<float> bias = rng.normals(rows * heads * capacity);
      for (uint64_t i = 0; i < bias.size(); ++i)  // behind the last token is no bias either
        if (i % capacity >= lengths[i / capacity / heads / queries]) bias[i] = std::numeric_limits<float>::quiet_NaN();
      a.bias = c.input(DType::f32, bias);
    }
    if (f.k.has_codebook()) a.k_codebook = c.input(DType::f32, random_codebook(rng, f.k, copies));
    if (f.v.has_codebook()) a.v_codebook = c.input(DType::f32, random_codebook(rng, f.v, copies));
    if (parts.transform) a.transform = c.input(DType::f32, random_matrices(rng, copies, head_dim));
    if (parts.mean) a.mean = c.input(DType::f32, rng.normals(width, 0.1f));
    for (const uint32_t length : lengths) a.cached_tokens += length;
    return a;
  });
}

constexpr uint32_t kContexts[] = {1, 31, 32, 33, 63, 64, 65};

}  // namespace

TEST_CASE("kv_query agrees with the oracle", "[conformance]") {
  conform(52, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    const auto coins = [&] {
      return QueryParts{rng.coin(), rng.coin(), rng.coin(), rng.coin(), rng.pick(kFloatTypes)};
    };
    const auto add = [&](uint32_t head_dim) {
      const DType dtype = rng.pick(kFloatTypes);
      const QueryParts parts = coins();
      for (const uint32_t rows : {1u, 2u, 3u, 31u, 64u, 65u})
        add_query(harness, dtype, rows, rng.pick({1u, 2u, 3u, 20u}), head_dim, parts);
      add_query(harness, DType::f32, 65, 20, head_dim, {true, true, true, true});
      add_query(harness, DType::f32, 2, 20, head_dim, {true, false, true, true});
      add_query(harness, DType::f32, 2, 20, head_dim, {true, true, true, false});
      add_query(harness, DType::f16, 4, 2, head_dim, {false, false, false, false});
    };
    for (const uint32_t head_dim : kHeadDims) add(head_dim);
    for (const uint32_t head_dim : kOtherHeadDims) add(head_dim);
    add_query(harness, DType::f32, kManyRows, 1, 8, {true, true, false, true});
    for (const uint32_t head_dim : {32u, 64u, 128u}) {  // so many that rows may be taken together, the last a few
      add_query(harness, DType::f16, 331, 20, head_dim, {true, false, true, true, DType::f16});
      add_query(harness, DType::bf16, 330, 20, head_dim, {true, true, false, false});
      add_query(harness, DType::f32, 329, 20, head_dim, {false, false, true, true});
    }
    add_query(harness, DType::f32, 0, 2, 16, {true, true, true, true});
  });
}

TEST_CASE("kv_attention agrees with the oracle", "[conformance]") {
  conform(53, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    const auto context = [&] { return rng.pick(kContexts); };
    for (const FormatCase& each : format_cases(harness, false))
      for (const uint32_t head_dim : each.head_dims) {
        // One kernel for the first two, another where the context is long.
        const DType out = rng.pick(kFloatTypes);
        const uint32_t queries = rng.pick({1u, 2u});
        const AttentionParts parts = random_parts(rng);
        add_attention(harness, each.format, out, queries, rng.pick({1u, 2u, 3u}), head_dim, {context()}, parts);
        add_attention(harness, each.format, out, queries, 2, head_dim,
                      {context(), 0, rng.pick({2u, 100u, 150u}), context()}, parts);
        if (rng.below(3) == 0)
          add_attention(harness, each.format, out, queries, 1, head_dim, {rng.pick({1000u, 1023u, 1025u}), 1, 40},
                        parts);
      }
    const AttentionParts all{true, true, true, false};
    const NamedFormat& ours = kv_format("4|3 and 4|2 bits searched, 8-bit scales");
    const NamedFormat& widest = kv_format("3|2 bits with QJL, 4|3 bits");
    for (const uint32_t head_dim : kHeadDims)
      for (const uint32_t queries : {1u, 2u})
        add_attention(harness, ours, DType::f32, queries, 2, head_dim, {context(), 300, 0, context()}, all);
    for (const uint32_t head_dim : kOtherHeadDims)
      add_attention(harness, widest, DType::f32, 1, 2, head_dim, {context(), 1}, all);
    for (const uint32_t length : kContexts)
      for (const uint32_t queries : {1u, 2u}) add_attention(harness, ours, DType::f32, queries, 20, 16, {length}, all);
    for (const uint32_t length : {1000u, 1023u, 1025u})
      add_attention(harness, ours, DType::f32, 2, 2, 64, {length, 0, 17}, all);
    for (const uint32_t queries : {3u, 4u}) add_attention(harness, ours, DType::f32, queries, 3, 16, {70, 33}, all);
    // Long ones once for each way in which values are stored.
    for (const char* name :
         {"f32", "f16", "int8", "3 bits with QJL and no scales", "3|2 bits with QJL, 4|3 bits", ours.name.c_str()})
      add_attention(harness, kv_format(name), DType::f32, 2, 1, 16, {20'000, 700}, all);
    add_attention(harness, ours, DType::f32, 2, 2, 16, {0, 0}, all);
  });
}

// So many that a GPU has work for several sequences on each of its units at once; the last ones are not a whole group.
TEST_CASE("kv_attention of many sequences agrees with the oracle", "[conformance]") {
  conform(57, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    const uint32_t count = harness.takes_large() ? 131 : 5;
    for (const char* name : {"4|3 and 4|2 bits searched, 8-bit scales", "3 bits with QJL and no scales"})
      for (const uint32_t queries : {1u, 2u, 3u})
        for (const AttentionParts parts : {AttentionParts{true, true, true, false}, AttentionParts{}}) {
          std::vector<uint32_t> lengths(count);
          for (uint32_t& length : lengths) length = rng.pick({0u, 1u, 31u, 32u, 33u, 64u, 65u, 200u});
          add_attention(harness, kv_format(name), DType::f16, queries, 20, 64, lengths, parts);
        }
  });
}

TEST_CASE("every variant of kv_attention agrees with the oracle", "[conformance]") {
  conform_variants(56, [](Harness& harness) {
    const AttentionParts all{true, true, true, false};
    for (const char* name : {"4|3 and 4|2 bits searched, 8-bit scales", "3 bits with QJL and no scales"}) {
      add_attention(harness, kv_format(name), DType::f32, 1, 2, 64, {70, 0, 33}, all);
      add_attention(harness, kv_format(name), DType::f32, 2, 1, 128, {1000}, all);
      add_attention(harness, kv_format(name), DType::f32, 4, 1, 128, {70}, all);
    }
  });
}

// Append, query and attention together, with an f32 cache and every transform in place, are softmax(q k^T) v: centres
// and transforms cancel, whatever the layout.
TEST_CASE("attention over an exact cache is attention", "[conformance]") {
  const auto device = open_device_under_test();
  Rng rng(54);
  constexpr uint32_t kTokens = 75, kHeads = 2, kHeadDim = 24, kCapacity = 96;
  constexpr uint64_t kWidth = kHeads * kHeadDim;
  const std::vector<float> q = rng.normals(kWidth, 0.2f), k = rng.normals(kTokens * kWidth),
                           v = rng.normals(kTokens * kWidth);
  const std::vector<float> mean = rng.normals(kWidth), position_mean = rng.normals(kWidth);
  const std::vector<float> table = rope_table(kCapacity, kHeadDim);
  // 2 x a rotation of the pairs (i, i + 12), which leaves k . q as it is when q goes through half of it.
  std::vector<float> turn(kHeadDim * kHeadDim), half_turn(kHeadDim * kHeadDim), turn_back(kHeadDim * kHeadDim);
  for (uint32_t i = 0; i < kHeadDim; ++i) {
    const uint32_t other = (i + 12) % kHeadDim, at = i * kHeadDim + i, across = i * kHeadDim + other;
    const float sine = i < 12 ? -0.6f : 0.6f;
    turn[at] = 1.6f, turn[across] = 2 * sine;
    half_turn[at] = 0.4f, half_turn[across] = 0.5f * sine;
    turn_back[at] = 0.4f, turn_back[across] = -0.5f * sine;
  }

  DeviceOperands operands(*device, 1 << 20);
  const KvFormat format{.k = {.bits = {32, 0}}, .v = {.bits = {32, 0}}};
  const KvAppend append{
      .k = operands.upload(k),
      .v = operands.upload(v),
      .appends = operands.upload(std::vector<int32_t>{0, 0, int32_t(kTokens)}),
      .table = operands.upload(table),
      .k_side = {operands.upload(mean), operands.upload(position_mean), operands.upload(turn), {}, {}},
      .v_side = {operands.upload(mean), {}, operands.upload(turn), {}, {}},
      // Not left undefined, for a sanitizer's sake: attention reads whole blocks, also the last one's unused tokens.
      .cache = operands.upload(std::vector<int32_t>(kHeads * (kCapacity / KV_BLOCK) * format.block_words(kHeadDim))),
      .format = format,
      .tokens = kTokens,
      .sequences = 1,
      .heads = kHeads,
      .head_dim = kHeadDim,
      .capacity = kCapacity,
      .table_rows = kCapacity,
      .max_count = kTokens};
  const KvQuery query{.q = operands.upload(q),
                      .transform = operands.upload(half_turn),
                      .projection = {},
                      .position_mean = operands.upload(position_mean),
                      .out = operands.place(DType::f32, kWidth),
                      .projected = {},
                      .position = operands.place(DType::f32, kWidth),
                      .rows = 1,
                      .heads = kHeads,
                      .head_dim = kHeadDim};
  // bias = position table^T, the heads being the rows.
  const Linear bias{.x = query.position,
                    .weight = append.table,
                    .bias = {},
                    .residual = {},
                    .y = operands.place(DType::f32, uint64_t(kHeads) * kCapacity),
                    .rows = kHeads,
                    .inputs = kHeadDim,
                    .outputs = kCapacity};
  const KvAttention attention{.q = query.out,
                              .projected = {},
                              .bias = bias.y,
                              .cache = append.cache,
                              .lengths = operands.upload(std::vector<int32_t>{int32_t(kTokens)}),
                              .k_codebook = {},
                              .v_codebook = {},
                              .transform = operands.upload(turn_back),
                              .mean = append.v_side.mean,
                              .out = operands.place(DType::f32, kWidth),
                              .format = format,
                              .sequences = 1,
                              .heads = kHeads,
                              .head_dim = kHeadDim,
                              .capacity = kCapacity};
  device->run(std::vector<Operation>{append, query, bias, attention});
  std::vector<float> out(kWidth);
  device->download<float>(attention.out, out);

  double errors = 0, squares = 0;
  for (uint64_t h = 0; h < kHeads; ++h) {
    std::vector<double> weights(kTokens), want(kHeadDim);
    double sum = 0;
    for (uint64_t j = 0; j < kTokens; ++j) {
      double score = 0;
      for (uint64_t i = 0; i < kHeadDim; ++i)
        score += double(q[h * kHeadDim + i]) * double(k[j * kWidth + h * kHeadDim + i]);
      sum += weights[j] = std::exp(score);
    }
    for (uint64_t i = 0; i < kHeadDim; ++i) {
      for (uint64_t j = 0; j < kTokens; ++j) want[i] += weights[j] / sum * double(v[j * kWidth + h * kHeadDim + i]);
      const double error = double(out[h * kHeadDim + i]) - want[i];
      errors += error * error;
      squares += want[i] * want[i];
    }
  }
  CHECK(std::sqrt(errors / squares) < 2e-5);  // the means are several times what is left after the average
}

// A device may compute them together where they come in one recording, as in a decoding step: CUDA does, but for the
// bias of many rows.
TEST_CASE("query and bias and append give together what each gives by itself", "[conformance]") {
  const auto device = open_device_under_test();
  Rng rng(58);
  const KvFormat& format = kv_format("4|3 and 4|2 bits searched, 8-bit scales").format;
  constexpr uint32_t kHeads = 5, kCapacity = 96;
  struct Step {
    uint32_t head_dim, sequences;
    bool has_bias, has_append, per_head;
  };
  for (const auto& [head_dim, sequences, has_bias, has_append, per_head] :
       {Step{24, 3, true, true, false}, Step{32, 3, true, true, true}, Step{64, 3, true, true, false},
        Step{64, 3, true, false, true}, Step{64, 3, false, true, false}, Step{64, 100, true, true, true},
        Step{64, 250, true, true, false}, Step{64, 257, true, true, false}, Step{128, 3, true, true, true}}) {
    INFO("head_dim " << head_dim << ", " << sequences << " sequences, bias " << has_bias << ", append " << has_append);
    const uint32_t rows = 2 * sequences, count = rows * kHeads * head_dim;
    DeviceOperands operands(*device, (4 + sequences / 4) * (uint64_t(1) << 20));
    const Tensor transform = operands.upload(random_matrices(rng, per_head ? kHeads : 1, head_dim));
    const Tensor position_mean = operands.upload(rng.normals(kHeads * head_dim));
    const Tensor q = operands.upload_f16(rng.normals(count)), k = operands.upload_f16(rng.normals(count)),
                 v = operands.upload_f16(rng.normals(count));
    const std::vector<float> table = rope_table(kCapacity, head_dim);
    const Tensor table_f16 = operands.upload_f16(table), table_f32 = operands.upload(table);
    std::vector<int32_t> places;
    for (uint32_t b = 0; b < sequences; ++b)
      places.insert(places.end(), {int32_t(2 * b), int32_t(std::array{40u, 0u, 95u}[b % 3]), b % 7 == 5 ? 0 : 1});
    const Tensor appends = operands.upload(places);
    const KvSideTensors k_side{
        {}, position_mean, transform, operands.upload(random_codebook(rng, format.k, kHeads)), {}};
    const KvSideTensors v_side{operands.upload(rng.normals(kHeads * head_dim)),
                               {},
                               transform,
                               operands.upload(random_codebook(rng, format.v, kHeads)),
                               {}};
    const uint64_t words = uint64_t(sequences) * kHeads * (kCapacity / KV_BLOCK) * format.block_words(head_dim);
    struct Result {
      std::vector<float> out, bias;
      std::vector<std::byte> position;
      std::vector<int32_t> cache;
    };
    const auto run = [&](bool together) {
      const KvQuery query{.q = q,
                          .transform = transform,
                          .projection = {},
                          .position_mean = position_mean,
                          .out = operands.place(DType::f32, count),
                          .projected = {},
                          .position = operands.place(DType::f16, count),
                          .rows = rows,
                          .heads = kHeads,
                          .head_dim = head_dim};
      const Linear bias{.x = query.position,
                        .weight = table_f16,
                        .bias = {},
                        .residual = {},
                        .y = operands.place(DType::f32, uint64_t(rows) * kHeads * kCapacity),
                        .rows = rows * kHeads,
                        .inputs = head_dim,
                        .outputs = kCapacity};
      const KvAppend append{.k = k,
                            .v = v,
                            .appends = appends,
                            .table = table_f32,
                            .k_side = k_side,
                            .v_side = v_side,
                            .cache = operands.upload(std::vector<int32_t>(words)),
                            .format = format,
                            .tokens = rows,
                            .sequences = sequences,
                            .heads = kHeads,
                            .head_dim = head_dim,
                            .capacity = kCapacity,
                            .table_rows = kCapacity,
                            .max_count = 1};
      std::vector<Operation> operations{query};
      if (has_bias) operations.push_back(bias);
      if (has_append) operations.push_back(append);
      if (together)
        device->run(operations);
      else
        for (const Operation& operation : operations) device->run(std::span(&operation, 1));
      Result result{std::vector<float>(count), std::vector<float>(bias.y.count),
                    std::vector<std::byte>(query.position.bytes()), std::vector<int32_t>(words)};
      device->download<float>(query.out, result.out);
      device->download<std::byte>(query.position, result.position);
      if (has_bias) device->download<float>(bias.y, result.bias);
      device->download<int32_t>(append.cache, result.cache);
      return result;
    };
    const Result together = run(true), alone = run(false);
    CHECK(together.out == alone.out);
    CHECK(together.position == alone.position);
    CHECK(together.cache == alone.cache);
    CHECK(std::ranges::any_of(alone.cache, [](int32_t word) { return word != 0; }) == has_append);
    // Positions may be made again, and round elsewhere by an ulp of f16.
    const auto [least, most] = std::ranges::minmax(alone.bias);
    for (size_t i = 0; i < alone.bias.size(); ++i)
      if (std::abs(together.bias[i] - alone.bias[i]) > 2e-3f * (most - least))
        FAIL_CHECK(fmt::format("bias [{}] is {}, not {}", i, together.bias[i], alone.bias[i]));
  }
}

// Such operands a device may read before what is ahead has ended, in a model, where none of that writes them.
TEST_CASE("an append and an attention read what was written ahead of them in their recording", "[conformance]") {
  const auto device = open_device_under_test();
  Rng rng(59);
  const KvFormat& format = kv_format("4|3 and 4|2 bits searched, 8-bit scales").format;
  constexpr uint32_t kSequences = 3, kHeads = 5, kHeadDim = 64, kCapacity = 96, kCount = kSequences * kHeads * kHeadDim;
  constexpr uint32_t kWidth = 512;  // of products that take longer than it takes to begin what follows
  DeviceOperands operands(*device, 8 << 20);
  const Linear slow{.x = operands.upload(rng.normals(kWidth * kWidth)),
                    .weight = operands.upload(rng.normals(kWidth * kWidth)),
                    .bias = {},
                    .residual = {},
                    .y = operands.place(DType::f32, kWidth * kWidth),
                    .rows = kWidth,
                    .inputs = kWidth,
                    .outputs = kWidth};
  const Copy places{operands.upload(std::vector<int32_t>{0, 0, 1, 1, 0, 1, 2, 0, 1}),
                    operands.upload(std::vector<int32_t>(3 * kSequences))};
  const Copy lengths{operands.upload(std::vector<int32_t>(kSequences, 1)),
                     operands.upload(std::vector<int32_t>(kSequences))};
  const Tensor transform = operands.upload(random_matrices(rng, 1, kHeadDim));
  const KvSideTensors k_side{{}, {}, transform, operands.upload(random_codebook(rng, format.k, kHeads)), {}};
  const KvSideTensors v_side{{}, {}, transform, operands.upload(random_codebook(rng, format.v, kHeads)), {}};
  const uint64_t words = uint64_t(kSequences) * kHeads * (kCapacity / KV_BLOCK) * format.block_words(kHeadDim);
  const KvAppend append{.k = operands.upload_f16(rng.normals(kCount)),
                        .v = operands.upload_f16(rng.normals(kCount)),
                        .appends = places.destination,
                        .table = {},
                        .k_side = k_side,
                        .v_side = v_side,
                        .cache = operands.upload(std::vector<int32_t>(words)),
                        .format = format,
                        .tokens = kSequences,
                        .sequences = kSequences,
                        .heads = kHeads,
                        .head_dim = kHeadDim,
                        .capacity = kCapacity,
                        .table_rows = 0,
                        .max_count = 1};
  const KvQuery query{.q = operands.upload_f16(rng.normals(kCount)),
                      .transform = transform,
                      .projection = {},
                      .position_mean = {},
                      .out = operands.place(DType::f32, kCount),
                      .projected = {},
                      .position = {},
                      .rows = kSequences,
                      .heads = kHeads,
                      .head_dim = kHeadDim};
  const KvAttention attention{.q = query.out,
                              .projected = {},
                              .bias = {},
                              .cache = append.cache,
                              .lengths = lengths.destination,
                              .k_codebook = k_side.codebook,
                              .v_codebook = v_side.codebook,
                              .transform = {},
                              .mean = {},
                              .out = operands.place(DType::f16, kCount),
                              .format = format,
                              .sequences = kSequences,
                              .heads = kHeads,
                              .head_dim = kHeadDim,
                              .capacity = kCapacity};
  device->run(std::vector<Operation>{slow, places, query, append, slow, lengths, attention});
  std::vector<std::byte> together(attention.out.bytes()), alone(attention.out.bytes());
  device->download<std::byte>(attention.out, together);
  device->run(std::array<Operation, 1>{attention});
  device->download<std::byte>(attention.out, alone);
  CHECK(together == alone);
  std::vector<int32_t> cache(words);
  device->download<int32_t>(append.cache, cache);
  const uint64_t of_sequence = words / kSequences;
  for (uint32_t b = 0; b < kSequences; ++b)
    CHECK(
        std::ranges::any_of(std::span(cache).subspan(b * of_sequence, of_sequence), [](int32_t w) { return w != 0; }));
  CHECK(std::ranges::any_of(alone, [](std::byte byte) { return byte != std::byte(0); }));
}

}  // namespace turboesm::conformance
