#include "model/kv_transform.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <random>

#include <Eigen/Dense>

namespace turboesm {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

RowMajor to_eigen(const SquareMatrix& a) {
  return Eigen::Map<const RowMajor>(a.values.data(), Eigen::Index(a.size), Eigen::Index(a.size));
}

SquareMatrix from_eigen(const RowMajor& a) {
  SquareMatrix result(uint32_t(a.rows()));
  Eigen::Map<RowMajor>(result.values.data(), a.rows(), a.cols()) = a;
  return result;
}

// Powers of a symmetric matrix whose eigenvalues are not negative but for rounding.
class Powers {
 public:
  explicit Powers(const RowMajor& symmetric) : solver_(symmetric) {
    eigenvalues_ = solver_.eigenvalues().cwiseMax(1e-12 * solver_.eigenvalues().maxCoeff());
  }

  RowMajor operator()(double exponent) const {
    const Eigen::VectorXd powers = eigenvalues_.array().pow(exponent);
    return solver_.eigenvectors() * powers.asDiagonal() * solver_.eigenvectors().transpose();
  }

 private:
  Eigen::SelfAdjointEigenSolver<RowMajor> solver_;
  Eigen::VectorXd eigenvalues_;
};

RowMajor with_ridge(const SquareMatrix& symmetric, double ridge) {
  RowMajor result = to_eigen(symmetric);
  const double mean = result.diagonal().mean();
  // A head that is 0 throughout gets a matrix that can be inverted like any other.
  result.diagonal().array() += mean > 0 ? ridge * mean : 1.0;
  return result;
}

}  // namespace

SquareMatrix SquareMatrix::identity(uint32_t n) {
  SquareMatrix result(n);
  for (uint32_t i = 0; i < n; ++i) result(i, i) = 1;
  return result;
}

SquareMatrix multiply(const SquareMatrix& a, const SquareMatrix& b) { return from_eigen(to_eigen(a) * to_eigen(b)); }

SquareMatrix transposed(const SquareMatrix& a) { return from_eigen(to_eigen(a).transpose()); }

SquareMatrix signed_hadamard(uint32_t n, uint64_t seed) {
  const uint32_t power_of_two = n & (~n + 1u), odd = n / power_of_two;
  const auto cosine = [odd](uint32_t i, uint32_t j) {  // entry of the orthonormal DCT-II
    const double scale = std::sqrt((i == 0 ? 1.0 : 2.0) / odd);
    return scale * std::cos(std::numbers::pi * (j + 0.5) * i / odd);
  };
  std::mt19937_64 engine(seed);
  std::vector<double> signs(n);
  for (double& sign : signs) sign = engine() >> 63 ? -1.0 : 1.0;
  SquareMatrix result(n);
  for (uint32_t i = 0; i < n; ++i)
    for (uint32_t j = 0; j < n; ++j) {
      const bool negative = std::popcount(i % power_of_two & j % power_of_two) % 2 == 1;
      const double entry = cosine(i / power_of_two, j / power_of_two) / std::sqrt(double(power_of_two));
      result(i, j) = (negative ? -entry : entry) * signs[j];
    }
  return result;
}

SquareMatrix random_normal(uint32_t n, uint64_t seed) {
  // Box-Muller on an engine that the standard defines bit by bit; std::normal_distribution differs between libraries.
  std::mt19937_64 engine(seed);
  SquareMatrix result(n);
  for (size_t i = 0; i < result.values.size(); i += 2) {
    const double u1 = double((engine() >> 11) + 1) * 0x1p-53, u2 = double(engine() >> 11) * 0x1p-53;
    const double radius = std::sqrt(-2 * std::log(u1)), angle = 2 * std::numbers::pi * u2;
    result.values[i] = radius * std::cos(angle);
    if (i + 1 < result.values.size()) result.values[i + 1] = radius * std::sin(angle);
  }
  return result;
}

SquareMatrix random_orthogonal(uint32_t n, uint64_t seed) {
  const RowMajor normal = to_eigen(random_normal(n, seed));
  const Eigen::HouseholderQR<RowMajor> qr(normal);
  RowMajor q = qr.householderQ() * RowMajor::Identity(normal.rows(), normal.cols());
  for (Eigen::Index i = 0; i < q.cols(); ++i)
    if (qr.matrixQR()(i, i) < 0) q.col(i) = -q.col(i);
  return from_eigen(q);
}

SquareMatrix principal_axes(const SquareMatrix& symmetric) {
  const Eigen::SelfAdjointEigenSolver<RowMajor> solver(to_eigen(symmetric));  // eigenvalues ascend
  RowMajor axes = solver.eigenvectors().transpose().colwise().reverse();
  for (Eigen::Index i = 0; i < axes.rows(); ++i) {
    Eigen::Index largest = 0;
    axes.row(i).cwiseAbs().maxCoeff(&largest);
    if (axes(i, largest) < 0) axes.row(i) = -axes.row(i);
  }
  return from_eigen(axes);
}

TransformPair balanced_transform(const SquareMatrix& covariance, const SquareMatrix& weight, double ridge) {
  const Powers c(with_ridge(covariance, ridge));
  const RowMajor root = c(0.5), inverse_root = c(-0.5);
  const Powers inner(root * with_ridge(weight, ridge) * root);
  const Powers mean(inverse_root * inner(0.5) * inverse_root);
  return {from_eigen(mean(0.5)), from_eigen(mean(-0.5))};
}

}  // namespace turboesm
