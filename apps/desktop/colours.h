#pragma once

#include <cstdint>
#include <string_view>

#include "runtime/memory.h"

namespace turboesm::desktop {

struct Colour {
  uint8_t red = 0, green = 0, blue = 0;
};

// By the chemistry of its side chain: hydrophobic, aromatic, polar, basic, acidic, and those with a shape of their own
// (glycine, proline, cysteine).
enum class Chemistry { hydrophobic, aromatic, polar, basic, acidic, special, other };
inline constexpr Chemistry kChemistries[] = {Chemistry::hydrophobic, Chemistry::aromatic, Chemistry::polar,
                                             Chemistry::basic,       Chemistry::acidic,   Chemistry::special};
Chemistry chemistry_of(char residue);
std::string_view name_of(Chemistry chemistry);
Colour colour_of(Chemistry chemistry);
Colour colour_of(MemoryLabel label);
Colour colour_of_preset(std::string_view preset);

// -1 blue, 0 nearly black, 1 orange; beyond is as at the ends.
Colour diverging(double value);

}  // namespace turboesm::desktop
