#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "apps/desktop/heat_map.h"
#include "apps/desktop/ui.h"
#include "runtime/format.h"

namespace turboesm::desktop {
namespace {

void draw_controls(Ui& ui) {
  Controller& c = ui.controller;
  Choices::Generation& g = c.choices.generation;
  ImGui::SetNextItemWidth(-1);
  input_text("##prompt", g.prompt, "prompt: residues to go on from; empty: from the very start");
  ui.place("generate/prompt");
  ui.drawn.value("generate/prompt", g.prompt);
  bool first = true;
  const auto number = [&](const char* name, const char* id, std::string_view label, uint32_t& value, uint32_t least,
                          uint32_t most) {
    if (!first) flow(ui, 190);
    first = false;
    faint(name);
    ImGui::SameLine();
    ImGui::SetNextItemWidth(ui.px(116));
    const uint32_t step = 1;
    if (ImGui::InputScalar(id, ImGuiDataType_U32, &value, &step)) value = std::clamp(value, least, most);
    ui.place(label);
    ui.drawn.value(label, value);
  };
  const auto slider = [&](const char* name, const char* id, std::string_view label, float& value, float least,
                          float most) {
    flow(ui, 190);
    faint(name);
    ImGui::SameLine();
    ImGui::SetNextItemWidth(ui.px(96));
    ImGui::SliderFloat(id, &value, least, most, "%.2f", ImGuiSliderFlags_AlwaysClamp);
    ui.place(label);
    ui.drawn.value(label, value);
  };
  ImGui::AlignTextToFramePadding();
  number("Residues", "##length", "generate/length", g.length, 1, kLongestGeneration);
  number("Proteins", "##count", "generate/count", g.count, 1, kLargestCount);
  slider("Temperature", "##temperature", "generate/temperature", g.temperature, 0, 2);
  slider("Top-p", "##top_p", "generate/top_p", g.top_p, 0.01f, 1);
  number("Seed", "##seed", "generate/seed", g.seed, 0, ~0u);
  flow(ui, 172);
  const bool running = c.state.generation && c.state.generation->running;
  if (running) {
    if (button(ui, "Stop", "generate/stop")) c.stop();
  } else if (button(ui, "Generate  (Ctrl+Enter)", "generate/start", c.state.opened.has_value() && !c.state.working)) {
    c.generate();
  }
}

void draw_legend(Ui& ui) {
  for (const Chemistry chemistry : kChemistries) {
    swatch(colour_of(chemistry), std::string(name_of(chemistry)));
    ImGui::SameLine(0, ui.px(16));
  }
  ImGui::NewLine();
}

// The residue under the mouse, or the last one drawn.
struct Spot {
  size_t protein = 0, position = 0;  // from 0
  bool hovered = false;
};

void draw_residues(Ui& ui, const Generation& g, Spot& spot) {
  ImFont* font = fonts().mono;
  const float cell = text_size(font, "M").x + ui.px(2), line = font->FontSize * 1.45f, gap = ui.px(7);
  const float margin = ui.px(64);
  const uint32_t per_line =
      uint32_t(std::max(10.0f, std::floor((ImGui::GetContentRegionAvail().x - margin) / (cell * 10 + gap)) * 10));
  ImDrawList& list = *ImGui::GetWindowDrawList();
  const ImVec2 mouse = ImGui::GetIO().MousePos;
  const bool over = ImGui::IsWindowHovered();
  for (size_t p = 0; p < g.proteins.size(); ++p) {
    const GrowingProtein& protein = g.proteins[p];
    const std::string end = protein.stopped ? ", ended by the model" : "";
    faint(fmt::format("protein {}: {} residues{}", p + 1, protein.residues.size(), end));
    ui.drawn.value(fmt::format("generated/{}", p), protein.residues);
    const ImVec2 at = ImGui::GetCursorScreenPos();
    const size_t lines = std::max<size_t>(1, (protein.residues.size() + per_line - 1) / per_line);
    for (size_t i = 0; i < protein.residues.size(); ++i) {
      const size_t row = i / per_line, column = i % per_line;
      const ImVec2 least{at.x + margin + float(column) * cell + float(column / 10) * gap, at.y + float(row) * line};
      const ImVec2 most{least.x + cell, least.y + line};
      if (column == 0)
        text_at({at.x + margin - ui.px(10), least.y + line / 2}, fonts().small, packed(kFaint), std::to_string(i + 1),
                1);
      if (!ImGui::IsRectVisible(least, most)) continue;
      const Colour colour = colour_of(chemistry_of(protein.residues[i]));
      const bool drawn = i >= protein.prompt;
      if (over && mouse.x >= least.x && mouse.x < most.x && mouse.y >= least.y && mouse.y < most.y) {
        spot = {p, i, true};
        list.AddRect(least, most, packed(kInk), ui.px(3));
      }
      if (drawn)
        list.AddRectFilled({least.x + 1, least.y + 1}, {most.x - 1, most.y - 1}, packed(colour, 0.22f), ui.px(2));
      text_at({(least.x + most.x) / 2, (least.y + most.y) / 2}, font, packed(colour, drawn ? 1 : 0.6f),
              std::string(1, protein.residues[i]), 0.5f);
      ui.place(fmt::format("residue/{}/{}", p, i), least, most);
    }
    ImGui::Dummy({1, float(lines) * line + ui.px(4)});
  }
  if (g.running && ImGui::GetScrollY() >= ImGui::GetScrollMaxY() - line) ImGui::SetScrollHereY(1);
}

void draw_probabilities(Ui& ui, const Generation& g, const Spot& spot) {
  const GrowingProtein& protein = g.proteins[spot.protein];
  const float height = ui.px(112), width = ImGui::GetContentRegionAvail().x;
  if (spot.position < protein.prompt || spot.position - protein.prompt >= protein.drawn_from.size()) {
    faint(spot.hovered ? "This residue was given with the prompt."
                       : "The probabilities of the 20 amino acids appear here.");
    return;
  }
  const AminoAcidDistribution& p = protein.drawn_from[spot.position - protein.prompt];
  sentence(fmt::format("Residue {} of protein {}{}: what the model found likely there", spot.position + 1,
                       spot.protein + 1, spot.hovered ? "" : " (the last; point at another)"));
  ui.drawn.value("probabilities/protein", spot.protein);
  ui.drawn.value("probabilities/position", spot.position);
  const ImVec2 at = ImGui::GetCursorScreenPos();
  ImDrawList& list = *ImGui::GetWindowDrawList();
  const float step = width / float(kAminoAcids), bottom = at.y + height - ui.px(18), room = bottom - at.y - ui.px(18);
  const float most = std::exp(*std::ranges::max_element(p));
  for (uint32_t row = 0; row < kAminoAcids; ++row) {
    const char letter = kRowLetters[row];
    const float probability = std::exp(p[amino_acid_of_row(row)]);
    const Colour colour = colour_of(chemistry_of(letter));
    const float left = at.x + float(row) * step + step * 0.14f, right = at.x + float(row + 1) * step - step * 0.14f;
    const float top = bottom - room * probability / most;
    const bool taken = letter == protein.residues[spot.position];
    list.AddRectFilled({left, top}, {right, bottom}, packed(colour, taken ? 1 : 0.55f), ui.px(2));
    if (taken) list.AddRect({left - 2, top - 2}, {right + 2, bottom + 2}, packed(kInk), ui.px(2));
    text_at({(left + right) / 2, bottom + ui.px(9)}, fonts().text, packed(colour), std::string(1, letter), 0.5f);
    text_at({(left + right) / 2, top - ui.px(8)}, fonts().small, packed(kFaint),
            fmt::format("{:.1f}%", 100 * probability), 0.5f);
    ui.drawn.value(fmt::format("probabilities/{}", letter), probability);
  }
  ImGui::Dummy({width, height});
}

void draw_rates(Ui& ui, const Generation& g) {
  ui.drawn.value("generate/drawn", g.drawn);
  ui.drawn.value("generate/seconds", g.seconds);
  ui.drawn.value("generate/rate", g.residues_per_second());
  ui.drawn.value("generate/running", g.running);
  ImGui::PushFont(fonts().title);
  ImGui::TextUnformatted(fmt::format("{} residues/s", format_count(g.residues_per_second())).c_str());
  ImGui::PopFont();
  ImGui::SameLine(0, ui.px(16));
  sentence(fmt::format("{} residues in {:.1f} s{}{} on the {} cache, which holds {} of {} tokens", grouped(g.drawn),
                       g.seconds, g.running ? " so far" : "", g.report || g.running ? "" : ", then stopped,", g.preset,
                       grouped(g.cached_tokens), grouped(g.cache_capacity)));
}

}  // namespace

void draw_generate_panel(Ui& ui) {
  draw_controls(ui);
  const State& state = ui.controller.state;
  if (!state.generation) {
    empty_state("No protein yet",
                "Generate draws residue after residue on the chosen cache; they appear here as they are decoded.");
    return;
  }
  const Generation& g = *state.generation;
  draw_rates(ui, g);
  draw_legend(ui);
  Spot spot;
  for (size_t p = 0; p < g.proteins.size(); ++p)
    if (!g.proteins[p].residues.empty()) {
      spot = {p, g.proteins[p].residues.size() - 1, false};
      break;
    }
  ImGui::BeginChild("residues", {0, ImGui::GetContentRegionAvail().y - ui.px(150)});
  draw_residues(ui, g, spot);
  ImGui::EndChild();
  draw_probabilities(ui, g, spot);
}

}  // namespace turboesm::desktop
