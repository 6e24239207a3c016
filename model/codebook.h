#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace turboesm {

// A scalar quantizer: the code of a value is the number of thresholds below it, its decoded value centroids[code].
struct Codebook {
  std::vector<double> centroids;   // ascending
  std::vector<double> thresholds;  // one fewer, ascending

  double decode(double value) const;
};

// The quantizer that these centroids (ascending) make when every value goes to the nearest.
Codebook nearest_codebook(std::vector<double> centroids);

// Least mean squared error for N(0, 1) at 2^bits levels (Lloyd 1982, Max 1960), to convergence. bits 1..4.
Codebook lloyd_max_gaussian(uint32_t bits);

// The levels -2^(bits-1) .. 2^(bits-1) - 1.
Codebook integer_codebook(uint32_t bits);

// k-means of numbers: k-means++ (Arthur & Vassilvitskii 2007), then Lloyd to convergence; ascending, k centroids even
// where there are fewer distinct values. The same values and seed give the same result. Error (usage) for no values.
Codebook kmeans_1d(std::span<const float> values, uint32_t k, uint64_t seed);

// One more bit, the sign of the residual: centroid -/+ deviation, with the centroids among the thresholds.
Codebook with_residual_sign(const Codebook& codebook, double deviation);

// What a codebook leaves of N(0, 1): E (x - decode(x))^2 and E |x - decode(x)|.
double gaussian_mean_squared_error(const Codebook& codebook);
double gaussian_mean_residual(const Codebook& codebook);

// The mean of |x - decode(x)|; 0 without values.
double mean_residual(const Codebook& codebook, std::span<const float> values);

// Appends to `operand`, one segment of KvSideTensors::codebook: the centroids, then the thresholds, rounded to f32.
void append_codebook(const Codebook& codebook, std::vector<float>& operand);

}  // namespace turboesm
