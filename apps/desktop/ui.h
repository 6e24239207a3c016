#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "apps/desktop/controller.h"
#include "apps/desktop/drawn.h"
#include "apps/desktop/theme.h"

// What the panels are made of, and the panels themselves.
namespace turboesm::desktop {

// What a panel draws with: the controller whose state it shows and whose functions it calls, the record of what is
// drawn, and the scale of sizes in pixels.
struct Ui {
  Controller& controller;
  Drawn& drawn;
  float scale;

  float px(float size) const { return size * scale; }

  // Text, with the value behind it recorded under `label`.
  void bytes(std::string_view label, uint64_t bytes);
  template <class T>
  void number(std::string_view label, const T& value, const std::string& text) {
    drawn.value(label, value);
    ImGui::TextUnformatted(text.c_str());
  }
  // Records where the last item lies.
  void place(std::string_view label);
  void place(std::string_view label, ImVec2 least, ImVec2 most);
};

// A button that is recorded under `label`.
bool button(Ui& ui, const char* text, std::string_view label, bool enabled = true);
// A drop-down list of texts; true when another is chosen.
template <class Items>
bool choose(Ui& ui, const char* name, std::string_view label, std::string& value, const Items& items) {
  bool changed = false;
  if (ImGui::BeginCombo(name, value.c_str())) {
    for (const auto& item : items) {
      const bool selected = value == item;
      if (ImGui::Selectable(std::string(item).c_str(), selected)) changed = value != item, value = std::string(item);
      if (selected) ImGui::SetItemDefaultFocus();
    }
    ImGui::EndCombo();
  }
  ui.place(label);
  ui.drawn.value(label, value);
  return changed;
}
bool input_text(const char* name, std::string& value, const char* hint = "");

// What follows goes on the same line where `width` (unscaled) is left of it.
void flow(Ui& ui, float width, float gap = 14);

void title(const char* text);
void faint(const std::string& text);
void sentence(const std::string& text);  // faint, too; broken where the line ends
void text_at(ImVec2 position, ImFont* font, ImU32 colour, const std::string& text, float align_x = 0);
ImVec2 text_size(ImFont* font, const std::string& text);
void swatch(Colour colour, const std::string& text);  // a legend's entry
void empty_state(const char* headline, const char* text);

// 1,234,567
std::string grouped(uint64_t value);

void draw_header(Ui& ui);
void draw_memory_panel(Ui& ui);
void draw_plan_panel(Ui& ui);
void draw_generate_panel(Ui& ui);
void draw_substitutions_panel(Ui& ui);
void draw_quality_panel(Ui& ui);
void draw_messages(Ui& ui);

// The whole window.
void draw_interface(Ui& ui);

}  // namespace turboesm::desktop
