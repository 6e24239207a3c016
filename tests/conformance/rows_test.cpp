#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "tests/conformance/harness.h"

// The operations that treat rows or sequences one by one: token_dropout, embed, layer_norm, pool_mean.
namespace turboesm::conformance {
namespace {

constexpr int32_t kMaskId = 32;

// Amino acids, with a share of masks.
std::vector<int32_t> random_ids(Rng& rng, uint32_t tokens, float mask_share) {
  std::vector<int32_t> ids = rng.integers(tokens, 4, 31);
  for (int32_t& id : ids)
    if (rng.uniform(0, 1) < mask_share) id = kMaskId;
  return ids;
}

void add_token_dropout(Harness& harness, const Packing& packing, float mask_share) {
  const std::string what =
      fmt::format("{} sequences, {} tokens, masks {}", packing.sequences(), packing.tokens(), mask_share);
  harness.add(what, [&](Case& c) -> Operation {
    // 1 - masks / length cancels where nearly all are masks: up to length x 2^-24.
    const Tolerance tolerance{5e-7 + packing.longest * 0x1p-24};
    return TokenDropout{.ids = c.input(random_ids(harness.rng(), packing.tokens(), mask_share)),
                        .cu_seqlens = c.input(packing.cu_seqlens),
                        .scale = c.output(DType::f32, packing.sequences(), tolerance),
                        .tokens = packing.tokens(),
                        .sequences = packing.sequences(),
                        .mask_id = kMaskId};
  });
}

void add_embed(Harness& harness, DType dtype, const Packing& packing, uint32_t vocab, uint32_t width) {
  Rng& rng = harness.rng();
  const bool scaled = rng.coin(), strange_ids = rng.coin();
  std::vector<int32_t> ids = rng.integers(packing.tokens(), 0, int32_t(vocab));
  using Limits = std::numeric_limits<int32_t>;
  if (strange_ids)
    for (int32_t& id : ids)
      if (rng.below(3) == 0) id = rng.pick({-1, int32_t(vocab), 1 << 30, Limits::min(), Limits::max()});
  const std::string what = fmt::format("{} tokens, vocab {}, width {}{}{}", packing.tokens(), vocab, width,
                                       scaled ? ", scaled" : "", strange_ids ? ", ids out of range" : "");
  harness.add(what, [&](Case& c) -> Operation {
    return Embed{.ids = c.input(ids),
                 .cu_seqlens = c.input(packing.cu_seqlens),
                 .scale = scaled ? c.input(DType::f32, rng.uniforms(packing.sequences(), 0, 2)) : Tensor{},
                 .table = c.input(dtype, rng.normals(uint64_t(vocab) * width)),
                 .out = c.output(DType::f32, uint64_t(packing.tokens()) * width, {2e-7}),
                 .tokens = packing.tokens(),
                 .sequences = packing.sequences(),
                 .vocab = vocab,
                 .width = width,
                 .mask_id = int32_t(vocab) - 1,
                 .unk_id = int32_t(rng.below(vocab))};
  });
}

struct LayerNormData {
  float mean = 0, stddev = 1;
};

void add_layer_norm(Harness& harness, DType out, uint32_t rows, uint32_t width, LayerNormData data, bool in_place) {
  const uint64_t count = uint64_t(rows) * width;
  in_place = in_place && out == DType::f32;
  // x - mean is as wrong as the mean, which is right to some 2^-24 of itself. In a row of few elements the deviations
  // may all be small, and that error large beside them.
  const double cancelled = data.stddev > 0 ? std::abs(data.mean) / data.stddev : 0;
  const double error = 1e-6 + (1 + cancelled) * (width < 16 ? 1e-5 : 2e-7);
  const Tolerance tolerance = rounded(out, count, error, 1);
  const std::string what = fmt::format("{} rows, width {}, mean {}, stddev {}{}", rows, width, data.mean, data.stddev,
                                       in_place ? ", in place" : "");
  harness.add(what, [&](Case& c) -> Operation {
    Rng& rng = harness.rng();
    const std::vector<float> values = rng.normals(count, data.stddev, data.mean);
    const Tensor x = in_place ? c.in_out(values, tolerance) : c.input(DType::f32, values);
    return LayerNorm{.x = x,
                     .weight = c.input(DType::f32, rng.normals(width)),
                     .bias = c.input(DType::f32, rng.normals(width)),
                     .y = in_place ? x : c.output(out, count, tolerance),
                     .rows = rows,
                     .width = width,
                     .epsilon = rng.coin() ? 1e-5f : 1e-3f};
  });
}

void add_pool_mean(Harness& harness, const Packing& packing, uint32_t width) {
  const std::string what =
      fmt::format("{} sequences, {} tokens, width {}", packing.sequences(), packing.tokens(), width);
  harness.add(what, [&](Case& c) -> Operation {
    return PoolMean{.x = c.input(DType::f32, harness.rng().normals(uint64_t(packing.tokens()) * width)),
                    .cu_seqlens = c.input(packing.cu_seqlens),
                    .out = c.output(DType::f32, uint64_t(packing.sequences()) * width, {sum_error(packing.longest)}),
                    .tokens = packing.tokens(),
                    .sequences = packing.sequences(),
                    .width = width};
  });
}

}  // namespace

TEST_CASE("token_dropout agrees with the oracle", "[conformance]") {
  conform(10, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    for (const float mask_share : {0.0f, 0.15f, 0.9f, 1.0f}) {
      for (const uint32_t length : kAwkwardLengths) add_token_dropout(harness, pack({length}), mask_share);
      for (const uint32_t length : kLongLengths) add_token_dropout(harness, pack({length, 0, 2}), mask_share);
      for (int repeat = 0; repeat < 30; ++repeat) add_token_dropout(harness, random_packing(rng, 20), mask_share);
    }
    add_token_dropout(harness, short_sequences(rng, kManyRows), 0.15f);
    add_token_dropout(harness, short_sequences(rng, 4 * kManyRows), 0.15f);  // more than 65535 sequences
  });
}

