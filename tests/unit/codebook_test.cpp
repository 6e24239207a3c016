#include "model/codebook.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include "shaders/include/kv_gaussian.h"
#include "tests/conformance/data.h"
#include "tests/unit/files.h"

namespace turboesm {
namespace {

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using conformance::Rng;

double mean_squared_error(const Codebook& codebook, std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += std::pow(value - codebook.decode(value), 2);
  return sum / double(values.size());
}

// Max 1960, "Quantizing for minimum distortion", table I; the upper half of the centroids.
TEST_CASE("Lloyd-Max quantizers of the normal distribution are the published ones", "[unit]") {
  struct Row {
    std::vector<double> centroids;
    double error;
  };
  const std::array<Row, 4> rows = {
      Row{{.7979}, .3634},
      Row{{.4528, 1.5104}, .1175},
      Row{{.2451, .7560, 1.3439, 2.1519}, .03455},
      Row{{.1284, .3880, .6568, .9423, 1.2562, 1.6180, 2.0690, 2.7326}, .00950},
  };
  for (uint32_t bits = 1; bits <= 4; ++bits) {
    const Row& row = rows[bits - 1];
    const Codebook codebook = lloyd_max_gaussian(bits);
    const size_t half = row.centroids.size();
    REQUIRE(codebook.centroids.size() == 2 * half);
    REQUIRE(codebook.thresholds.size() == 2 * half - 1);
    CHECK(codebook.thresholds[half - 1] == 0);
    for (size_t i = 0; i < half; ++i) {
      CHECK_THAT(codebook.centroids[half + i], WithinAbs(row.centroids[i], 1e-4));
      CHECK(codebook.centroids[half - 1 - i] == -codebook.centroids[half + i]);
    }
    CHECK_THAT(gaussian_mean_squared_error(codebook), WithinRel(row.error, 1e-3));
    // At the optimum every centroid is the mean of its cell, so the error is 1 less what the centroids carry.
    CHECK_THAT(gaussian_mean_squared_error(nearest_codebook(codebook.centroids)),
               WithinRel(gaussian_mean_squared_error(codebook), 1e-12));
  }
  test::check_error(ErrorKind::usage, {"5 bits"}, [] { lloyd_max_gaussian(5); });
}

TEST_CASE("what kernels know by heart is the Lloyd-Max quantizer", "[unit]") {
  for (uint32_t bits = 1; bits <= 4; ++bits) {
    const Codebook codebook = lloyd_max_gaussian(bits);
    const uint32_t half = 1u << (bits - 1);
    for (uint32_t i = 0; i < half; ++i) {
      CHECK_THAT(kv_gaussian_centroid(bits, i), WithinRel(float(codebook.centroids[half + i]), 1e-7f));
      if (i > 0) CHECK_THAT(kv_gaussian_threshold(bits, i), WithinRel(float(codebook.thresholds[half + i - 1]), 2e-7f));
    }
  }
}

TEST_CASE("a sign of the residual costs more than a fourth bit saves", "[unit]") {
  const Codebook three = lloyd_max_gaussian(3);
  const double deviation = gaussian_mean_residual(three);
  const Codebook with_sign = with_residual_sign(three, deviation);
  REQUIRE(with_sign.centroids.size() == 16);
  REQUIRE(with_sign.thresholds.size() == 15);
  CHECK(std::ranges::is_sorted(with_sign.centroids));
  CHECK(std::ranges::is_sorted(with_sign.thresholds));
  const double error = gaussian_mean_squared_error(with_sign);
  CHECK_THAT(error, WithinRel(.01217, 1e-3));
  CHECK_THAT(error, WithinRel(gaussian_mean_squared_error(three) - deviation * deviation, 1e-12));
  CHECK(error > gaussian_mean_squared_error(lloyd_max_gaussian(4)));

  const std::vector<float> values = Rng(1).normals(200'000);
  CHECK_THAT(mean_residual(three, values), WithinRel(deviation, 0.01));
  CHECK_THAT(mean_squared_error(with_sign, values), WithinRel(error, 0.02));
  // A value decodes to its old centroid, moved towards it.
  for (const float value : std::span(values).first(1000)) {
    const double centroid = three.decode(value);
    CHECK_THAT(with_sign.decode(value), WithinAbs(centroid + (centroid < value ? deviation : -deviation), 1e-12));
  }
}

TEST_CASE("a value on a threshold belongs to the cell below", "[unit]") {
  const Codebook integers = integer_codebook(4);
  CHECK(integers.centroids == std::vector<double>{-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(integers.thresholds.front() == -7.5);
  CHECK(integers.decode(0.5) == 0);
  CHECK(integers.decode(std::nextafter(0.5, 1)) == 1);
  CHECK(integers.decode(-100) == -8);
  CHECK(integers.decode(100) == 7);
}

TEST_CASE("k-means of numbers", "[unit]") {
  SECTION("finds what is there") {
    const std::vector<float> values = {10, 11, 12, -5, -5, -5, 100};
    CHECK(kmeans_1d(values, 3, 0).centroids == std::vector<double>{-5, 11, 100});
  }
  SECTION("every centroid is the mean of its cell, and no cell is empty") {
    std::vector<float> values = Rng(2).normals(20'000);
    for (size_t i = 0; i < values.size(); i += 3) values[i] = 5 + values[i] / 4;
    for (const uint32_t k : {2u, 3u, 8u, 16u}) {
      const Codebook codebook = kmeans_1d(values, k, 7);
      REQUIRE(codebook.centroids.size() == k);
      CHECK(std::ranges::is_sorted(codebook.centroids));
      std::vector<double> sums(k), counts(k);
      for (const float value : values) {
        const size_t cell =
            size_t(std::ranges::lower_bound(codebook.thresholds, double(value)) - codebook.thresholds.begin());
        sums[cell] += value;
        ++counts[cell];
      }
      for (uint32_t i = 0; i < k; ++i) CHECK_THAT(sums[i] / counts[i], WithinAbs(codebook.centroids[i], 1e-9));
      CHECK(kmeans_1d(values, k, 7).centroids == codebook.centroids);
    }
  }
  SECTION("does not depend on the order of the values") {
    std::vector<float> values = Rng(3).normals(5000);
    const Codebook codebook = kmeans_1d(values, 8, 1);
    std::ranges::reverse(values);
    CHECK(kmeans_1d(values, 8, 1).centroids == codebook.centroids);
  }
  SECTION("comes near the Lloyd-Max quantizer on normal values") {
    const std::vector<float> values = Rng(4).normals(50'000);
    for (const uint32_t bits : {1u, 2u, 3u})
      CHECK_THAT(mean_squared_error(kmeans_1d(values, 1u << bits, 5), values),
                 WithinRel(gaussian_mean_squared_error(lloyd_max_gaussian(bits)), 0.03));
  }
  SECTION("repeats centroids where there are fewer distinct values") {
    const std::vector<float> values = {3, 3, 3, -1};
    const Codebook codebook = kmeans_1d(values, 8, 0);
    REQUIRE(codebook.centroids.size() == 8);
    CHECK(codebook.decode(3) == 3);
    CHECK(codebook.decode(-1) == -1);
  }
  test::check_error(ErrorKind::usage, {"0 values"}, [] { kmeans_1d({}, 8, 0); });
}

TEST_CASE("a codebook's operand is its centroids, then its thresholds", "[unit]") {
  std::vector<float> operand{9};
  append_codebook(nearest_codebook({-2, 1, 4, 8}), operand);
  CHECK(operand == std::vector<float>{9, -2, 1, 4, 8, -0.5f, 2.5f, 6});
}

}  // namespace
}  // namespace turboesm
