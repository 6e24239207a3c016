#include <algorithm>

#include <fmt/format.h>

#include "apps/desktop/heat_map.h"
#include "apps/desktop/ui.h"

namespace turboesm::desktop {
namespace {

void draw_source(Ui& ui) {
  Controller& c = ui.controller;
  const bool ready = c.state.opened.has_value();
  ImGui::SetNextItemWidth(std::min(ui.px(520), ImGui::GetContentRegionAvail().x - ui.px(80)));
  const bool entered = input_text("##sequence", c.pasted, "paste a sequence, or drop a FASTA file on the window");
  ui.place("map/sequence");
  ImGui::SameLine();
  if ((button(ui, "Map", "map/start", ready && !c.pasted.empty()) || entered) && ready && !c.pasted.empty())
    c.map({"pasted", c.pasted});
  if (!c.state.records) return;
  const event::Records& records = *c.state.records;
  flow(ui, 360, 18);
  faint("from " + records.path.filename().string());
  ImGui::SameLine();
  ImGui::SetNextItemWidth(-1);
  const std::string shown = c.subject ? c.subject->name : "";
  if (ImGui::BeginCombo("##record", shown.c_str())) {
    for (const Protein& protein : records.proteins) {
      const std::string text = fmt::format("{}   {} residues", protein.name, protein.sequence.size());
      if (ImGui::Selectable(text.c_str(), protein.name == shown)) c.map(protein);
    }
    ImGui::EndCombo();
  }
  ui.place("map/record");
  ui.drawn.value("map/records", records.proteins.size());
}

void draw_scale(Ui& ui, const HeatMap& heat) {
  const float width = ui.px(220), height = ui.px(12);
  const double strongest = heat.strongest();
  faint(heat.log_odds ? fmt::format("less likely, {:+.0f}", -strongest) : fmt::format("logit {:+.0f}", -strongest));
  ImGui::SameLine();
  const ImVec2 at = ImGui::GetCursorScreenPos();
  const float top = at.y + (ImGui::GetTextLineHeight() - height) / 2;
  constexpr int kSteps = 44;
  for (int i = 0; i < kSteps; ++i)
    ImGui::GetWindowDrawList()->AddRectFilled({at.x + width * float(i) / kSteps, top},
                                              {at.x + width * float(i + 1) / kSteps, top + height},
                                              packed(diverging(2.0 * i / (kSteps - 1) - 1)));
  ImGui::Dummy({width, ImGui::GetTextLineHeight()});
  ImGui::SameLine();
  faint(heat.log_odds ? fmt::format("{:+.0f} nats, likelier than the residue that is there", strongest)
                      : fmt::format("{:+.0f}", strongest));
}

void draw_map(Ui& ui, const HeatMap& heat) {
  const std::string& sequence = heat.map.sequence;
  const float room = ImGui::GetContentRegionAvail().y - ui.px(64);
  const float cell_y = std::clamp(room / float(kAminoAcids), ui.px(12), ui.px(34)),
              cell_x = std::min(cell_y, ui.px(21));
  const float margin = ui.px(28);
  ImGui::BeginChild("map", {0, cell_y * kAminoAcids + ui.px(64)}, false, ImGuiWindowFlags_HorizontalScrollbar);
  const ImVec2 at = ImGui::GetCursorScreenPos();
  const ImVec2 size{margin + cell_x * float(sequence.size()), cell_y * kAminoAcids + ui.px(40)};
  ImGui::InvisibleButton("cells", size);
  const bool hovered = ImGui::IsItemHovered();
  ImDrawList& list = *ImGui::GetWindowDrawList();
  const float left = ImGui::GetWindowPos().x, right = left + ImGui::GetWindowSize().x;
  const float axis = at.y + cell_y * kAminoAcids;
  for (uint32_t i = 0; i < sequence.size(); ++i) {
    const float x = at.x + margin + float(i) * cell_x;
    if (x + cell_x < left || x > right) continue;
    for (uint32_t row = 0; row < kAminoAcids; ++row) {
      const float y = at.y + float(row) * cell_y;
      list.AddRectFilled({x, y}, {x + cell_x - 1, y + cell_y - 1}, packed(heat.colour(i, row)));
      if (kRowLetters[row] == sequence[i])
        list.AddCircleFilled({x + cell_x / 2 - 0.5f, y + cell_y / 2}, ui.px(2.2f), packed(kInk));
    }
    text_at({x + cell_x / 2, axis + ui.px(10)}, fonts().mono, packed(colour_of(chemistry_of(sequence[i]))),
            std::string(1, sequence[i]), 0.5f);
    if ((i + 1) % 10 == 0)
      text_at({x + cell_x / 2, axis + ui.px(27)}, fonts().small, packed(kFaint), std::to_string(i + 1), 0.5f);
  }
  // The letters stay where they are while the map scrolls below them.
  list.AddRectFilled({left, at.y}, {left + margin, axis}, packed(kPanel));
  for (uint32_t row = 0; row < kAminoAcids; ++row)
    text_at({left + margin / 2, at.y + (float(row) + 0.5f) * cell_y}, fonts().mono,
            packed(colour_of(chemistry_of(kRowLetters[row]))), std::string(1, kRowLetters[row]), 0.5f);
  ui.place("map/cells", {at.x + margin, at.y}, {at.x + size.x, axis});

  const ImVec2 mouse = ImGui::GetIO().MousePos;
  const float column = (mouse.x - at.x - margin) / cell_x, line = (mouse.y - at.y) / cell_y;
  if (hovered && mouse.x > left + margin && column >= 0 && column < float(sequence.size()) && line >= 0 &&
      line < kAminoAcids) {
    const uint32_t i = uint32_t(column), row = uint32_t(line);
    ui.drawn.value("map/under_mouse", heat.value(i, row));
    ImGui::SetTooltip("%c%u%c   %+.3f", sequence[i], i + 1, kRowLetters[row], heat.value(i, row));
  }
  ImGui::EndChild();
}

}  // namespace

void draw_substitutions_panel(Ui& ui) {
  Controller& c = ui.controller;
  draw_source(ui);
  if (!c.state.map) {
    empty_state("No protein is mapped yet",
                "For each residue, which of the 20 amino acids the model finds likely in its place.");
    return;
  }
  const event::Map& map = *c.state.map;
  ui.drawn.value("map/name", map.name);
  ui.drawn.value("map/residues", map.map.sequence.size());
  title(fmt::format("{}, {} residues", map.name, map.map.sequence.size()).c_str());
  flow(ui, 200, 20);
  if (ImGui::RadioButton("log-odds", c.log_odds)) c.log_odds = true;
  ui.place("map/log_odds");
  ImGui::SameLine();
  if (ImGui::RadioButton("logits", !c.log_odds)) c.log_odds = false;
  ui.place("map/logits");
  flow(ui, 470, 20);
  ImGui::SetNextItemWidth(ui.px(260));
  input_text("##save", c.save_as, "file to save as");
  ui.place("map/save_as");
  ImGui::SameLine();
  if (button(ui, "Save PNG", "map/save_png")) c.save(c.save_path(".png"));
  ImGui::SameLine();
  if (button(ui, "Save CSV", "map/save_csv")) c.save(c.save_path(".csv"));
  const HeatMap heat{map.map, c.log_odds};
  draw_scale(ui, heat);
  draw_map(ui, heat);
}

}  // namespace turboesm::desktop
