#include "apps/desktop/ui.h"

#include <fmt/format.h>

#include "runtime/format.h"

namespace turboesm::desktop {
namespace {

constexpr float kMemoryWidth = 360, kMessagesHeight = 34;

void draw_tabs(Ui& ui) {
  struct Entry {
    Tab tab;
    const char* name;
    void (*draw)(Ui&);
  };
  constexpr Entry kEntries[] = {{Tab::plan, "Memory plan", draw_plan_panel},
                                {Tab::generate, "Generate", draw_generate_panel},
                                {Tab::substitutions, "Substitutions", draw_substitutions_panel},
                                {Tab::quality, "Cache quality", draw_quality_panel}};
  if (!ImGui::BeginTabBar("tabs")) return;
  for (const Entry& entry : kEntries) {
    const bool wanted = ui.controller.tab_wanted == entry.tab;
    const bool open = ImGui::BeginTabItem(entry.name, nullptr, wanted ? ImGuiTabItemFlags_SetSelected : 0);
    ui.place(fmt::format("tab/{}", kTabNames[size_t(entry.tab)]));
    if (!open) continue;
    ui.controller.tab = entry.tab;
    ui.drawn.value("tab", kTabNames[size_t(entry.tab)]);
    entry.draw(ui);
    ImGui::EndTabItem();
  }
  ui.controller.tab_wanted.reset();
  ImGui::EndTabBar();
}

}  // namespace

void Ui::bytes(std::string_view label, uint64_t bytes) { number(label, bytes, format_bytes(bytes)); }

void Ui::place(std::string_view label) {
  place(label, ImGui::GetItemRectMin(), ImGui::GetItemRectMax());
  if (ImGui::IsItemFocused()) drawn.value("focus", label);
}

void Ui::place(std::string_view label, ImVec2 least, ImVec2 most) {
  drawn.place(label, {least.x, least.y, most.x, most.y});
}

bool button(Ui& ui, const char* text, std::string_view label, bool enabled) {
  ImGui::BeginDisabled(!enabled);
  const bool pressed = ImGui::Button(text);
  ImGui::EndDisabled();
  ui.place(label);
  return pressed && enabled;
}

bool input_text(const char* name, std::string& value, const char* hint) {
  const auto resize = [](ImGuiInputTextCallbackData* data) {
    if (data->EventFlag != ImGuiInputTextFlags_CallbackResize) return 0;
    auto& text = *static_cast<std::string*>(data->UserData);
    text.resize(size_t(data->BufTextLen));
    data->Buf = text.data();
    return 0;
  };
  return ImGui::InputTextWithHint(name, hint, value.data(), value.capacity() + 1,
                                  ImGuiInputTextFlags_CallbackResize | ImGuiInputTextFlags_EnterReturnsTrue, resize,
                                  &value);
}

void title(const char* text) {
  ImGui::PushFont(fonts().title);
  ImGui::TextUnformatted(text);
  ImGui::PopFont();
}

void faint(const std::string& text) {
  ImGui::PushStyleColor(ImGuiCol_Text, packed(kFaint));
  ImGui::TextUnformatted(text.c_str());
  ImGui::PopStyleColor();
}

void sentence(const std::string& text) {
  ImGui::PushTextWrapPos(0);
  faint(text);
  ImGui::PopTextWrapPos();
}

void flow(Ui& ui, float width, float gap) {
  const float edge = ImGui::GetWindowPos().x + ImGui::GetWindowContentRegionMax().x;
  if (ImGui::GetItemRectMax().x + ui.px(gap + width) <= edge) ImGui::SameLine(0, ui.px(gap));
}

ImVec2 text_size(ImFont* font, const std::string& text) {
  return font->CalcTextSizeA(font->FontSize, 1e9f, 0, text.c_str());
}

void text_at(ImVec2 position, ImFont* font, ImU32 colour, const std::string& text, float align_x) {
  const ImVec2 size = text_size(font, text);
  ImGui::GetWindowDrawList()->AddText(font, font->FontSize,
                                      {float(int(position.x - align_x * size.x)), float(int(position.y - size.y / 2))},
                                      colour, text.c_str());
}

void swatch(Colour colour, const std::string& text) {
  const float height = ImGui::GetTextLineHeight(), side = height * 0.62f;
  const ImVec2 at = ImGui::GetCursorScreenPos();
  const float top = at.y + (height - side) / 2;
  ImGui::GetWindowDrawList()->AddRectFilled({at.x, top}, {at.x + side, top + side}, packed(colour), side * 0.25f);
  ImGui::Dummy({side, height});
  ImGui::SameLine(0, height * 0.4f);
  ImGui::TextUnformatted(text.c_str());
}

void empty_state(const char* headline, const char* text) {
  const ImVec2 room = ImGui::GetContentRegionAvail(), at = ImGui::GetCursorScreenPos();
  const ImVec2 middle{at.x + room.x / 2, at.y + room.y * 0.42f};
  text_at(middle, fonts().title, packed(kInk), headline, 0.5f);
  text_at({middle.x, middle.y + fonts().title->FontSize * 1.6f}, fonts().text, packed(kFaint), text, 0.5f);
}

std::string grouped(uint64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

void draw_messages(Ui& ui) {
  const State& state = ui.controller.state;
  ImGui::AlignTextToFramePadding();
  if (state.working) {
    const std::string share = state.progress > 0 ? fmt::format("  {:.0f} %", 100 * state.progress) : "";
    ui.number("working", std::string(state.working->what), fmt::format("{} …{}", state.working->what, share));
    if (state.working->stoppable) {
      ImGui::SameLine();
      if (button(ui, "Stop  (Esc)", "stop")) ui.controller.stop();
    }
    ImGui::SameLine();
  }
  if (state.messages.empty()) {
    faint(state.working ? "" : "ready");
    return;
  }
  const State::Message& message = state.messages.back();
  const std::string first = message.text.substr(0, message.text.find('\n'));
  ui.drawn.value("message", message.text);
  ui.drawn.value("message/error", message.error);
  ImGui::PushStyleColor(ImGuiCol_Text, packed(message.error ? kBad : kFaint));
  ImGui::TextUnformatted(first.c_str());
  ImGui::PopStyleColor();
  ui.place("message");
  if (ImGui::IsItemHovered()) {
    ImGui::BeginTooltip();
    ImGui::PushTextWrapPos(ui.px(700));
    ImGui::TextUnformatted(message.text.c_str());
    ImGui::PopTextWrapPos();
    ImGui::EndTooltip();
  }
}

void draw_interface(Ui& ui) {
  const ImGuiIO& io = ImGui::GetIO();
  ui.drawn.clear();
  ImGui::SetNextWindowPos({0, 0});
  ImGui::SetNextWindowSize(io.DisplaySize);
  ImGui::Begin("turboesm", nullptr,
               ImGuiWindowFlags_NoDecoration | ImGuiWindowFlags_NoMove | ImGuiWindowFlags_NoBringToFrontOnFocus);
  ui.drawn.value("frame", ImGui::GetFrameCount());
  ui.drawn.value("scale", ui.scale);
  ui.drawn.value("text/height", ImGui::GetTextLineHeight());
  ui.drawn.value("width", io.DisplaySize.x);
  ui.drawn.value("height", io.DisplaySize.y);
  draw_header(ui);
  ImGui::Spacing();
  const float height = ImGui::GetContentRegionAvail().y - ui.px(kMessagesHeight);
  ImGui::BeginChild("memory", {ui.px(kMemoryWidth), height}, true, ImGuiWindowFlags_NavFlattened);
  draw_memory_panel(ui);
  ImGui::EndChild();
  ImGui::SameLine();
  ImGui::BeginChild("work", {0, height}, true, ImGuiWindowFlags_NavFlattened);
  draw_tabs(ui);
  ImGui::EndChild();
  draw_messages(ui);
  ImGui::End();
}

}  // namespace turboesm::desktop
