#include "model/codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <random>
#include <utility>

#include "runtime/error.h"

namespace turboesm {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double density(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi); }  // 0 at infinity

// The probability that N(0, 1) lies in [a, b], precise in either tail.
double mass(double a, double b) {
  const auto above = [](double x) { return 0.5 * std::erfc(x / std::numbers::sqrt2); };
  return a >= 0 ? above(a) - above(b) : above(-b) - above(-a);
}

// Integral of x over [a, b] against the density of N(0, 1).
double first_moment(double a, double b) { return density(a) - density(b); }

double second_moment(double a, double b) {
  const auto edge = [](double x) { return std::isinf(x) ? 0.0 : x * density(x); };
  return mass(a, b) + edge(a) - edge(b);
}

// Calls visit(lower end, upper end, centroid) for each cell.
template <class Visit>
void for_each_cell(const Codebook& codebook, Visit visit) {
  const size_t cells = codebook.centroids.size();
  for (size_t i = 0; i < cells; ++i)
    visit(i == 0 ? -kInfinity : codebook.thresholds[i - 1], i + 1 == cells ? kInfinity : codebook.thresholds[i],
          codebook.centroids[i]);
}

double uniform(std::mt19937_64& engine) { return double(engine() >> 11) * 0x1p-53; }  // [0, 1)

// k-means++: each further centroid is a value drawn with probability in proportion to its squared distance from those
// chosen before.
std::vector<double> spread_centroids(std::span<const float> values, uint32_t k, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<double> centroids{values[size_t(uniform(engine) * double(values.size()))]};
  std::vector<double> distances(values.size(), kInfinity);
  while (centroids.size() < k) {
    double total = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double difference = values[i] - centroids.back();
      distances[i] = std::min(distances[i], difference * difference);
      total += distances[i];
    }
    double left = uniform(engine) * total;
    size_t chosen = 0;
    while (chosen + 1 < values.size() && (left -= distances[chosen]) >= 0) ++chosen;
    centroids.push_back(values[chosen]);
  }
  std::ranges::sort(centroids);
  return centroids;
}

}  // namespace

double Codebook::decode(double value) const {
  const auto above = std::ranges::lower_bound(thresholds, value);  // the first threshold that is not below the value
  return centroids[size_t(above - thresholds.begin())];
}

Codebook nearest_codebook(std::vector<double> centroids) {
  Codebook codebook{std::move(centroids), {}};
  for (size_t i = 1; i < codebook.centroids.size(); ++i)
    codebook.thresholds.push_back((codebook.centroids[i - 1] + codebook.centroids[i]) / 2);
  return codebook;
}

Codebook lloyd_max_gaussian(uint32_t bits) {
  if (bits < 1 || bits > 4) throw_error(ErrorKind::usage, "[lloyd_max_gaussian] {} bits, not 1 to 4", bits);
  // The upper half determines the whole; its lowest cell begins at 0.
  const size_t half = size_t(1) << (bits - 1);
  std::vector<double> upper(half);
  for (size_t i = 0; i < half; ++i) upper[i] = 3.0 * (double(i) + 0.5) / double(half);
  constexpr int kMaxIterations = 100'000;
  double change = 1;
  for (int iteration = 0; change > 1e-14 && iteration < kMaxIterations; ++iteration) {
    change = 0;
    double lower_end = 0;
    for (size_t i = 0; i < half; ++i) {
      const double upper_end = i + 1 == half ? kInfinity : (upper[i] + upper[i + 1]) / 2;
      const double centroid = first_moment(lower_end, upper_end) / mass(lower_end, upper_end);
      change = std::max(change, std::abs(centroid - upper[i]));
      upper[i] = centroid;
      lower_end = upper_end;
    }
  }
  std::vector<double> centroids;
  for (size_t i = half; i-- > 0;) centroids.push_back(-upper[i]);
  centroids.insert(centroids.end(), upper.begin(), upper.end());
  return nearest_codebook(std::move(centroids));
}

Codebook integer_codebook(uint32_t bits) {
  std::vector<double> levels;
  for (int level = -(1 << (bits - 1)); level < 1 << (bits - 1); ++level) levels.push_back(level);
  return nearest_codebook(std::move(levels));
}

Codebook kmeans_1d(std::span<const float> values, uint32_t k, uint64_t seed) {
  if (values.empty() || k == 0)
    throw_error(ErrorKind::usage, "[kmeans_1d] {} values for {} centroids", values.size(), k);
  // In order, a cell is a run of values and its mean a difference of running sums.
  std::vector<float> sorted(values.begin(), values.end());
  std::ranges::sort(sorted);
  std::vector<double> sums(sorted.size() + 1);
  for (size_t i = 0; i < sorted.size(); ++i) sums[i + 1] = sums[i] + sorted[i];

  Codebook codebook = nearest_codebook(spread_centroids(sorted, k, seed));
  std::vector<size_t> ends(k, 0), previous;
  while (ends != previous) {
    previous = ends;
    size_t begin = 0;
    for (uint32_t i = 0; i < k; ++i) {
      ends[i] = sorted.size();
      if (i + 1 < k) ends[i] = size_t(std::ranges::upper_bound(sorted, codebook.thresholds[i]) - sorted.begin());
      if (ends[i] > begin) codebook.centroids[i] = (sums[ends[i]] - sums[begin]) / double(ends[i] - begin);
      begin = ends[i];
    }
    codebook = nearest_codebook(std::move(codebook.centroids));
  }
  return codebook;
}

Codebook with_residual_sign(const Codebook& codebook, double deviation) {
  Codebook result;
  for (size_t i = 0; i < codebook.centroids.size(); ++i) {
    if (i > 0) result.thresholds.push_back(codebook.thresholds[i - 1]);
    result.thresholds.push_back(codebook.centroids[i]);
    result.centroids.push_back(codebook.centroids[i] - deviation);
    result.centroids.push_back(codebook.centroids[i] + deviation);
  }
  return result;
}

double gaussian_mean_squared_error(const Codebook& codebook) {
  double error = 0;
  for_each_cell(codebook, [&error](double a, double b, double centroid) {
    error += second_moment(a, b) - 2 * centroid * first_moment(a, b) + centroid * centroid * mass(a, b);
  });
  return error;
}

double gaussian_mean_residual(const Codebook& codebook) {
  double sum = 0;
  for_each_cell(codebook, [&sum](double a, double b, double centroid) {
    const double middle = std::clamp(centroid, a, b);
    sum += first_moment(middle, b) - centroid * mass(middle, b);
    sum -= first_moment(a, middle) - centroid * mass(a, middle);
  });
  return sum;
}

double mean_residual(const Codebook& codebook, std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += std::abs(value - codebook.decode(value));
  return values.empty() ? 0 : sum / double(values.size());
}

void append_codebook(const Codebook& codebook, std::vector<float>& operand) {
  for (const double centroid : codebook.centroids) operand.push_back(float(centroid));
  for (const double threshold : codebook.thresholds) operand.push_back(float(threshold));
}

}  // namespace turboesm
