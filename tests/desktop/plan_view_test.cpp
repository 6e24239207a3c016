#include "apps/desktop/plan_view.h"

#include <algorithm>

#include <catch2/catch_test_macros.hpp>

namespace turboesm::desktop {
namespace {

TEST_CASE("the chart's curves, table and stops are the library's plans", "[unit][desktop-plan]") {
  DeviceInfo device;
  device.spec = "cpu";
  device.scratch_bytes = 12345;
  device.staging_chunk_bytes = 1 << 20;
  const PlanView::Key key{"cpu", DType::f16, 8ull << 30, "650M", {}, 1000, 16};
  const PlanView view = make_plan_view(key, device);
  const Esm2Config config = official_config("650M");
  REQUIRE(view.presets.size() == kv_presets().size());
  for (const PlanView::Preset& shown : view.presets) {
    INFO(shown.name);
    const KvPreset preset = parse_kv_preset(shown.name);
    const auto total = [&](uint32_t length) {
      return plan_memory(config, DType::f16, BatchShape::uniform(16, length), plan_options(config), device, &preset)
          .total();
    };
    CHECK(shown.plan.total() == total(1000));
    REQUIRE(shown.curve.size() == view.lengths.size());
    for (size_t i = 0; i < view.lengths.size(); i += 7) CHECK(shown.curve[i] == total(view.lengths[i]));
    CHECK(total(shown.longest) <= key.budget);
    CHECK(total(shown.longest + 1) > key.budget);
    REQUIRE(shown.longest_by_size.size() == 6);
    CHECK(shown.longest_by_size[3] == shown.longest);
    CHECK(shown.longest_by_size[0] > shown.longest);
    CHECK(shown.longest_by_size[5] == 0);  // 15B in f16 takes 30 GB
  }
  const auto longest = [&](std::string_view name) {
    return std::ranges::find(view.presets, name, &PlanView::Preset::name)->longest;
  };
  CHECK(longest("turbo") > 2 * longest("f16"));
}

}  // namespace
}  // namespace turboesm::desktop
