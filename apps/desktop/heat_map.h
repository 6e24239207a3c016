#pragma once

#include <span>
#include <string_view>

#include "apps/desktop/colours.h"
#include "apps/desktop/image.h"
#include "model/substitutions.h"

namespace turboesm::desktop {

// The order in which rows of amino acids are shown: by chemistry.
inline constexpr std::string_view kRowLetters = "AVLIMFWYSTNQKRHDEGPC";

// Which of the values in tokens' order belongs to that row.
uint32_t amino_acid_of_row(uint32_t row);

// What is shown of a map: log-odds, or logits less their mean.
struct HeatMap {
  const SubstitutionMap& map;
  bool log_odds = true;

  double value(uint32_t position, uint32_t row) const;  // as is
  Colour colour(uint32_t position, uint32_t row) const;
  // The value that has the strongest colour.
  double strongest() const;
};

// Every cell as a square of some pixels: [20, L] cells.
Image heat_map_image(const SubstitutionMap& map, bool log_odds);

}  // namespace turboesm::desktop
