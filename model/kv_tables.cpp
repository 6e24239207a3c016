#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>

#include "model/codebook.h"
#include "model/kv_calibration.h"
#include "model/kv_transform.h"
#include "runtime/cpu/thread_pool.h"
#include "runtime/dtype.h"
#include "runtime/error.h"

// From statistics to operands: centre, transform and codebook of K and V of every head.
namespace turboesm {
namespace {

constexpr uint64_t kHadamardSeed = 3, kRotationSeed = 5, kProjectionSeed = 7, kCodebookSeed = 11;

// K or V of one layer and what is known of it. The statistics are null where nothing is calibrated.
struct SideContext {
  const KvSideRecipe& recipe;
  bool is_k;
  uint32_t heads, d;
  const KvLayerStatistics* statistics;
  const std::vector<float>* output_weights;  // [H, H], only where needs_output_weights
};

// Whether the cost of an error in V, which W_o determines, is asked for.
bool needs_output_weights(const KvSideRecipe& recipe, bool is_k) {
  return !is_k && recipe.transform == KvTransform::balanced;
}

// Whether heads have transforms of their own, rather than one for all, or none.
bool transform_is_calibrated(const KvSideRecipe& recipe) {
  return recipe.transform == KvTransform::svd || recipe.transform == KvTransform::balanced ||
         recipe.side.segments == 2 || recipe.channel_scale || recipe.has_factor();
}

SquareMatrix from_triangle(const std::vector<float>& triangles, uint32_t head, uint32_t d) {
  SquareMatrix result(d);
  size_t at = size_t(head) * d * (d + 1) / 2;
  for (uint32_t i = 0; i < d; ++i)
    for (uint32_t j = i; j < d; ++j) result(i, j) = result(j, i) = triangles[at++];
  return result;
}

// E x x^T of what is left of one head's values after centring.
SquareMatrix moment(const SideContext& side, uint32_t head) {
  const KvLayerStatistics& s = *side.statistics;
  if (side.is_k && side.recipe.centre == KvCentre::position_mean)
    return from_triangle(s.k_rest_covariance, head, side.d);
  SquareMatrix result = from_triangle(side.is_k ? s.k_covariance : s.v_covariance, head, side.d);
  if (side.recipe.centre != KvCentre::none) return result;
  const float* mean = (side.is_k ? s.k_mean : s.v_mean).data() + size_t(head) * side.d;
  for (uint32_t i = 0; i < side.d; ++i)
    for (uint32_t j = 0; j < side.d; ++j) result(i, j) += double(mean[i]) * mean[j];
  return result;
}

// What an error e in a head's values costs: e^T weight e. For K the mean square of q . e, for V |W_o e|^2.
SquareMatrix error_weight(const SideContext& side, uint32_t head) {
  if (side.is_k) return from_triangle(side.statistics->q_moment, head, side.d);
  SquareMatrix result(side.d);
  const size_t hidden = size_t(side.heads) * side.d;
  for (size_t row = 0; row < hidden; ++row) {
    const float* w = side.output_weights->data() + row * hidden + size_t(head) * side.d;
    for (uint32_t i = 0; i < side.d; ++i)
      for (uint32_t j = i; j < side.d; ++j) result(i, j) += double(w[i]) * w[j];
  }
  for (uint32_t i = 0; i < side.d; ++i)
    for (uint32_t j = 0; j < i; ++j) result(i, j) = result(j, i);
  return result;
}

// diag(A moment A^T): the energy of each transformed channel.
std::vector<double> energies(const SquareMatrix& a, const SquareMatrix& moment) {
  const SquareMatrix am = multiply(a, moment);
  std::vector<double> result(a.size);
  for (uint32_t i = 0; i < a.size; ++i)
    for (uint32_t j = 0; j < a.size; ++j) result[i] += am(i, j) * a(i, j);
  return result;
}

// The rotation that evens out the channels of each segment, block-diagonal; nothing where there is none.
std::optional<SquareMatrix> flattening(const KvSideRecipe& recipe, uint32_t d) {
  if (recipe.transform == KvTransform::none || recipe.transform == KvTransform::svd) return std::nullopt;
  const uint32_t n = d / recipe.side.segments;
  const SquareMatrix block = recipe.transform == KvTransform::random_orthogonal ? random_orthogonal(n, kRotationSeed)
                                                                                : signed_hadamard(n, kHadamardSeed);
  SquareMatrix result(d);
  for (uint32_t i = 0; i < d; ++i)
    for (uint32_t j = 0; j < n; ++j) result(i, i / n * n + j) = block(i % n, j);
  return result;
}

// The whole linear map of one head, from centred values to what is quantized.
TransformPair head_transform(const SideContext& side, uint32_t head, const std::optional<SquareMatrix>& flatten) {
  const uint32_t d = side.d, segments = side.recipe.side.segments;
  TransformPair pair{SquareMatrix::identity(d), SquareMatrix::identity(d)};
  const bool calibrated = transform_is_calibrated(side.recipe);
  const SquareMatrix left = calibrated ? moment(side, head) : SquareMatrix(0);
  if (side.recipe.transform == KvTransform::balanced) {
    pair = balanced_transform(left, error_weight(side, head));
    if (segments == 2) {  // where energy and cost are in balance, its principal axes part the channels best
      const SquareMatrix axes = principal_axes(multiply(multiply(pair.forward, left), transposed(pair.forward)));
      pair.forward = multiply(axes, pair.forward);
      pair.inverse = multiply(pair.inverse, transposed(axes));
    }
  }
  if (side.recipe.transform == KvTransform::svd) {
    pair.forward = principal_axes(left);
    pair.inverse = transposed(pair.forward);
  }
  if (segments == 2) {  // the half of the channels with more energy comes first
    const std::vector<double> energy = energies(pair.forward, left);
    std::vector<uint32_t> order(d);
    std::iota(order.begin(), order.end(), 0u);
    std::ranges::stable_sort(order, [&energy](uint32_t a, uint32_t b) { return energy[a] > energy[b]; });
    TransformPair sorted{SquareMatrix(d), SquareMatrix(d)};
    for (uint32_t i = 0; i < d; ++i)
      for (uint32_t j = 0; j < d; ++j) {
        sorted.forward(i, j) = pair.forward(order[i], j);
        sorted.inverse(j, i) = pair.inverse(j, order[i]);
      }
    pair = std::move(sorted);
  }
  if (flatten) {
    pair.forward = multiply(*flatten, pair.forward);
    pair.inverse = multiply(pair.inverse, transposed(*flatten));
  }
  if (side.recipe.channel_scale || side.recipe.has_factor()) {
    // Brings each channel, or each segment as a whole, to a mean square of 1.
    const std::vector<double> energy = energies(pair.forward, left);
    const uint32_t run = side.recipe.channel_scale ? 1 : d / segments;
    for (uint32_t i = 0; i < d; ++i) {
      const auto first = energy.begin() + i / run * run;
      const double mean_square = std::accumulate(first, first + run, 0.0) / run;
      const double scale = mean_square > 0 ? std::sqrt(mean_square) : 1;
      for (uint32_t j = 0; j < d; ++j) {
        pair.forward(i, j) /= scale;
        pair.inverse(j, i) *= scale;
      }
    }
  }
  return pair;
}

// Pairs of all heads, or one that serves them all, or none.
std::vector<TransformPair> side_transforms(const SideContext& side, cpu::ThreadPool& threads) {
  const std::optional<SquareMatrix> flatten = flattening(side.recipe, side.d);
  if (!transform_is_calibrated(side.recipe)) {
    if (!flatten) return {};
    return {head_transform(side, 0, flatten)};
  }
  std::vector<TransformPair> pairs(side.heads);
  threads.for_each(side.heads, 1, [&](uint64_t begin, uint64_t end) {
    for (uint64_t head = begin; head < end; ++head) pairs[head] = head_transform(side, uint32_t(head), flatten);
  });
  return pairs;
}

// A head's sampled values, [tokens, d], as they come to the quantizer: centred, transformed, and over the token's
// scale.
std::vector<float> quantizer_input(const SideContext& side, uint32_t head, const std::vector<TransformPair>& pairs,
                                   const std::vector<float>& rope_table) {
  const KvLayerStatistics& s = *side.statistics;
  const KvSideRecipe& recipe = side.recipe;
  const uint32_t d = side.d, n = d / recipe.side.segments;
  const size_t first = size_t(head) * d, hidden = size_t(side.heads) * d;
  const bool turned = recipe.centre == KvCentre::position_mean;
  const std::vector<float>& mean = !side.is_k ? s.v_mean : turned ? s.k_rest_mean : s.k_mean;
  std::vector<float> result;
  for (size_t token = 0; token < s.samples.positions.size(); ++token) {
    const float* values = (side.is_k ? s.samples.k : s.samples.v).data() + token * hidden + first;
    std::vector<double> x(values, values + d), y(d);
    if (recipe.centre != KvCentre::none)
      for (uint32_t i = 0; i < d; ++i) x[i] -= mean[first + i];
    if (turned) {
      const float* row = rope_table.data() + size_t(s.samples.positions[token]) * d;
      for (uint32_t a = 0; a < d; a += 2) {
        const double m_a = s.k_mean_before_rope[first + a], m_b = s.k_mean_before_rope[first + a + 1];
        x[a] -= m_a * row[a] - m_b * row[a + 1];
        x[a + 1] -= m_b * row[a] + m_a * row[a + 1];
      }
    }
    if (pairs.empty()) {
      y = x;
    } else {
      const SquareMatrix& forward = pairs[pairs.size() == 1 ? 0 : head].forward;
      for (uint32_t i = 0; i < d; ++i)
        for (uint32_t j = 0; j < d; ++j) y[i] += forward(i, j) * x[j];
    }
    for (uint32_t i = 0; i < d; i += n) {
      double scale = 1;
      if (recipe.side.scale != KvScale::none) scale = std::sqrt(std::inner_product(&y[i], &y[i] + n, &y[i], 0.0) / n);
      for (uint32_t j = i; j < i + n; ++j) result.push_back(float(scale > 0 ? y[j] / scale : 0.0));
    }
  }
  return result;
}

// [heads, kv_codebook_values]: k-means of what comes to the quantizer.
std::vector<float> fitted_codebooks(const SideContext& side, uint32_t layer, const std::vector<TransformPair>& pairs,
                                    const KvStatistics& statistics, cpu::ThreadPool& threads) {
  if (side.statistics->samples.positions.empty())
    throw_error(ErrorKind::usage,
                "no k-means tables \"{}\" in the calibration, which holds those of the named presets; calibrate and "
                "compare in one run to fit others",
                kv_codebook_key(side.recipe, side.is_k));
  const uint32_t n = side.d / side.recipe.side.segments, size = kv_codebook_values(side.recipe);
  std::vector<float> result(size_t(side.heads) * size);
  threads.for_each(side.heads, 1, [&](uint64_t begin, uint64_t end) {
    for (uint32_t head = uint32_t(begin); head < end; ++head) {
      const std::vector<float> input = quantizer_input(side, head, pairs, statistics.rope_table);
      size_t at = size_t(head) * size;
      for (uint32_t segment = 0; segment < side.recipe.side.segments; ++segment) {
        std::vector<float> values;
        for (size_t i = 0; i < input.size(); ++i)
          if (i % side.d / n == segment) values.push_back(input[i]);
        const uint64_t seed =
            statistics.seed + kCodebookSeed + 1000003ull * ((layer * 2ull + side.is_k) * side.heads + head);
        const Codebook codebook = kmeans_1d(values, 1u << kv_centroid_bits(side.recipe, segment), seed);
        for (const double centroid : codebook.centroids) result[at++] = float(centroid);
        result[at++] = float(mean_residual(codebook, values));
      }
    }
  });
  return result;
}

// The operand of one head's quantizer, from stored k-means centroids and residuals.
void append_fitted(const KvSideRecipe& recipe, std::span<const float> stored, std::vector<float>& operand) {
  for (uint32_t segment = 0; segment < recipe.side.segments; ++segment) {
    const size_t count = size_t(1) << kv_centroid_bits(recipe, segment);
    Codebook codebook = nearest_codebook({stored.begin(), stored.begin() + ptrdiff_t(count)});
    append_codebook(recipe.sign ? with_residual_sign(codebook, stored[count]) : codebook, operand);
    stored = stored.subspan(count + 1);
  }
}

// The operand that all heads share.
std::vector<float> analytic_codebook(const KvSideRecipe& recipe) {
  std::vector<float> operand;
  for (uint32_t segment = 0; segment < recipe.side.segments; ++segment) {
    const uint32_t bits = kv_centroid_bits(recipe, segment);
    Codebook codebook = recipe.centroids == KvCentroids::integer ? integer_codebook(bits) : lloyd_max_gaussian(bits);
    if (recipe.sign) codebook = with_residual_sign(codebook, gaussian_mean_residual(codebook));
    append_codebook(codebook, operand);
  }
  return operand;
}

void append_rounded(const SquareMatrix& matrix, std::vector<float>& operand) {
  for (const double value : matrix.values) operand.push_back(float(value));
}

// Fills one side; `inverse` is KvLayerTables::query_transform or out_transform.
void fill_side(const SideContext& side, uint32_t layer, const KvStatistics* statistics, cpu::ThreadPool& threads,
               KvSideTables& tables, std::vector<float>& inverse) {
  const KvSideRecipe& recipe = side.recipe;
  if (recipe.centre != KvCentre::none) {
    const KvLayerStatistics& s = *side.statistics;
    const bool turned = recipe.centre == KvCentre::position_mean;
    tables.mean = !side.is_k ? s.v_mean : turned ? s.k_rest_mean : s.k_mean;
    if (turned) tables.position_mean = s.k_mean_before_rope;
  }
  const std::vector<TransformPair> pairs = side_transforms(side, threads);
  for (const TransformPair& pair : pairs) {
    append_rounded(pair.forward, tables.transform);
    append_rounded(side.is_k ? transposed(pair.inverse) : pair.inverse, inverse);
  }
  if (recipe.centroids == KvCentroids::kmeans) {
    const auto found = side.statistics->codebooks.find(kv_codebook_key(recipe, side.is_k));
    const std::vector<float> stored = found != side.statistics->codebooks.end()
                                          ? found->second
                                          : fitted_codebooks(side, layer, pairs, *statistics, threads);
    const uint32_t size = kv_codebook_values(recipe);
    for (uint32_t head = 0; head < side.heads; ++head)
      append_fitted(recipe, std::span(stored).subspan(size_t(head) * size, size), tables.codebook);
  } else if (recipe.side.has_codebook()) {
    tables.codebook = analytic_codebook(recipe);
  }
  if (recipe.side.qjl) append_rounded(random_normal(side.d, kProjectionSeed), tables.projection);
}

}  // namespace

uint32_t kv_centroid_bits(const KvSideRecipe& recipe, uint32_t segment) {
  return recipe.side.bits[segment] - (recipe.sign ? 1 : 0);
}

std::string kv_codebook_key(const KvSideRecipe& recipe, bool is_k) {
  static constexpr std::array<std::string_view, 3> kCentres = {"raw", "mean", "position_mean"};
  static constexpr std::array<std::string_view, 5> kTransforms = {"none", "svd", "hadamard", "random", "balanced"};
  std::string key = fmt::format("{}.{}", is_k ? "k" : "v", kv_centroid_bits(recipe, 0));
  if (recipe.side.segments == 2) key += fmt::format("_{}", kv_centroid_bits(recipe, 1));
  key += fmt::format(".{}.{}", kCentres[size_t(recipe.centre)], kTransforms[size_t(recipe.transform)]);
  if (recipe.channel_scale) key += ".channel";
  if (recipe.side.scale != KvScale::none) key += ".scaled";
  return key;
}

uint32_t kv_codebook_values(const KvSideRecipe& recipe) {
  uint32_t values = 0;
  for (uint32_t segment = 0; segment < recipe.side.segments; ++segment)
    values += (1u << kv_centroid_bits(recipe, segment)) + 1;
  return values;
}

OutputWeights checkpoint_output_weights(const Checkpoint& checkpoint) {
  return [&checkpoint](uint32_t layer) {
    const uint64_t hidden = checkpoint.config().hidden;
    const std::array<uint64_t, 2> shape{hidden, hidden};
    const TensorEntry& entry =
        checkpoint.require(fmt::format("esm.encoder.layer.{}.attention.output.dense.weight", layer), shape);
    std::vector<float> weights(hidden * hidden);
    convert(*runtime_dtype(entry.dtype), entry.data.data(), DType::f32, weights.data(), weights.size());
    return weights;
  };
}

std::vector<uint64_t> kv_table_sizes(const KvPreset& preset, uint64_t heads, uint64_t head_dim) {
  const uint64_t square = head_dim * head_dim;
  std::vector<uint64_t> sizes;
  for (const KvSideRecipe* recipe : {&preset.k, &preset.v}) {
    if (recipe->centre != KvCentre::none) sizes.push_back(heads * head_dim);
    if (recipe->centre == KvCentre::position_mean) sizes.push_back(heads * head_dim);
    const bool calibrated = transform_is_calibrated(*recipe);
    if (calibrated || recipe->transform != KvTransform::none)
      sizes.insert(sizes.end(), 2, (calibrated ? heads : 1) * square);  // there and back
    if (recipe->side.has_codebook())
      sizes.push_back((recipe->centroids == KvCentroids::kmeans ? heads : 1) * recipe->side.codebook_size());
    if (recipe->side.qjl) sizes.push_back(square);
  }
  return sizes;
}

void fit_kv_codebooks(KvStatistics& statistics, const KvPreset& preset, const OutputWeights& output_weights) {
  cpu::ThreadPool threads(0);
  for (uint32_t l = 0; l < statistics.layers.size(); ++l)
    for (const bool is_k : {true, false}) {
      const KvSideRecipe& recipe = is_k ? preset.k : preset.v;
      KvLayerStatistics& layer = statistics.layers[l];
      const std::string key = kv_codebook_key(recipe, is_k);
      if (recipe.centroids != KvCentroids::kmeans || layer.codebooks.contains(key)) continue;
      std::vector<float> weights;
      if (needs_output_weights(recipe, is_k)) weights = output_weights(l);
      const SideContext side{recipe, is_k, statistics.heads, statistics.head_dim, &layer, &weights};
      const std::vector<TransformPair> pairs = side_transforms(side, threads);
      layer.codebooks[key] = fitted_codebooks(side, l, pairs, statistics, threads);
    }
}

KvTables make_kv_tables(const KvPreset& preset, const Esm2Config& config, const KvStatistics* statistics,
                        const OutputWeights& output_weights) {
  KvTables tables;
  tables.preset = preset;
  tables.heads = config.heads;
  tables.head_dim = config.head_dim();
  tables.shared = !preset.needs_calibration();
  if (!tables.shared && !statistics)
    throw_error(ErrorKind::usage, "KV preset \"{}\" needs a calibration: make one with turboesm calibrate",
                preset.name);
  if (!tables.shared && (statistics->layers.size() != config.layers || statistics->heads != config.heads ||
                         statistics->head_dim != config.head_dim()))
    throw_error(ErrorKind::usage, "the calibration is of {} layers of {} heads of {}, the model has {} of {} of {}",
                statistics->layers.size(), statistics->heads, statistics->head_dim, config.layers, config.heads,
                config.head_dim());
  cpu::ThreadPool threads(0);
  const uint32_t layers = tables.shared ? 1 : config.layers;
  for (uint32_t l = 0; l < layers; ++l) {
    KvLayerTables& layer = tables.layers.emplace_back();
    const KvLayerStatistics* known = tables.shared ? nullptr : &statistics->layers[l];
    std::vector<float> weights;
    if (needs_output_weights(preset.v, false)) weights = output_weights(l);
    const SideContext k{preset.k, true, tables.heads, tables.head_dim, known, nullptr};
    const SideContext v{preset.v, false, tables.heads, tables.head_dim, known, &weights};
    fill_side(k, l, statistics, threads, layer.k, layer.query_transform);
    fill_side(v, l, statistics, threads, layer.v, layer.out_transform);
  }
  return tables;
}

}  // namespace turboesm
