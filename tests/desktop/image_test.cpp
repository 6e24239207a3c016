#include "apps/desktop/image.h"

#include <catch2/catch_test_macros.hpp>

#include "apps/desktop/heat_map.h"
#include "tests/desktop/desktop.h"
#include "tests/unit/files.h"

namespace turboesm::desktop {
namespace {

TEST_CASE("a picture comes back as it was written", "[unit][desktop-image]") {
  const test::TemporaryFolder folder;
  Image image{31, 7, {}};
  for (size_t i = 0; i < 31 * 7 * 3; ++i) image.rgb.push_back(uint8_t(i * i * 7));
  write_png(image, folder / "image.png");
  const Image back = test::read_png(folder / "image.png");
  CHECK(back.width == 31);
  CHECK(back.height == 7);
  CHECK(back.rgb == image.rgb);
  test::check_error(ErrorKind::input, {"none/image.png"}, [&] { write_png(image, folder / "none" / "image.png"); });
}

TEST_CASE("a heat map's picture has a cell for each residue and amino acid", "[unit][desktop-image]") {
  SubstitutionMap map{"MK", std::vector<float>(40), std::vector<float>(40)};
  const uint32_t row = 9;  // T
  REQUIRE(kRowLetters[row] == 'T');
  map.log_odds[kAminoAcids + amino_acid_of_row(row)] = 100;
  const Image image = heat_map_image(map, true);
  const uint32_t cell = image.width / 2;
  REQUIRE(image.height == 20 * cell);
  const auto red = [&](uint32_t x, uint32_t y) { return image.rgb[(size_t(y) * image.width + x) * 3]; };
  CHECK(red(cell + cell / 2, row * cell + cell / 2) == diverging(1).red);
  CHECK(red(cell / 2, row * cell + cell / 2) == diverging(0).red);
  CHECK(red(cell + cell / 2, (row + 1) * cell) == diverging(0).red);
}

TEST_CASE("each amino acid has a chemistry and a row", "[unit][desktop-image]") {
  std::vector<bool> seen(kAminoAcids);
  for (uint32_t row = 0; row < kAminoAcids; ++row) {
    seen[amino_acid_of_row(row)] = true;
    CHECK(chemistry_of(kRowLetters[row]) != Chemistry::other);
  }
  CHECK(std::ranges::find(seen, false) == seen.end());
  CHECK(chemistry_of('X') == Chemistry::other);
}

}  // namespace
}  // namespace turboesm::desktop
