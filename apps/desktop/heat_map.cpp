#include "apps/desktop/heat_map.h"

#include <array>

#include "model/tokenizer.h"

namespace turboesm::desktop {
namespace {

constexpr uint32_t kCellPixels = 12;
constexpr double kStrongestLogOdds = 6, kStrongestLogit = 10;

}  // namespace

uint32_t amino_acid_of_row(uint32_t row) {
  static const auto order = [] {
    std::array<uint32_t, kAminoAcids> result{};
    for (uint32_t a = 0; a < kAminoAcids; ++a)
      result[kRowLetters.find(Tokenizer::esm2().letter(kFirstAminoAcid + int32_t(a)))] = a;
    return result;
  }();
  return order[row];
}

double HeatMap::value(uint32_t position, uint32_t row) const {
  return (log_odds ? map.log_odds : map.logits)[size_t(position) * kAminoAcids + amino_acid_of_row(row)];
}

double HeatMap::strongest() const { return log_odds ? kStrongestLogOdds : kStrongestLogit; }

Colour HeatMap::colour(uint32_t position, uint32_t row) const { return diverging(value(position, row) / strongest()); }

Image heat_map_image(const SubstitutionMap& map, bool log_odds) {
  const HeatMap heat{map, log_odds};
  Image image{uint32_t(map.sequence.size()) * kCellPixels, kAminoAcids * kCellPixels, {}};
  image.rgb.reserve(size_t(image.width) * image.height * 3);
  for (uint32_t y = 0; y < image.height; ++y)
    for (uint32_t x = 0; x < image.width; ++x) {
      const Colour c = heat.colour(x / kCellPixels, y / kCellPixels);
      image.rgb.insert(image.rgb.end(), {c.red, c.green, c.blue});
    }
  return image;
}

}  // namespace turboesm::desktop
