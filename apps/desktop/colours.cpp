#include "apps/desktop/colours.h"

#include <algorithm>
#include <cmath>
#include <string_view>

namespace turboesm::desktop {
namespace {

Colour mix(Colour a, Colour b, double share) {
  const auto channel = [&](uint8_t x, uint8_t y) { return uint8_t(std::lround(x + (y - x) * share)); };
  return {channel(a.red, b.red), channel(a.green, b.green), channel(a.blue, b.blue)};
}

}  // namespace

Chemistry chemistry_of(char residue) {
  const auto in = [&](std::string_view letters) { return letters.find(residue) != letters.npos; };
  return in("AVLIM")  ? Chemistry::hydrophobic
         : in("FWY")  ? Chemistry::aromatic
         : in("STNQ") ? Chemistry::polar
         : in("KRH")  ? Chemistry::basic
         : in("DE")   ? Chemistry::acidic
         : in("GPC")  ? Chemistry::special
                      : Chemistry::other;
}

std::string_view name_of(Chemistry chemistry) {
  switch (chemistry) {
    case Chemistry::hydrophobic: return "hydrophobic";
    case Chemistry::aromatic: return "aromatic";
    case Chemistry::polar: return "polar";
    case Chemistry::basic: return "basic";
    case Chemistry::acidic: return "acidic";
    case Chemistry::special: return "G, P, C";
    case Chemistry::other: return "other";
  }
  return "?";
}

Colour colour_of(Chemistry chemistry) {
  switch (chemistry) {
    case Chemistry::hydrophobic: return {240, 196, 92};
    case Chemistry::aromatic: return {201, 140, 240};
    case Chemistry::polar: return {110, 214, 150};
    case Chemistry::basic: return {106, 167, 255};
    case Chemistry::acidic: return {255, 117, 117};
    case Chemistry::special: return {242, 160, 202};
    case Chemistry::other: return {150, 158, 172};
  }
  return {};
}

Colour colour_of(MemoryLabel label) {
  switch (label) {
    case MemoryLabel::weights: return {91, 141, 239};
    case MemoryLabel::activations: return {240, 176, 74};
    case MemoryLabel::kv: return {71, 201, 160};
    case MemoryLabel::staging: return {176, 124, 224};
  }
  return {};
}

// A colour for each family of presets, lighter with more bits within it.
Colour colour_of_preset(std::string_view preset) {
  const auto is = [&](std::string_view family) { return preset.substr(0, family.size()) == family; };
  if (preset == "f32") return {236, 239, 244};
  if (preset == "f16") return {170, 180, 196};
  if (preset == "int8") return {255, 138, 128};
  if (preset == "int4") return {214, 86, 86};
  if (is("wht3")) return {196, 148, 255};
  if (is("turboquant")) return {96, 108, 128};
  if (is("turboesm")) return {245, 183, 66};
  if (preset == "turbo-l") return {158, 240, 212};
  if (preset == "turbo") return {64, 224, 170};
  if (preset == "turbo-s") return {70, 190, 220};
  return {80, 140, 240};  // turbo-xs
}

Colour diverging(double value) {
  constexpr Colour kLow{44, 104, 204}, kMiddle{20, 24, 33}, kHigh{255, 150, 46};
  const double share = std::clamp(std::abs(value), 0.0, 1.0);
  return mix(kMiddle, value < 0 ? kLow : kHigh, share);
}

}  // namespace turboesm::desktop
