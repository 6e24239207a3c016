// The files of runtime/vulkan/rates, and `turboesm bench linear --tune`, which writes them.
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include <catch2/catch_test_macros.hpp>

#include "runtime/registry.h"
#include "runtime/vulkan/linear_rates.h"
#include "runtime/vulkan/lower_matrix.h"
#include "tests/options.h"

namespace turboesm::vulkan {
namespace {

std::string read_rates(std::string_view device_class) {
  const std::filesystem::path path =
      test_options().source_dir / "runtime/vulkan/rates" / (std::string(device_class) + ".inc");
  INFO(path);
  std::ifstream file(path);
  REQUIRE(file);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// All but what is measured: what the second line says of the device, and the rates.
std::string form_of(const std::string& text) {
  const std::string figures = std::regex_replace(text, std::regex(R"(\d+\.\d+)"), "#");
  return std::regex_replace(figures, std::regex("\n// .*\n"), "\n//\n");
}

}  // namespace

TEST_CASE("every tile of linear layers has a rate, whatever the device", "[unit]") {
  std::vector<std::string> names;
  for (const LinearTile& tile : linear_tiles()) names.push_back(tile.name());
  Linear plain{};
  plain.rows = plain.inputs = plain.outputs = 64;
  const size_t matrix_tiles = names.size();
  for (const ProductTile& tile : product_tiles(plain, Traits{})) names.push_back(tile.name);
  CHECK(names.size() > matrix_tiles);
  for (const std::string_view device_class : {"nvidia", "amd", "intel", "software", "other"})
    for (const std::string& name : names) {
      INFO(device_class << ", " << name);
      const TileRate* rate = find_rate(device_class, name);
      REQUIRE(rate);
      CHECK(rate->alone > 0);
      CHECK(rate->busy > 0);
    }
}

TEST_CASE("a file of rates names each tile once, and the command that wrote it first", "[unit]") {
  for (const LinearRates& rates : all_linear_rates()) {
    std::set<std::string_view> names;
    for (const TileRate& rate : rates.tiles)
      if (!rate.tile.empty()) CHECK(names.insert(rate.tile).second);
    CHECK_FALSE(names.empty());
    CHECK(read_rates(rates.device_class).starts_with("// turboesm bench linear --tune --device vulkan"));
  }
}

TEST_CASE("devices have a class by vendor, and software drivers their own", "[unit]") {
  CHECK(device_class_of(0x10de, false) == "nvidia");
  CHECK(device_class_of(0x1002, false) == "amd");
  CHECK(device_class_of(0x8086, false) == "intel");
  CHECK(device_class_of(0x13b5, false) == "other");
  CHECK(device_class_of(0x10005, true) == "software");
  CHECK(&linear_rates("other") == &linear_rates("nvidia"));
  CHECK(linear_rates("software").device_class == "software");
}

TEST_CASE("a product takes what its slowest part takes", "[unit]") {
  const TileRate rate{"", 0.5, 0.25};
  CHECK(tile_microseconds(6, rate, 10, 100, 8) == 10);   // a tenth of the device: latency
  CHECK(tile_microseconds(6, rate, 400, 100, 8) == 14);  // four rounds of 8 steps of 0.25
  CHECK(tile_microseconds(6, rate, 401, 100, 8) > 14);   // a fifth, nearly empty one
  CHECK(tile_microseconds(6, rate, 401, 100, 8) < 6 + 5 * 8 * rate.busy);
}

// Redirected to the file that it names, what `--tune` prints is what the sources hold, with other figures.
TEST_CASE("bench linear --tune prints the file of rates of the device's class", "[unit]") {
  DeviceOptions options;
  options.validation = test_options().validation;
  const auto device = open_device("vulkan:0", options).device;
  CHECK(form_of(device->tune()) == form_of(read_rates("software")));
}

}  // namespace turboesm::vulkan
