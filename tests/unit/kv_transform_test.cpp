#include "model/kv_transform.h"

#include <algorithm>
#include <cmath>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

namespace turboesm {
namespace {

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;

double largest_difference(const SquareMatrix& a, const SquareMatrix& b) {
  double largest = 0;
  for (size_t i = 0; i < a.values.size(); ++i) largest = std::max(largest, std::abs(a.values[i] - b.values[i]));
  return largest;
}

void check_orthogonal(const SquareMatrix& a) {
  CHECK(largest_difference(multiply(a, transposed(a)), SquareMatrix::identity(a.size)) < 1e-12);
}

double trace(const SquareMatrix& a) {
  double sum = 0;
  for (uint32_t i = 0; i < a.size; ++i) sum += a(i, i);
  return sum;
}

// A positive matrix whose eigenvalues spread over several orders of magnitude.
SquareMatrix covariance(uint32_t n, uint64_t seed) {
  SquareMatrix a = random_normal(n, seed);
  for (uint32_t i = 0; i < n; ++i)
    for (uint32_t j = 0; j < n; ++j) a(i, j) *= std::pow(0.9, j);
  return multiply(a, transposed(a));
}

// tr(A C A^T) tr(A^-T W A^-1)
double cost(const TransformPair& pair, const SquareMatrix& c, const SquareMatrix& w) {
  return trace(multiply(multiply(pair.forward, c), transposed(pair.forward))) *
         trace(multiply(multiply(transposed(pair.inverse), w), pair.inverse));
}

TEST_CASE("rotations are orthogonal, and seeded", "[unit]") {
  for (const uint32_t n : {1u, 4u, 8u, 12u, 16u, 24u, 32u, 40u, 64u, 72u, 128u}) {
    INFO("size " << n);
    const SquareMatrix hadamard = signed_hadamard(n, 3), rotation = random_orthogonal(n, 3);
    check_orthogonal(hadamard);
    check_orthogonal(rotation);
    CHECK(signed_hadamard(n, 3).values == hadamard.values);
    CHECK(random_orthogonal(n, 3).values == rotation.values);
    if (n > 8) CHECK(signed_hadamard(n, 4).values != hadamard.values);
    if (n > 8) CHECK(random_orthogonal(n, 4).values != rotation.values);
    // Flat: no channel of the input makes up much of one of the output.
    const double flat = 1 / std::sqrt(double(n));
    const bool power_of_two = (n & (n - 1)) == 0;
    for (const double entry : hadamard.values) {
      CHECK(std::abs(entry) <= (power_of_two ? 1 + 1e-12 : std::sqrt(2.0) + 1e-12) * flat);
      if (power_of_two) CHECK_THAT(std::abs(entry), WithinAbs(flat, 1e-12));
    }
  }
}

TEST_CASE("principal axes are ordered by energy", "[unit]") {
  const SquareMatrix c = covariance(24, 1), axes = principal_axes(c);
  check_orthogonal(axes);
  const SquareMatrix turned = multiply(multiply(axes, c), transposed(axes));
  for (uint32_t i = 0; i < 24; ++i)
    for (uint32_t j = 0; j < i; ++j) CHECK_THAT(turned(i, j), WithinAbs(0, 1e-9));
  for (uint32_t i = 1; i < 24; ++i) CHECK(turned(i, i) <= turned(i - 1, i - 1));
}

TEST_CASE("the balanced transform weighs energy and error evenly", "[unit]") {
  const uint32_t n = 16;
  const SquareMatrix c = covariance(n, 1), w = covariance(n, 2);
  const TransformPair pair = balanced_transform(c, w, 0);
  CHECK(largest_difference(multiply(pair.forward, pair.inverse), SquareMatrix::identity(n)) < 1e-9);
  // The condition of the optimum: A C A^T = A^-T W A^-1.
  const SquareMatrix energy = multiply(multiply(pair.forward, c), transposed(pair.forward));
  const SquareMatrix error = multiply(multiply(transposed(pair.inverse), w), pair.inverse);
  CHECK(largest_difference(energy, error) < 1e-6 * trace(energy));

  // Nothing near it is better, and neither are the identity and the two whitenings.
  const double best = cost(pair, c, w);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SquareMatrix change = random_normal(n, seed), inverse = SquareMatrix::identity(n);
    for (double& value : change.values) value *= 1e-3;
    for (size_t i = 0; i < change.values.size(); ++i)
      inverse.values[i] -= change.values[i];  // (1 + e)^-1 = 1 - e + e^2
    const SquareMatrix square = multiply(change, change);
    for (size_t i = 0; i < change.values.size(); ++i) inverse.values[i] += square.values[i];
    for (uint32_t i = 0; i < n; ++i) change(i, i) += 1;
    CHECK(cost({multiply(change, pair.forward), multiply(pair.inverse, inverse)}, c, w) > best);
  }
  const SquareMatrix one = SquareMatrix::identity(n);
  CHECK(cost({one, one}, c, w) > 1.1 * best);
  const TransformPair whitening = balanced_transform(c, one, 0);
  CHECK(cost(whitening, c, w) > best);
  // A head that does nothing does not break it.
  const TransformPair nothing = balanced_transform(SquareMatrix(n), SquareMatrix(n));
  CHECK(largest_difference(nothing.forward, one) < 1e-9);
}

}  // namespace
}  // namespace turboesm
