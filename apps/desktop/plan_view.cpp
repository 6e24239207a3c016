#include "apps/desktop/plan_view.h"

#include <algorithm>

#include "model/kv_codec.h"

namespace turboesm::desktop {
namespace {

// The presets in the order of kv_presets(), with those of this project's own right behind the plain ones.
std::vector<KvPresetRow> ordered_presets() {
  std::vector<KvPresetRow> rows(kv_presets().begin(), kv_presets().end());
  const auto rank = [](const KvPresetRow& row) {
    const bool plain = row.spec == "k32,v32" || row.spec == "k16,v16" || row.name.starts_with("int");
    const bool turbo = row.name == "turbo" || row.name.starts_with("turbo-");
    return plain ? 0 : row.name == "turbo-l" ? 1 : turbo ? 2 : 3;
  };
  std::ranges::stable_sort(rows, {}, rank);
  return rows;
}

constexpr uint32_t kShortest = 64, kLongest = 65536;  // on the chart

}  // namespace

PlanView make_plan_view(const PlanView::Key& key, const DeviceInfo& device) {
  PlanView view{key, {}, {}};
  for (uint32_t length = kShortest; length < kLongest; length *= 2)
    for (const uint32_t quarter : {4, 5, 6, 7}) view.lengths.push_back(length / 4 * quarter);
  view.lengths.push_back(kLongest);

  const Esm2Config config = key.size.empty() ? key.own : official_config(key.size);
  for (const KvPresetRow& row : ordered_presets()) {
    const KvPreset preset = parse_kv_preset(row.name);
    const auto plan = [&](uint32_t length) {
      return plan_memory(config, key.dtype, BatchShape::uniform(key.batch, length), plan_options(config), device,
                         &preset);
    };
    const auto longest = [&](const Esm2Config& of) {
      return max_length(of, key.dtype, key.batch, plan_options(of), device, key.budget, &preset, kLongestContext);
    };
    PlanView::Preset& out = view.presets.emplace_back();
    out.name = row.name;
    out.what = row.what;
    out.bits_per_value = kv_bits_per_value(preset.format(), config.head_dim());
    out.plan = plan(key.length);
    for (const uint32_t length : view.lengths) out.curve.push_back(plan(length).total());
    out.longest = longest(config);
    for (const std::string_view size : official_sizes()) out.longest_by_size.push_back(longest(official_config(size)));
  }
  return view;
}

}  // namespace turboesm::desktop
