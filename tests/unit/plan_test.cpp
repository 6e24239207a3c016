#include "model/plan.h"

#include <algorithm>

#include <catch2/catch_test_macros.hpp>

#include "model/bench.h"
#include "model/kv_cache.h"
#include "runtime/registry.h"

namespace turboesm {
namespace {

Esm2Config small_config(uint32_t layers, uint32_t heads, uint32_t head_dim) {
  Esm2Config config = official_config("8M");
  config.layers = layers;
  config.heads = heads;
  config.hidden = heads * head_dim;
  config.intermediate = 4 * config.hidden;
  return config;
}

std::vector<uint64_t> sizes_of(const KvLayerTables& layer) {
  std::vector<uint64_t> sizes;
  const auto add = [&](const std::vector<float>& table) {
    if (!table.empty()) sizes.push_back(table.size());
  };
  for (const KvSideTables* side : {&layer.k, &layer.v})
    for (const std::vector<float>* table :
         {&side->mean, &side->position_mean, &side->transform, &side->codebook, &side->projection})
      add(*table);
  add(layer.query_transform);
  add(layer.out_transform);
  std::ranges::sort(sizes);
  return sizes;
}

TEST_CASE("a preset's tables are as large as is said before they are made", "[unit][plan]") {
  for (const KvPresetRow& row : kv_presets())
    for (const uint32_t head_dim : {16u, 24u, 64u}) {
      INFO(row.name << ", head_dim " << head_dim);
      const KvPreset preset = parse_kv_preset(row.name);
      const Esm2Config config = small_config(2, 3, head_dim);
      const KvTables tables = random_kv_tables(preset, config);
      std::vector<uint64_t> said = kv_table_sizes(preset, config.heads, head_dim);
      std::ranges::sort(said);
      CHECK(said == sizes_of(tables.layers.front()));
      CHECK(tables.shared == !preset.needs_calibration());
    }
}

TEST_CASE("a KV cache takes the memory that its preset alone foretells", "[unit][plan]") {
  const std::unique_ptr<Device> device = open_device("cpu", {}).device;
  const Esm2Config config = small_config(3, 2, 32);
  for (const KvPresetRow& row : kv_presets()) {
    INFO(row.name);
    const KvPreset preset = parse_kv_preset(row.name);
    const KvCache cache(*device, config, random_kv_tables(preset, config), 2, 70);
    const MemoryReport memory = device->memory();
    CHECK(memory[MemoryLabel::weights].bytes == KvCache::table_bytes(config, preset));
    CHECK(memory[MemoryLabel::kv].bytes == kv_cache_bytes(preset.format(), config, 2, 70));
  }
}

TEST_CASE("the longest length fits, and one token more does not", "[unit][plan]") {
  const Esm2Config config = official_config("35M");
  const ForwardOptions options = plan_options(config);
  const DeviceInfo device;
  const KvPreset turbo = parse_kv_preset("turbo");
  const uint64_t budget = 1ull << 30;
  for (const KvPreset* kv : {static_cast<const KvPreset*>(nullptr), &turbo})
    for (const uint32_t batch : {1u, 7u, 64u}) {
      INFO(batch << " sequences" << (kv ? " with a cache" : ""));
      const auto total = [&](uint32_t length) {
        return plan_memory(config, DType::f16, BatchShape::uniform(batch, length), options, device, kv).total();
      };
      const uint32_t longest = max_length(config, DType::f16, batch, options, device, budget, kv, 1u << 20);
      REQUIRE(longest >= 2);
      CHECK(total(longest) <= budget);
      CHECK(total(longest + 1) > budget);
      CHECK(max_batch(config, DType::f16, longest, options, device, budget, kv) >= batch);
    }
}

TEST_CASE("no length fits where the weights do not, and none is longer than asked for", "[unit][plan]") {
  const Esm2Config config = official_config("35M");
  const ForwardOptions options = plan_options(config);
  CHECK(max_length(config, DType::f32, 1, options, {}, 1 << 20, nullptr, 1024) == 0);
  CHECK(max_length(config, DType::f32, 1, options, {}, ~0ull, nullptr, 1024) == 1024);
}

}  // namespace
}  // namespace turboesm