TEST_CASE("embed agrees with the oracle", "[conformance]") {
  conform(11, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    for (const DType dtype : kFloatTypes) {
      for (const uint32_t width : kAwkwardWidths) {
        for (int repeat = 0; repeat < 10; ++repeat) add_embed(harness, dtype, random_packing(rng, 9), 33, width);
        add_embed(harness, dtype, random_packing(rng, 3), rng.pick({1u, 2u, 64u}), width);
      }
      add_embed(harness, dtype, pack({1023, 0, 1}), 33, 1280);
      add_embed(harness, dtype, short_sequences(rng, kManyRows), 33, 6);
    }
  });
}

TEST_CASE("layer_norm agrees with the oracle", "[conformance]") {
  conform(12, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    const LayerNormData data[] = {{0, 1}, {0, 1e-2f}, {3, 50}, {100, 1}, {0, 0}};
    for (const DType out : kFloatTypes) {
      for (const uint32_t width : kAwkwardWidths)
        for (const uint32_t rows : kAwkwardLengths)
          add_layer_norm(harness, out, rows, width, rng.pick(data), rng.coin());
      for (const uint32_t width : {1024u, 1280u, 2560u, 5120u}) {
        add_layer_norm(harness, out, rng.pick({1u, 7u}), width, rng.pick(data), rng.coin());
        add_layer_norm(harness, out, 33, width, {0, 1}, rng.coin());
      }
      for (const uint32_t rows : kLongLengths) add_layer_norm(harness, out, rows, 320, rng.pick(data), rng.coin());
      add_layer_norm(harness, out, kManyRows, 10, {0, 1}, rng.coin());
      add_layer_norm(harness, out, 0, 64, {0, 1}, false);
    }
  });
}

TEST_CASE("pool_mean agrees with the oracle", "[conformance]") {
  conform(13, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    for (const uint32_t width : kAwkwardWidths) {
      for (const uint32_t length : kAwkwardLengths) add_pool_mean(harness, pack({length}), width);
      for (int repeat = 0; repeat < 8; ++repeat) add_pool_mean(harness, random_packing(rng, 12), width);
      add_pool_mean(harness, pack({0, rng.pick(kLongLengths), 2}), width);
    }
    add_pool_mean(harness, pack({5, 1025, 3}), 1280);
    add_pool_mean(harness, short_sequences(rng, kManyRows), 2);
  });
}

}  // namespace turboesm::conformance
