#pragma once

#include <imgui.h>

#include "apps/desktop/colours.h"

namespace turboesm::desktop {

// Style and fonts of the current ImGui context, `scale` times as large as on a screen of 96 dots an inch. Fonts are the
// system's; where none of the known ones is there, ImGui's own.
void apply_theme(float scale);

struct Fonts {
  ImFont *text = nullptr, *small = nullptr, *title = nullptr, *mono = nullptr;
};
const Fonts& fonts();

ImU32 packed(Colour colour, float alpha = 1);

// The interface's own colours.
inline constexpr Colour kInk{224, 229, 238}, kFaint{134, 146, 166}, kLine{48, 56, 72}, kPanel{22, 27, 37},
    kAccent{64, 224, 170}, kBad{255, 110, 104};

}  // namespace turboesm::desktop
