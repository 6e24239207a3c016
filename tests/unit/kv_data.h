#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "model/kv_calibration.h"
#include "model/kv_transform.h"
#include "tests/conformance/data.h"
#include "tests/rope_table.h"

// Queries, keys and values like those of a model, for tests of the KV cache's mathematics.
namespace turboesm::test {

// `vector` [d] turned to the position of a table's row.
inline std::vector<double> turned(std::span<const float> vector, std::span<const float> row) {
  std::vector<double> result(vector.size());
  for (size_t a = 0; a < vector.size(); a += 2) {
    result[a] = double(vector[a]) * row[a] - double(vector[a + 1]) * row[a + 1];
    result[a + 1] = double(vector[a + 1]) * row[a] + double(vector[a]) * row[a + 1];
  }
  return result;
}

// One layer: every head has its own covariances of q, k and v, a mean of v, and a mean of k before RoPE that makes up
// most of its energy. Even heads have a few channels that are much louder than the rest.
struct KvLayerData {
  uint32_t heads, d, tokens;
  std::vector<float> q, k, v;  // [tokens, heads, d], q and k after RoPE
  std::vector<int32_t> positions;

  std::span<const float> row(const std::vector<float>& tensor, uint32_t token, uint32_t head) const {
    return std::span(tensor).subspan((size_t(token) * heads + head) * d, d);
  }
};

inline KvLayerData make_kv_layer(uint32_t heads, uint32_t d, uint32_t tokens, std::span<const float> rope_table,
                                 uint32_t seed) {
  KvLayerData data{heads, d, tokens, {}, {}, {}, {}};
  const uint32_t rows = uint32_t(rope_table.size()) / d;
  for (uint32_t t = 0; t < tokens; ++t) data.positions.push_back(int32_t(t % rows));
  for (auto* tensor : {&data.q, &data.k, &data.v}) tensor->resize(size_t(tokens) * heads * d);
  conformance::Rng rng(seed);
  for (uint32_t h = 0; h < heads; ++h) {
    const std::vector<float> k_mean = rng.normals(d, 2), v_mean = rng.normals(d, 0.5f);
    std::array<SquareMatrix, 3> mix;  // of q, k, v
    for (SquareMatrix& matrix : mix) {
      matrix = random_normal(d, rng.next());
      for (uint32_t i = 0; i < d; ++i)
        for (uint32_t j = 0; j < d; ++j) {
          matrix(i, j) *= std::pow(0.5, 8.0 * j / d) / std::sqrt(double(d));
          if (h % 2 == 0 && i % 16 == 5) matrix(i, j) *= 6;
        }
    }
    for (uint32_t t = 0; t < tokens; ++t) {
      const auto draw = [&](const SquareMatrix& matrix) {
        const std::vector<float> x = rng.normals(d, 2);
        std::vector<float> y(d);
        for (uint32_t i = 0; i < d; ++i)
          for (uint32_t j = 0; j < d; ++j) y[i] += float(matrix(i, j)) * x[j];
        return y;
      };
      const std::span<const float> row = rope_table.subspan(size_t(data.positions[t]) * d, d);
      const size_t at = (size_t(t) * heads + h) * d;
      std::vector<float> q = draw(mix[0]), k = draw(mix[1]), v = draw(mix[2]);
      for (uint32_t i = 0; i < d; ++i) {
        k[i] += k_mean[i];
        v[i] += v_mean[i];
      }
      std::ranges::copy(turned(q, row), data.q.begin() + ptrdiff_t(at));
      std::ranges::copy(turned(k, row), data.k.begin() + ptrdiff_t(at));
      std::ranges::copy(v, data.v.begin() + ptrdiff_t(at));
    }
  }
  return data;
}

// A model of such layers.
struct KvModelData {
  KvModelData(uint32_t layer_count, uint32_t heads, uint32_t d, uint32_t tokens, uint32_t seed = 1)
      : rope_table(turboesm::rope_table(64, d)) {
    config.layers = layer_count;
    config.heads = heads;
    config.hidden = heads * d;
    conformance::Rng rng(seed);
    for (uint32_t l = 0; l < layer_count; ++l) {
      layers.push_back(make_kv_layer(heads, d, tokens, rope_table, rng.next()));
      weights.push_back(rng.normals(uint64_t(config.hidden) * config.hidden, 0.1f));
    }
  }

  KvStatistics calibrate(uint64_t seed = 0, uint32_t sample_tokens = 512) const {
    KvCalibrator calibrator(config, rope_table, {.seed = seed, .sample_tokens = sample_tokens});
    for (uint32_t l = 0; l < layers.size(); ++l)
      calibrator.add(l, layers[l].q, layers[l].k, layers[l].v, layers[l].positions);
    return calibrator.finish("0123456789abcdef", 3);
  }

  OutputWeights output_weights() const {
    return [this](uint32_t layer) { return weights[layer]; };
  }

  Esm2Config config;
  std::vector<float> rope_table;
  std::vector<KvLayerData> layers;
  std::vector<std::vector<float>> weights;  // [layers][H, H]
};

}  // namespace turboesm::test
