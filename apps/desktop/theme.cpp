#include "apps/desktop/theme.h"

#include <array>
#include <filesystem>
#include <string>

namespace turboesm::desktop {
namespace {

constexpr float kTextPixels = 15, kSmallPixels = 12.5f, kTitlePixels = 19;

constexpr std::array kSansFiles = {"/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
                                   "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
                                   "/usr/share/fonts/TTF/DejaVuSans.ttf",
                                   "/usr/share/fonts/truetype/noto/NotoSans-Regular.ttf",
                                   "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf",
                                   "/System/Library/Fonts/Supplemental/Arial.ttf",
                                   "C:/Windows/Fonts/segoeui.ttf"};
constexpr std::array kMonoFiles = {"/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf",
                                   "/usr/share/fonts/dejavu-sans-mono-fonts/DejaVuSansMono.ttf",
                                   "/usr/share/fonts/TTF/DejaVuSansMono.ttf",
                                   "/usr/share/fonts/truetype/noto/NotoSansMono-Regular.ttf",
                                   "/usr/share/fonts/truetype/liberation/LiberationMono-Regular.ttf",
                                   "/System/Library/Fonts/Menlo.ttc",
                                   "C:/Windows/Fonts/consola.ttf"};

// Latin, the punctuation and the arithmetic that the panels use.
constexpr ImWchar kGlyphs[] = {0x20, 0x17f, 0x2010, 0x2026, 0x2190, 0x21ff, 0x2200, 0x22ff, 0};

template <size_t N>
ImFont* load_font(const std::array<const char*, N>& files, float pixels) {
  ImFontAtlas& atlas = *ImGui::GetIO().Fonts;
  for (const char* file : files) {
    std::error_code ignored;
    if (std::filesystem::exists(file, ignored)) return atlas.AddFontFromFileTTF(file, pixels, nullptr, kGlyphs);
  }
  ImFontConfig config;
  config.SizePixels = pixels;
  return atlas.AddFontDefault(&config);
}

// Fonts belong to the one ImGui context, which has no place for a name.
Fonts& loaded_fonts() {
  static Fonts loaded;
  return loaded;
}

ImVec4 vector_of(Colour c, float alpha = 1) {
  return {float(c.red) / 255, float(c.green) / 255, float(c.blue) / 255, alpha};
}

}  // namespace

void apply_theme(float scale) {
  loaded_fonts() = {load_font(kSansFiles, kTextPixels * scale), load_font(kSansFiles, kSmallPixels * scale),
                    load_font(kSansFiles, kTitlePixels * scale), load_font(kMonoFiles, kTextPixels * scale)};

  ImGui::StyleColorsDark();
  ImGuiStyle& style = ImGui::GetStyle();
  style.WindowPadding = {14, 12};
  style.FramePadding = {9, 5};
  style.ItemSpacing = {9, 7};
  style.ItemInnerSpacing = {7, 5};
  style.FrameRounding = style.GrabRounding = style.PopupRounding = style.TabRounding = 5;
  style.ChildRounding = 8;
  style.WindowBorderSize = 0;
  style.ChildBorderSize = 1;
  style.ScrollbarSize = 12;
  style.CellPadding = {8, 3};
  style.ScaleAllSizes(scale);
  ImVec4* colours = style.Colors;
  constexpr Colour kBackground{14, 17, 23}, kField{35, 42, 56}, kFieldHovered{46, 56, 74}, kButton{44, 62, 80};
  colours[ImGuiCol_Text] = vector_of(kInk);
  colours[ImGuiCol_TextDisabled] = vector_of(kFaint);
  colours[ImGuiCol_WindowBg] = vector_of(kBackground);
  colours[ImGuiCol_ChildBg] = vector_of(kPanel);
  colours[ImGuiCol_PopupBg] = vector_of({27, 33, 45});
  colours[ImGuiCol_Border] = vector_of(kLine);
  colours[ImGuiCol_FrameBg] = vector_of(kField);
  colours[ImGuiCol_FrameBgHovered] = colours[ImGuiCol_FrameBgActive] = vector_of(kFieldHovered);
  colours[ImGuiCol_Button] = colours[ImGuiCol_Header] = vector_of(kButton);
  colours[ImGuiCol_ButtonHovered] = colours[ImGuiCol_HeaderHovered] = vector_of({56, 82, 104});
  colours[ImGuiCol_ButtonActive] = colours[ImGuiCol_HeaderActive] = vector_of({66, 98, 124});
  colours[ImGuiCol_SliderGrab] = colours[ImGuiCol_CheckMark] = vector_of(kAccent);
  colours[ImGuiCol_SliderGrabActive] = vector_of({120, 244, 204});
  colours[ImGuiCol_Tab] = vector_of(kBackground);
  colours[ImGuiCol_TabHovered] = vector_of({56, 82, 104});
  colours[ImGuiCol_TabActive] = vector_of({38, 56, 70});
  colours[ImGuiCol_Separator] = vector_of(kLine);
  colours[ImGuiCol_PlotHistogram] = vector_of(kAccent);
  colours[ImGuiCol_TableRowBg] = {0, 0, 0, 0};
  colours[ImGuiCol_TableRowBgAlt] = {1, 1, 1, 0.02f};
  colours[ImGuiCol_TableHeaderBg] = vector_of(kPanel);
  colours[ImGuiCol_TableBorderLight] = colours[ImGuiCol_TableBorderStrong] = vector_of(kLine);
  colours[ImGuiCol_NavHighlight] = vector_of(kAccent);
}

const Fonts& fonts() { return loaded_fonts(); }

ImU32 packed(Colour c, float alpha) { return IM_COL32(c.red, c.green, c.blue, int(alpha * 255 + 0.5f)); }

}  // namespace turboesm::desktop
