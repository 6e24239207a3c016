// The fit of tiles' rates to the times of layers, by which `turboesm bench linear --tune` makes a file of rates.
#include <cmath>
#include <random>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include "runtime/vulkan/fit_rates.h"

namespace turboesm::vulkan {
namespace {

using Catch::Matchers::WithinRel;

constexpr uint32_t kUnits = 132;

struct Tile {
  uint32_t bm, bn, bk;
  TileRate rate;
};

// What the layers of three models take for so many rows, each time wrong by up to `noise`.
std::vector<TileTime> times_of(const Tile& tile, double launch, std::initializer_list<uint32_t> rows, double noise) {
  std::mt19937 random(tile.bm);
  std::uniform_real_distribution<double> wrong(-noise, noise);
  std::vector<TileTime> times;
  for (const uint32_t count : rows)
    for (const uint32_t hidden : {320u, 1280u, 2560u})
      for (const auto& [inputs, outputs] : {std::pair{1u, 3u}, {1u, 1u}, {1u, 4u}, {4u, 1u}}) {
        const uint64_t workgroups =
            uint64_t((count + tile.bm - 1) / tile.bm) * ((outputs * hidden + tile.bn - 1) / tile.bn);
        const uint32_t steps = inputs * hidden / tile.bk;
        const double time = tile_microseconds(launch, tile.rate, workgroups, kUnits, steps);
        times.push_back({workgroups, kUnits, steps, time * std::exp(wrong(random))});
      }
  return times;
}

// By how much the fit is wrong at worst.
double worst_error(const RatesFit& fit, const TileRate& rate, const std::vector<TileTime>& times) {
  double worst = 0;
  for (const TileTime& time : times) {
    const double predicted = tile_microseconds(fit.launch, rate, time.workgroups, time.units, time.steps);
    worst = std::max(worst, std::abs(std::log(predicted / time.microseconds)));
  }
  return worst;
}

}  // namespace

TEST_CASE("rates are found again in the times that they make", "[unit]") {
  const Tile tiles[] = {
      {32, 64, 64, {"", 0.47, 0.29}}, {64, 64, 64, {"", 0.44, 0.21}}, {128, 128, 32, {"", 0.5, 0.56}}};
  for (const double unit : {1.0, 3000.0})  // a GPU's times, and a CPU's
    for (const double noise : {0.0, 0.03}) {
      INFO(unit << " us, noise " << noise);
      std::vector<std::vector<TileTime>> times;
      for (Tile tile : tiles) {
        tile.rate.alone *= unit, tile.rate.busy *= unit;
        times.push_back(times_of(tile, 6.5 * unit, {34, 145, 512, 2048, 16384}, noise));
      }
      const RatesFit fit = fit_rates(times);
      REQUIRE(fit.rates.size() == 3);
      const double tolerance = noise == 0 ? 0.005 : 0.05;
      CHECK_THAT(fit.launch, WithinRel(6.5 * unit, tolerance));
      for (size_t i = 0; i < 3; ++i) {
        CHECK_THAT(fit.rates[i].alone, WithinRel(tiles[i].rate.alone * unit, tolerance));
        CHECK_THAT(fit.rates[i].busy, WithinRel(tiles[i].rate.busy * unit, tolerance));
      }
      CHECK(fit.error <= std::max(noise, 0.002));
    }
}

TEST_CASE("a rate that decides no time is no obstacle to the fit", "[unit]") {
  const Tile never_alone{64, 64, 64, {"", 1e-3, 0.3}}, never_busy{64, 64, 64, {"", 2.0, 1e-3}};
  for (const Tile& tile : {never_alone, never_busy}) {
    INFO("alone " << tile.rate.alone << ", busy " << tile.rate.busy);
    const std::vector<std::vector<TileTime>> times{times_of(tile, 5, {34, 145, 512, 2048}, 0)};
    const RatesFit fit = fit_rates(times);
    CHECK_THAT(fit.launch, WithinRel(5.0, 0.01));
    CHECK(worst_error(fit, fit.rates[0], times[0]) < 0.01);
    for (const double rate : {fit.rates[0].alone, fit.rates[0].busy}) {
      CHECK(std::isfinite(rate));
      CHECK(rate > 0);
    }
  }
}

TEST_CASE("times of little weight give way to the others", "[unit]") {
  const Tile tile{64, 64, 64, {"", 0.44, 0.21}};
  std::vector<std::vector<TileTime>> times{times_of(tile, 6.5, {34, 145, 512, 2048}, 0)};
  for (TileTime time : times_of(tile, 6.5, {16384}, 0)) {
    time.microseconds *= 3, time.weight = 1e-4;
    times[0].push_back(time);
  }
  const RatesFit fit = fit_rates(times);
  CHECK_THAT(fit.rates[0].alone, WithinRel(0.44, 0.01));
  CHECK_THAT(fit.rates[0].busy, WithinRel(0.21, 0.01));
}

TEST_CASE("what a choice by rates loses is what the chosen tile takes beyond the fastest", "[unit]") {
  const std::vector<std::vector<TileTime>> times{{{kUnits, kUnits, 1, 12.0}, {kUnits, kUnits, 100, 60.0}},
                                                 {{kUnits, kUnits, 2, 10.0}, {kUnits, kUnits, 10, 90.0}}};
  const TileRate rates[] = {{"", 1.0, 1.0}, {"", 1.0, 1.0}};  // the first tile for the first product, then the second
  CHECK_THAT(choice_loss(times, rates), WithinRel((0.2 + 0.5) / 2, 1e-9));
}

TEST_CASE("one time is enough", "[unit]") {
  const RatesFit fit = fit_rates(std::vector<std::vector<TileTime>>{{{10, kUnits, 8, 20.0}}});
  CHECK_THAT(tile_microseconds(fit.launch, fit.rates[0], 10, kUnits, 8), WithinRel(20.0, 0.01));
}

}  // namespace turboesm::vulkan
