#include "runtime/vulkan/fit_rates.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace turboesm::vulkan {
namespace {

double predicted(double launch, const TileRate& rate, const TileTime& time) {
  return tile_microseconds(launch, rate, time.workgroups, time.units, time.steps);
}

double square(double value) { return value * value; }

struct TileFit {
  TileRate rate;
  double error;  // the sum of squares
};

TileFit with_error(std::span<const TileTime> times, double launch, const TileRate& rate) {
  constexpr double kPull = 1e-5;  // a rate that no time tells anything of stays near the other
  double error = kPull * square(std::log(rate.alone / rate.busy));
  for (const TileTime& time : times)
    error += time.weight * square(std::log(predicted(launch, rate, time) / time.microseconds));
  return {rate, error};
}

// Downhill among the eight neighbours, by ever smaller factors. Latency gives way to throughput at one ratio of the
// rates: that crease of the error lies along two of the directions, so that the way down never leaves them.
TileFit descend(std::span<const TileTime> times, double launch, const TileRate& start) {
  constexpr double kFirstStep = 2, kLastStep = 1e-4;  // of the logarithm of a rate
  constexpr int kDirections[][2] = {{1, 1}, {-1, -1}, {1, 0}, {-1, 0}, {0, 1}, {0, -1}, {1, -1}, {-1, 1}};
  TileFit fit = with_error(times, launch, start);
  for (double step = kFirstStep; step > kLastStep;) {
    TileFit best = fit;
    for (const auto& [alone, busy] : kDirections) {
      const TileRate rate{{}, fit.rate.alone * std::exp(alone * step), fit.rate.busy * std::exp(busy * step)};
      const TileFit next = with_error(times, launch, rate);
      if (next.error < best.error) best = next;
    }
    if (best.error < fit.error)
      fit = best;
    else
      step /= 2;
  }
  return fit;
}

// From where either, both or none of the rates decide.
TileFit fit_tile(std::span<const TileTime> times, double launch) {
  TileFit best{{}, std::numeric_limits<double>::infinity()};
  for (const double alone : {1.0, 4.0, 0.25}) {
    const TileFit fit = descend(times, launch, {{}, alone, 1.0});
    if (fit.error < best.error) best = fit;
  }
  return best;
}

RatesFit fit_with_launch(std::span<const std::vector<TileTime>> tiles, double launch) {
  RatesFit all{launch, {}, 0};
  double weights = 0;
  for (const std::vector<TileTime>& times : tiles) {
    const TileFit fit = fit_tile(times, launch);
    all.rates.push_back(fit.rate);
    all.error += fit.error;
    for (const TileTime& time : times) weights += time.weight;
  }
  all.error = std::sqrt(all.error / weights);
  return all;
}

}  // namespace

RatesFit fit_rates(std::span<const std::vector<TileTime>> tiles) {
  double shortest = std::numeric_limits<double>::infinity();
  for (const std::vector<TileTime>& times : tiles)
    for (const TileTime& time : times) shortest = std::min(shortest, time.microseconds);

  // The best of some launches, then of some around that one, and so on.
  constexpr int kRounds = 6, kParts = 8;
  double low = 0, high = shortest;
  RatesFit best{0, {}, std::numeric_limits<double>::infinity()};
  for (int round = 0; round < kRounds; ++round) {
    const double part = (high - low) / kParts;
    for (int i = 0; i <= kParts; ++i) {
      RatesFit fit = fit_with_launch(tiles, low + i * part);
      if (fit.error < best.error) best = std::move(fit);
    }
    low = std::max(best.launch - part, 0.0);
    high = std::min(best.launch + part, shortest);
  }
  return best;
}

double choice_loss(std::span<const std::vector<TileTime>> tiles, std::span<const TileRate> rates) {
  double sum = 0;
  for (size_t product = 0; product < tiles[0].size(); ++product) {
    double fastest = tiles[0][product].microseconds;
    size_t chosen = 0;
    for (size_t i = 1; i < tiles.size(); ++i) {
      fastest = std::min(fastest, tiles[i][product].microseconds);
      if (predicted(0, rates[i], tiles[i][product]) < predicted(0, rates[chosen], tiles[chosen][product])) chosen = i;
    }
    sum += tiles[chosen][product].microseconds / fastest - 1;
  }
  return sum / double(tiles[0].size());
}

}  // namespace turboesm::vulkan
