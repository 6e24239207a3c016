#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace turboesm {

// A dense square matrix, row-major. Small (head_dim) and computed once, hence in double.
struct SquareMatrix {
  explicit SquareMatrix(uint32_t n = 0) : size(n), values(size_t(n) * n) {}
  static SquareMatrix identity(uint32_t n);

  double& operator()(uint32_t i, uint32_t j) { return values[size_t(i) * size + j]; }
  double operator()(uint32_t i, uint32_t j) const { return values[size_t(i) * size + j]; }

  uint32_t size;
  std::vector<double> values;
};

SquareMatrix multiply(const SquareMatrix& a, const SquareMatrix& b);
SquareMatrix transposed(const SquareMatrix& a);

// Orthogonal and flat: with n = 2^a m, m odd, the DCT-II of size m (x) Walsh-Hadamard of size 2^a, its columns given
// seeded random signs. For a power of two every entry is +-1 / sqrt(n), for other n at most sqrt(2) times as large.
SquareMatrix signed_hadamard(uint32_t n, uint64_t seed);

// Uniform over the orthogonal matrices: the Q of a seeded Gaussian matrix whose R has a positive diagonal.
SquareMatrix random_orthogonal(uint32_t n, uint64_t seed);

// Independent N(0, 1) entries.
SquareMatrix random_normal(uint32_t n, uint64_t seed);

// Rows are orthonormal eigenvectors of a symmetric matrix, by falling eigenvalue, the largest component positive.
SquareMatrix principal_axes(const SquareMatrix& symmetric);

// `forward` is encoded with, `inverse` undoes it.
struct TransformPair {
  SquareMatrix forward, inverse;
};

// The symmetric A that makes tr(A covariance A^T) tr(A^-T weight A^-1) least: A^T A = covariance^-1 # weight (the
// geometric mean of positive matrices). Quantization leaves an error in proportion to the energy of A x and equal in
// all directions, and `weight` says what an error in x costs. ridge x the mean of the diagonal is added to either
// matrix.
TransformPair balanced_transform(const SquareMatrix& covariance, const SquareMatrix& weight, double ridge = 0.01);

}  // namespace turboesm
