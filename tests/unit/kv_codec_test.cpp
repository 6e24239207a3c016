#include "model/kv_codec.h"

#include <bit>
#include <set>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include "runtime/dtype.h"
#include "tests/conformance/data.h"
#include "tests/unit/files.h"

namespace turboesm {
namespace {

using Catch::Matchers::WithinAbs;
using conformance::Rng;
using test::check_error;

TEST_CASE("KV presets take the bits that they are said to", "[unit]") {
  struct Row {
    std::string_view name;
    double k, v;  // bits a value at head_dim 64
    bool calibrated;
  };
  const Row rows[] = {
      {"f32", 32, 32, false},
      {"f16", 16, 16, false},
      {"int8", 8.25, 8.25, false},
      {"int4", 4.25, 4.25, false},
      {"turboesm", 4, 3, true},
      {"turboesm-nosign", 3, 3, true},
      {"wht3", 3.25, 3.25, false},
      {"wht3-qjl", 4.5, 3.25, false},
      {"turboquant-2", 2.25, 2.25, false},
      {"turboquant-2.5", 3, 3, true},
      {"turboquant-3", 3.25, 3.25, false},
      {"turboquant-3.5", 4, 4, true},
      {"turboquant-4", 4.25, 4.25, false},
      {"turboquant-2-qjl", 2.5, 2.25, false},
      {"turboquant-2.5-qjl", 3.25, 3, true},
      {"turboquant-3-qjl", 3.5, 3.25, false},
      {"turboquant-3.5-qjl", 4.25, 4, true},
      {"turboquant-4-qjl", 4.5, 4.25, false},
      {"turbo", 3.75, 3.25, true},
      {"turbo-xs", 2.25, 2.25, true},
      {"turbo-s", 3.25, 3.25, true},
      {"turbo-l", 4.125, 4.125, true},
  };
  CHECK(std::size(rows) == kv_presets().size());
  std::set<std::string_view> names;
  for (const KvPresetRow& row : kv_presets()) names.insert(row.name);
  for (const Row& row : rows) {
    INFO(row.name);
    CHECK(names.contains(row.name));
    const KvPreset preset = parse_kv_preset(row.name);
    CHECK(preset.name == row.name);
    CHECK_FALSE(preset.what.empty());
    CHECK(kv_bits_per_value(preset.k.side, 64) == row.k);
    CHECK(kv_bits_per_value(preset.v.side, 64) == row.v);
    CHECK(kv_bits_per_value(preset.format(), 64) == (row.k + row.v) / 2);
    CHECK(preset.needs_calibration() == row.calibrated);
    CHECK(parse_kv_preset(preset.spec).format() == preset.format());
  }
  CHECK(names.contains(kDefaultKvPreset));
}

TEST_CASE("sizes of KV caches", "[unit]") {
  const Esm2Config config = official_config("650M");
  const KvFormat f32 = parse_kv_preset("f32").format(), f16 = parse_kv_preset("f16").format();
  const KvFormat turboesm = parse_kv_preset("turboesm").format();
  CHECK(kv_cache_bytes(f32, config, 1, 1024) == 2ull * 33 * 1280 * 1024 * 4);
  CHECK(kv_cache_bytes(f16, config, 3, 1000) == 3ull * 2 * 33 * 1280 * 1024 * 2);
  CHECK(kv_cache_bytes(turboesm, config, 1, 1024) <= uint64_t(36.2 * 1024 * 1024));
  CHECK(kv_cache_bytes(turboesm, config, 1, 1024) == 33 * kv_layer_bytes(turboesm, config, 1, 1024));
  CHECK_THAT(kv_ratio_to_f32(turboesm, 64), WithinAbs(32 / 3.5, 1e-12));
  CHECK_THAT(kv_ratio_to_f16(parse_kv_preset("wht3").format(), 64), WithinAbs(16 / 3.25, 1e-12));
  CHECK(kv_token_layer_bytes(f16, 20, 64) == 2.0 * 2 * 1280);
  CHECK(kv_token_layer_bytes(parse_kv_preset("turbo").format(), 6, 64) == 6 * 64 * (3.75 + 3.25) / 8);
  CHECK(kv_capacity(0) == 0);
  CHECK(kv_capacity(1) == 32);
  CHECK(kv_capacity(32) == 32);
  CHECK(kv_capacity(33) == 64);
}

TEST_CASE("a KV preset can be put together from parts", "[unit]") {
  CHECK(parse_kv_preset("k3.5,v4/2,pre,balanced,search,s8").format() == parse_kv_preset("turbo").format());
  const KvPreset preset = parse_kv_preset("k3,v2,pre,hadamard,correct,v:svd,v:kmeans,k:s8");
  CHECK(preset.k.centre == KvCentre::position_mean);
  CHECK(preset.v.centre == KvCentre::mean);
  CHECK(preset.k.transform == KvTransform::hadamard);
  CHECK(preset.v.transform == KvTransform::svd);
  CHECK(preset.k.centroids == KvCentroids::gaussian);
  CHECK(preset.v.centroids == KvCentroids::kmeans);
  CHECK(preset.k.side == KvSide{.bits = {3, 0}, .scale_bits = 8, .scale = KvScale::corrected, .gaussian = true});
  CHECK(preset.v.side == KvSide{.bits = {2, 0}, .scale_bits = 16, .scale = KvScale::corrected});

  const KvPreset split = parse_kv_preset("k1.5+v3.5+random+norm+qjl");
  CHECK(
      split.k.side ==
      KvSide{.segments = 2, .bits = {2, 1}, .scale_bits = 16, .scale = KvScale::norm, .qjl = true, .gaussian = true});
  CHECK(split.v.side ==
        KvSide{.segments = 2, .bits = {4, 3}, .scale_bits = 16, .scale = KvScale::norm, .gaussian = true});
  CHECK(parse_kv_preset("k16,v3,hadamard,norm").k == parse_kv_preset("f16").k);
  CHECK(parse_kv_preset("k3,v3,sign").k.side.bits[0] == 4);
  CHECK(parse_kv_preset("k3,v3,sign").v.side.bits[0] == 3);
  CHECK_FALSE(parse_kv_preset("k3,v3,hadamard,norm").needs_calibration());
  CHECK(parse_kv_preset("k3,v3,hadamard").needs_calibration());
  CHECK(parse_kv_preset("k3,v3,hadamard,norm,s8").needs_calibration());
  CHECK(parse_kv_preset("k3,v3,hadamard,channel").k.channel_scale);

  const std::vector<KvPreset> list = parse_kv_presets("f16,turbo,k3+v4+pre");
  REQUIRE(list.size() == 3);
  CHECK(list[1].name == "turbo");
  CHECK(list[2].name == "k3+v4+pre");

  const std::pair<std::string_view, std::string_view> wrong[] = {
      {"turb", "turbo-xs"},        {"", "no part \"\""},          {"k3", "bits of V"},
      {"k3,v5", "\"v5\""},         {"k3,v3,k4", "\"k4\""},        {"k3,v3,svd,balanced", "\"balanced\""},
      {"k3,v3,v:pre", "K only"},   {"k3,v3,s8", "no scale"},      {"k3,v3,channel,norm", "channel"},
      {"k8,v8,norm,s8", "8 bits"}, {"k3,v3,int,norm", "absmax"},  {"k3,v3,kmeans,absmax", "k-means"},
      {"k4,v3,sign", "1, 2 or 3"}, {"k16,v16,k:svd", "as it is"}, {"k3,v3,spin", "no part \"spin\""},
      {"k3,,v3", "no part \"\""},
  };
  for (const auto& [spec, part] : wrong)
    check_error(ErrorKind::usage, {part, "presets: f32, f16"}, [&text = spec] { parse_kv_preset(text); });
}

TEST_CASE("codes of a KV block are read back as they were put there", "[unit]") {
  Rng rng(5);
  for (const uint32_t head_dim : {8u, 16u, 24u, 32u, 40u, 64u, 72u, 96u, 128u, 256u})
    for (const auto& [segments, bits_0, bits_1] : {std::array{1u, 1u, 0u},
                                                   {1u, 2u, 0u},
                                                   {1u, 3u, 0u},
                                                   {1u, 4u, 0u},
                                                   {1u, 8u, 0u},
                                                   {1u, 16u, 0u},
                                                   {1u, 32u, 0u},
                                                   {2u, 2u, 1u},
                                                   {2u, 3u, 2u},
                                                   {2u, 4u, 3u}}) {
      const KvSide side{.segments = segments, .bits = {bits_0, bits_1}};
      INFO("head_dim " << head_dim << ", bits " << bits_0 << " and " << bits_1);
      std::vector<uint32_t> words(side.block_words(head_dim)), codes(size_t(KV_BLOCK) * head_dim);
      std::vector<float> codebook(side.codebook_size());
      for (size_t i = 0; i < codebook.size(); ++i) codebook[i] = float(i);
      for (uint32_t t = 0; t < KV_BLOCK; ++t)
        for (uint32_t i = 0; i < head_dim; ++i) {
          const uint32_t bits = side.bits[i / (head_dim / segments)];
          const uint32_t code = rng.next() & uint32_t((uint64_t(1) << bits) - 1);
          codes[t * head_dim + i] = code;
          deposit_kv_code(side, head_dim, words, t, i, code);
        }
      const KvDecodedBlock block = decode_kv_block(side, head_dim, words, codebook);
      CHECK(block.codes == codes);
      if (bits_0 <= 4) {
        // The second segment's centroids follow the first's centroids and thresholds.
        const size_t last = size_t(KV_BLOCK) * head_dim - 1;
        CHECK(block.values[0] == float(codes[0]));
        CHECK(block.values[last] == float(codes[last] + (segments == 2 ? (2u << bits_0) - 1 : 0)));
      }
    }
}

TEST_CASE("exact and 8-bit sides of a KV block decode to numbers", "[unit]") {
  std::vector<uint32_t> words(8 * 32);
  deposit_kv_code({.bits = {32, 0}}, 8, words, 31, 7, std::bit_cast<uint32_t>(-1.25f));
  CHECK(decode_kv_block({.bits = {32, 0}}, 8, words, {}).values.back() == -1.25f);

  words.assign(8 * 16, 0);
  deposit_kv_code({.bits = {16, 0}}, 8, words, 3, 2, f16_from_f32(0.1f));
  CHECK(decode_kv_block({.bits = {16, 0}}, 8, words, {}).values[3 * 8 + 2] == f32_from_f16(f16_from_f32(0.1f)));

  const KvSide integers{.bits = {8, 0}, .scale_bits = 16, .scale = KvScale::absmax};
  words.assign(integers.block_words(8), 0);
  deposit_kv_code(integers, 8, words, 1, 5, uint8_t(-127));
  words[8 * 8] = uint32_t(f16_from_f32(0.5f)) << 16;  // the scale of token 1
  const KvDecodedBlock block = decode_kv_block(integers, 8, words, {});
  CHECK(block.values[8 + 5] == -63.5f);
  CHECK(block.scales[1] == 0.5f);
  CHECK(block.scales[0] == 0);
  check_error(ErrorKind::usage, {"decode_kv_block", "80"}, [&] { decode_kv_block(integers, 16, words, {}); });
}

}  // namespace
}  // namespace turboesm
