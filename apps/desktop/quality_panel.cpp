#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "apps/desktop/ui.h"
#include "model/tokenizer.h"

namespace turboesm::desktop {
namespace {

void draw_controls(Ui& ui) {
  Controller& c = ui.controller;
  const std::vector<Protein> all = c.proteins();
  ImGui::AlignTextToFramePadding();
  faint("Protein");
  ImGui::SameLine();
  ImGui::SetNextItemWidth(ui.px(320));
  if (!c.quality_subject && !all.empty()) c.quality_subject = all.front();
  const std::string shown = c.quality_subject ? c.quality_subject->name : "";
  if (ImGui::BeginCombo("##protein", shown.c_str())) {
    for (const Protein& protein : all)
      if (ImGui::Selectable(fmt::format("{}   {} residues", protein.name, protein.sequence.size()).c_str(),
                            protein.name == shown))
        c.quality_subject = protein;
    ImGui::EndCombo();
  }
  ui.place("quality/protein");
  flow(ui, 190);
  const bool ready = c.state.opened && !c.state.working && c.quality_subject;
  const std::string& preset = c.choices.preset;
  if (button(ui, fmt::format("Compare {} with f32", preset).c_str(), "quality/start", ready))
    c.compare(*c.quality_subject, {preset});
  flow(ui, 190);
  if (button(ui, "Compare every preset", "quality/all", ready)) {
    std::vector<std::string> presets;
    for (const KvPresetRow& row : kv_presets())
      if (row.name != "f32") presets.emplace_back(row.name);
    c.compare(*c.quality_subject, presets);
  }
}

void draw_positions(Ui& ui, const event::Compared& compared, float height) {
  const ImVec2 at = ImGui::GetCursorScreenPos();
  const float width = ImGui::GetContentRegionAvail().x, margin = ui.px(64);
  ImDrawList& list = *ImGui::GetWindowDrawList();
  const ImVec2 least{at.x + margin, at.y + ui.px(8)}, most{at.x + width, at.y + height - ui.px(44)};
  list.AddRectFilled(least, most, packed({16, 20, 28}), ui.px(3));
  double top = 1e-6;
  for (const PositionAgreement& p : compared.positions) top = std::max(top, p.kl);
  top *= 1.1;
  for (int i = 0; i <= 4; ++i) {
    const float y = most.y - (most.y - least.y) * float(i) / 4;
    list.AddLine({least.x, y}, {most.x, y}, packed(kLine, 0.7f));
    text_at({least.x - ui.px(7), y}, fonts().small, packed(kFaint), fmt::format("{:.2g}", top * i / 4), 1);
  }
  const float step = (most.x - least.x) / float(std::max<size_t>(1, compared.positions.size()));
  const ImVec2 mouse = ImGui::GetIO().MousePos;
  const bool letters = step >= ui.px(9);
  for (size_t i = 0; i < compared.positions.size(); ++i) {
    const PositionAgreement& p = compared.positions[i];
    const float x = least.x + float(i) * step;
    const bool same = p.top == p.top_f32;
    const Colour colour = same ? colour_of_preset(compared.preset) : kBad;
    const float y = most.y - (most.y - least.y) * float(std::max(p.kl, 0.0) / top);
    list.AddRectFilled({x + step * 0.1f, std::min(y, most.y - ui.px(1.5f))}, {x + step * 0.9f, most.y}, packed(colour));
    if (!same)
      list.AddTriangleFilled({x + step / 2 - ui.px(3), most.y + ui.px(7)}, {x + step / 2 + ui.px(3), most.y + ui.px(7)},
                             {x + step / 2, most.y + ui.px(2)}, packed(kBad));
    const char residue = compared.protein.sequence[p.position - 1];
    if (letters)
      text_at({x + step / 2, most.y + ui.px(16)}, fonts().small, packed(colour_of(chemistry_of(residue))),
              std::string(1, residue), 0.5f);
    if (p.position % 10 == 0)
      text_at({x + step / 2, most.y + ui.px(31)}, fonts().small, packed(kFaint), std::to_string(p.position), 0.5f);
    ui.drawn.value(fmt::format("quality/kl/{}", p.position), p.kl);
    if (ImGui::IsWindowHovered() && mouse.x >= x && mouse.x < x + step && mouse.y >= least.y && mouse.y <= most.y)
      ImGui::SetTooltip("%c%u: KL %.5f nats; likeliest %c, with the f32 cache %c", residue, p.position, p.kl,
                        Tokenizer::esm2().letter(p.top), Tokenizer::esm2().letter(p.top_f32));
  }
  ImGui::Dummy({width, height});
}

void draw_table(Ui& ui, const State& state) {
  constexpr ImGuiTableFlags kFlags =
      ImGuiTableFlags_RowBg | ImGuiTableFlags_ScrollY | ImGuiTableFlags_SizingFixedFit | ImGuiTableFlags_BordersInnerH;
  if (!ImGui::BeginTable("compared", 6, kFlags)) return;
  ImGui::TableSetupScrollFreeze(0, 1);
  for (const char* name : {"cache", "bits a value", "mean KL, nats", "99th percentile", "same top-1"})
    ImGui::TableSetupColumn(name);
  ImGui::TableSetupColumn("mean KL", ImGuiTableColumnFlags_WidthStretch);
  ImGui::TableHeadersRow();
  double most = 1e-9;
  for (const auto& [preset, compared] : state.compared) most = std::max(most, compared.summary.kl_mean);
  std::vector<const event::Compared*> rows;
  for (const auto& [preset, compared] : state.compared) rows.push_back(&compared);
  std::ranges::sort(rows, {}, [](const event::Compared* row) { return row->summary.kl_mean; });
  for (const event::Compared* compared : rows) {
    const std::string label = "quality/" + compared->preset;
    ImGui::TableNextRow();
    if (compared->preset == ui.controller.choices.preset)
      ImGui::TableSetBgColor(ImGuiTableBgTarget_RowBg0, packed(kAccent, 0.16f));
    ImGui::TableNextColumn();
    swatch(colour_of_preset(compared->preset), compared->preset);
    ImGui::TableNextColumn();
    ui.number(label + "/bits", compared->bits_per_value, fmt::format("{:.2f}", compared->bits_per_value));
    ImGui::TableNextColumn();
    ui.number(label + "/kl", compared->summary.kl_mean, fmt::format("{:.5f}", compared->summary.kl_mean));
    ImGui::TableNextColumn();
    ui.number(label + "/kl_p99", compared->summary.kl_p99, fmt::format("{:.4f}", compared->summary.kl_p99));
    ImGui::TableNextColumn();
    ui.number(label + "/top1", compared->summary.top1, fmt::format("{:.1f} %", 100 * compared->summary.top1));
    ImGui::TableNextColumn();
    const ImVec2 at = ImGui::GetCursorScreenPos();
    const float width = ImGui::GetContentRegionAvail().x * float(std::max(0.0, compared->summary.kl_mean) / most);
    ImGui::GetWindowDrawList()->AddRectFilled({at.x, at.y + ui.px(3)}, {at.x + width, at.y + ui.px(14)},
                                              packed(colour_of_preset(compared->preset)), ui.px(2));
  }
  ImGui::EndTable();
}

}  // namespace

void draw_quality_panel(Ui& ui) {
  draw_controls(ui);
  const State& state = ui.controller.state;
  if (state.compared.empty()) {
    empty_state("Nothing is compared yet",
                "The second half of a protein is decoded on the chosen cache and on the f32 cache; what the model then "
                "says is compared, residue by residue.");
    return;
  }
  const auto found = state.compared.find(ui.controller.choices.preset);
  if (found == state.compared.end()) {
    faint(fmt::format("{} was not compared for {} yet", ui.controller.choices.preset, state.compared_protein.name));
  } else {
    const event::Compared& compared = found->second;
    ui.drawn.value("quality/positions", compared.positions.size());
    title(fmt::format("{}: what the {} cache changes", compared.protein.name, compared.preset).c_str());
    sentence(
        "KL divergence from the f32 cache, nats, at each residue of the second half; red where another amino acid is "
        "the likeliest");
    draw_positions(ui, compared, std::clamp(ImGui::GetContentRegionAvail().y * 0.5f, ui.px(160), ui.px(380)));
  }
  draw_table(ui, state);
}

}  // namespace turboesm::desktop
