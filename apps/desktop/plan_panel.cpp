#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>

#include "apps/desktop/ui.h"
#include "runtime/format.h"

namespace turboesm::desktop {
namespace {

constexpr std::string_view kOpenModel = "the open model";
// What is written at its line; the other presets' lines are drawn, and are in the table.
constexpr std::array<std::string_view, 6> kNamed{"f32", "f16", "int8", "turbo", "turboesm", "turbo-xs"};

std::string tokens_text(uint64_t tokens) {
  return tokens >= kLongestContext ? "> 1 M"
         : tokens >= 10000         ? fmt::format("{:.0f} k", double(tokens) / 1000)
                                   : grouped(tokens);
}

// Both axes are logarithmic: lengths and bytes span factors of a thousand.
struct Axes {
  ImVec2 least, most;  // screen, the plot's inside
  double first = 0, last = 0, lowest = 0, highest = 0;

  float x(double tokens) const {
    return least.x + (most.x - least.x) * float(std::log(tokens / first) / std::log(last / first));
  }
  float y(double bytes) const {
    return most.y - (most.y - least.y) * float(std::log(bytes / lowest) / std::log(highest / lowest));
  }
  double tokens_at(float at) const { return first * std::pow(last / first, (at - least.x) / (most.x - least.x)); }
};

Axes make_axes(const PlanView& view, ImVec2 at, ImVec2 size, Ui& ui) {
  Axes axes;
  axes.least = {at.x + ui.px(70), at.y + ui.px(10)};
  axes.most = {at.x + size.x - ui.px(84), at.y + size.y - ui.px(38)};
  axes.first = view.lengths.front();
  axes.last = view.lengths.back();
  uint64_t least = ~0ull, most = view.key.budget;
  for (const PlanView::Preset& preset : view.presets) {
    least = std::min(least, preset.curve.front());
    most = std::max(most, preset.curve.back());
  }
  axes.lowest = double(std::min(least, view.key.budget)) * 0.8;
  axes.highest = double(most) * 1.3;
  return axes;
}

void draw_grid(Ui& ui, const Axes& axes) {
  ImDrawList& list = *ImGui::GetWindowDrawList();
  list.AddRectFilled(axes.least, axes.most, packed({16, 20, 28}), ui.px(3));
  for (double tokens = axes.first; tokens <= axes.last; tokens *= 2) {
    const float x = axes.x(tokens);
    list.AddLine({x, axes.least.y}, {x, axes.most.y}, packed(kLine, 0.7f));
    text_at({x, axes.most.y + ui.px(10)}, fonts().small, packed(kFaint), grouped(uint64_t(tokens)), 0.5f);
  }
  const double step = axes.highest / axes.lowest > 5000 ? 8 : axes.highest / axes.lowest > 300 ? 4 : 2;
  for (double bytes = std::pow(2, std::ceil(std::log2(axes.lowest))); bytes < axes.highest; bytes *= step) {
    const float y = axes.y(bytes);
    list.AddLine({axes.least.x, y}, {axes.most.x, y}, packed(kLine, 0.7f));
    text_at({axes.least.x - ui.px(7), y}, fonts().small, packed(kFaint), format_bytes(uint64_t(bytes)), 1);
  }
  text_at({(axes.least.x + axes.most.x) / 2, axes.most.y + ui.px(27)}, fonts().small, packed(kFaint),
          "tokens of each sequence", 0.5f);
}

void draw_curve(Ui& ui, const Axes& axes, const PlanView& view, const PlanView::Preset& preset, bool chosen) {
  ImDrawList& list = *ImGui::GetWindowDrawList();
  const bool named = chosen || std::ranges::find(kNamed, preset.name) != kNamed.end();
  const Colour colour = colour_of_preset(preset.name);
  const float width = ui.px(chosen ? 3.2f : named ? 1.8f : 1);
  for (size_t i = 0; i + 1 < view.lengths.size(); ++i) {
    const ImVec2 from{axes.x(view.lengths[i]), axes.y(double(preset.curve[i]))};
    const ImVec2 to{axes.x(view.lengths[i + 1]), axes.y(double(preset.curve[i + 1]))};
    const bool fits = preset.curve[i + 1] <= view.key.budget;
    list.AddLine(from, to, packed(colour, (named ? 1 : 0.5f) * (fits ? 1 : 0.28f)), width);
  }
  if (named && preset.longest >= view.lengths.front() && preset.longest <= view.lengths.back()) {
    const ImVec2 stop{axes.x(preset.longest), axes.y(double(view.key.budget))};
    list.AddCircleFilled(stop, ui.px(chosen ? 6 : 4.5f), packed(colour));
    list.AddCircle(stop, ui.px(chosen ? 6 : 4.5f), packed({16, 20, 28}), 0, ui.px(1.5f));
  }
}

// Where lines of presets that are named stop fitting: the length, where there is room for it.
void draw_stops(Ui& ui, const Axes& axes, const PlanView& view, const std::string& chosen) {
  std::vector<const PlanView::Preset*> stops;
  for (const PlanView::Preset& preset : view.presets)
    if ((preset.name == chosen || std::ranges::find(kNamed, preset.name) != kNamed.end()) &&
        preset.longest >= view.lengths.front() && preset.longest <= view.lengths.back())
      stops.push_back(&preset);
  std::ranges::sort(stops, {}, [&](const PlanView::Preset* p) { return std::pair(p->name != chosen, p->longest); });
  std::vector<float> taken;
  const float y = axes.y(double(view.key.budget)) - ui.px(14);
  for (const PlanView::Preset* preset : stops) {
    const float x = axes.x(preset->longest);
    if (std::ranges::any_of(taken, [&](float other) { return std::abs(other - x) < ui.px(52); })) continue;
    taken.push_back(x);
    text_at({x, y}, preset->name == chosen ? fonts().text : fonts().small, packed(colour_of_preset(preset->name)),
            grouped(preset->longest), 0.5f);
  }
}

// Names at the right ends of the lines, moved apart where they would overlap.
void draw_names(Ui& ui, const Axes& axes, const PlanView& view, const std::string& chosen) {
  std::vector<std::pair<float, const PlanView::Preset*>> names;
  for (const PlanView::Preset& preset : view.presets)
    if (preset.name == chosen || std::ranges::find(kNamed, preset.name) != kNamed.end())
      names.emplace_back(axes.y(double(preset.curve.back())), &preset);
  std::ranges::sort(names, {}, [](const auto& n) { return n.first; });
  float free = axes.least.y + ui.px(6);
  for (const auto& [y, preset] : names) {
    const float at = std::max(y, free);
    text_at({axes.most.x + ui.px(7), at}, fonts().small, packed(colour_of_preset(preset->name)), preset->name);
    free = at + ui.px(14);
  }
}

void draw_chart(Ui& ui, const PlanView& view, ImVec2 size) {
  const ImVec2 at = ImGui::GetCursorScreenPos();
  ImGui::InvisibleButton("chart", size);
  ui.place("chart");
  const bool hovered = ImGui::IsItemHovered();
  const Axes axes = make_axes(view, at, size, ui);
  ImDrawList& list = *ImGui::GetWindowDrawList();
  draw_grid(ui, axes);
  const float budget = axes.y(double(view.key.budget));
  list.AddRectFilled(axes.least, {axes.most.x, budget}, packed(kBad, 0.07f));
  const std::string& chosen = ui.controller.choices.preset;
  list.PushClipRect(axes.least, axes.most, true);
  for (const PlanView::Preset& preset : view.presets)
    if (preset.name != chosen) draw_curve(ui, axes, view, preset, false);
  for (const PlanView::Preset& preset : view.presets)
    if (preset.name == chosen) draw_curve(ui, axes, view, preset, true);
  list.PopClipRect();
  list.AddLine({axes.least.x, budget}, {axes.most.x, budget}, packed(kBad), ui.px(1.6f));
  text_at({axes.least.x + ui.px(9), budget - ui.px(11)}, fonts().small, packed(kBad),
          fmt::format("{} has {}; above the line nothing fits", view.key.device, format_bytes(view.key.budget)));
  const float length = axes.x(view.key.length);
  list.AddLine({length, axes.least.y}, {length, axes.most.y}, packed(kInk, 0.55f), ui.px(1));
  draw_names(ui, axes, view, chosen);
  draw_stops(ui, axes, view, chosen);

  const ImVec2 mouse = ImGui::GetIO().MousePos;
  if (!hovered || mouse.x < axes.least.x || mouse.x > axes.most.x) return;
  if (ImGui::IsMouseDown(0))
    ui.controller.choices.plan.length = uint32_t(std::clamp(axes.tokens_at(mouse.x) + 0.5, 2.0, double(kLongestPlan)));
  ImGui::SetTooltip("Click to plan for %s tokens", grouped(uint64_t(axes.tokens_at(mouse.x))).c_str());
}

void draw_bar(Ui& ui, const MemoryPlan& plan, uint64_t scale, uint64_t budget) {
  const float width = ui.px(190), height = ui.px(11);
  const ImVec2 at = ImGui::GetCursorScreenPos();
  const float top = at.y + (ImGui::GetTextLineHeight() - height) / 2;
  ImDrawList& list = *ImGui::GetWindowDrawList();
  float left = at.x;
  for (const MemoryLabel label :
       {MemoryLabel::weights, MemoryLabel::activations, MemoryLabel::kv, MemoryLabel::staging}) {
    const float right = left + float(double(plan.bytes(label)) / double(scale)) * width;
    list.AddRectFilled({left, top}, {right, top + height}, packed(colour_of(label)));
    left = right;
  }
  const float limit = at.x + float(double(budget) / double(scale)) * width;
  if (limit <= at.x + width)
    list.AddLine({limit, top - ui.px(3)}, {limit, top + height + ui.px(3)}, packed(kBad), ui.px(2));
  ImGui::Dummy({width, ImGui::GetTextLineHeight()});
}

void draw_row(Ui& ui, const PlanView& view, const PlanView::Preset& preset, uint64_t scale) {
  const bool chosen = preset.name == ui.controller.choices.preset;
  const std::string label = "plan/" + preset.name;
  ImGui::TableNextRow();
  if (chosen) ImGui::TableSetBgColor(ImGuiTableBgTarget_RowBg0, packed(kAccent, 0.16f));
  ImGui::TableNextColumn();
  const ImVec2 at = ImGui::GetCursorScreenPos();
  if (ImGui::Selectable(("##" + preset.name).c_str(), false, ImGuiSelectableFlags_SpanAllColumns))
    ui.controller.choose_preset(preset.name);
  ui.place(label);
  if (ImGui::IsItemHovered()) ImGui::SetTooltip("%s: %s", preset.name.c_str(), preset.what.c_str());
  ImGui::SetCursorScreenPos(at);
  swatch(colour_of_preset(preset.name), preset.name);
  ImGui::TableNextColumn();
  ui.number(label + "/bits", preset.bits_per_value, fmt::format("{:.2f}", preset.bits_per_value));
  ImGui::TableNextColumn();
  ui.bytes(label + "/kv", preset.plan.bytes(MemoryLabel::kv));
  ImGui::TableNextColumn();
  draw_bar(ui, preset.plan, scale, view.key.budget);
  ImGui::TableNextColumn();
  const bool fits = preset.plan.total() <= view.key.budget;
  ImGui::PushStyleColor(ImGuiCol_Text, packed(fits ? kInk : kBad));
  ui.bytes(label + "/total", preset.plan.total());
  ImGui::PopStyleColor();
  for (const MemoryLabel part : {MemoryLabel::weights, MemoryLabel::activations, MemoryLabel::staging})
    ui.drawn.value(label + "/" + std::string(name_of(part)), preset.plan.bytes(part));
  ui.drawn.value(label + "/fits", fits);
  ui.drawn.value(label + "/longest", preset.longest);
  for (size_t i = 0; i < preset.longest_by_size.size(); ++i) {
    const uint32_t longest = preset.longest_by_size[i];
    ImGui::TableNextColumn();
    ImGui::PushStyleColor(ImGuiCol_Text, packed(longest < view.key.length              ? kBad
                                                : official_sizes()[i] == view.key.size ? kInk
                                                                                       : kFaint));
    ui.number(fmt::format("{}/longest/{}", label, official_sizes()[i]), longest,
              longest ? tokens_text(longest) : "none");
    ImGui::PopStyleColor();
  }
}

void draw_table(Ui& ui, const PlanView& view) {
  uint64_t scale = 1;
  for (const PlanView::Preset& preset : view.presets) scale = std::max(scale, preset.plan.total());
  constexpr ImGuiTableFlags kFlags =
      ImGuiTableFlags_RowBg | ImGuiTableFlags_ScrollY | ImGuiTableFlags_SizingFixedFit | ImGuiTableFlags_BordersInnerH;
  if (!ImGui::BeginTable("presets", int(5 + official_sizes().size()), kFlags)) return;
  ImGui::TableSetupScrollFreeze(0, 1);
  for (const char* name : {"cache", "bits", "KV cache", "weights, activations, KV cache", "in all"})
    ImGui::TableSetupColumn(name);
  for (const std::string_view size : official_sizes())
    ImGui::TableSetupColumn(std::string(size).c_str(), ImGuiTableColumnFlags_WidthStretch);
  ImGui::TableHeadersRow();
  for (const PlanView::Preset& preset : view.presets) draw_row(ui, view, preset, scale);
  ImGui::EndTable();
}

void draw_controls(Ui& ui) {
  Choices::Plan& plan = ui.controller.choices.plan;
  std::vector<std::string> sizes(official_sizes().begin(), official_sizes().end());
  sizes.emplace_back(kOpenModel);
  std::string size = plan.size.empty() ? std::string(kOpenModel) : plan.size;
  ImGui::AlignTextToFramePadding();
  faint("Size");
  ImGui::SameLine();
  ImGui::SetNextItemWidth(ui.px(150));
  if (choose(ui, "##size", "plan/size", size, sizes)) plan.size = size == kOpenModel ? "" : size;
  const auto slider = [&](const char* name, const char* id, std::string_view label, uint32_t& value, uint32_t least,
                          uint32_t most) {
    flow(ui, 320, 18);
    faint(name);
    ImGui::SameLine();
    ImGui::SetNextItemWidth(ui.px(240));
    ImGui::SliderScalar(id, ImGuiDataType_U32, &value, &least, &most, "%u",
                        ImGuiSliderFlags_Logarithmic | ImGuiSliderFlags_AlwaysClamp);
    ui.place(label);
    ui.drawn.value(label, value);
  };
  slider("Tokens", "##length", "plan/length", plan.length, 2, kLongestPlan);
  slider("Sequences", "##batch", "plan/batch", plan.batch, 1, kLargestPlanBatch);
}

}  // namespace

void draw_plan_panel(Ui& ui) {
  const PlanView* view = ui.controller.plan_view();
  if (!view) {
    empty_state("No device is open", "What a context takes is planned for the device that is chosen above.");
    return;
  }
  draw_controls(ui);
  ui.drawn.value("plan/budget", view->key.budget);
  ImGui::Spacing();
  const std::string model = view->key.size.empty() ? "the open model" : "ESM-2 " + view->key.size;
  sentence(fmt::format("Memory that {} in {} takes for {} sequences at once, by their length, in every cache", model,
                       name_of(view->key.dtype), view->key.batch));
  const float chart = std::clamp(ImGui::GetContentRegionAvail().y * 0.46f, ui.px(200), ui.px(460));
  draw_chart(ui, *view, {ImGui::GetContentRegionAvail().x, chart});
  sentence(
      fmt::format("At {} tokens x {}; on the right, the longest context of {} sequences that fits on {}, for each size",
                  grouped(view->key.length), view->key.batch, view->key.batch, view->key.device));
  draw_table(ui, *view);
}

}  // namespace turboesm::desktop
