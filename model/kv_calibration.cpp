#include "model/kv_calibration.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include <Eigen/Dense>

#include "runtime/cpu/thread_pool.h"
#include "runtime/error.h"

namespace turboesm {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Sums over tokens j of one head. t_j is the row of the RoPE table: (cos_0, sin_0, cos_1, sin_1, ...).
struct HeadSums {
  explicit HeadSums(Eigen::Index d)
      : k(Eigen::VectorXd::Zero(d)),
        v(Eigen::VectorXd::Zero(d)),
        qq(RowMajor::Zero(d, d)),
        kk(RowMajor::Zero(d, d)),
        kt(RowMajor::Zero(d, d)),
        vv(RowMajor::Zero(d, d)) {}

  Eigen::VectorXd k, v;     // sums of k, v
  RowMajor qq, kk, kt, vv;  // of q q^T, k k^T, k t^T, v v^T
};

struct LayerSums {
  LayerSums(uint32_t head_count, Eigen::Index d, uint64_t seed)
      : heads(head_count, HeadSums(d)), t(Eigen::VectorXd::Zero(d)), tt(RowMajor::Zero(d, d)), engine(seed) {}

  std::vector<HeadSums> heads;
  Eigen::VectorXd t;
  RowMajor tt;
  uint64_t tokens = 0;
  KvSamples samples;
  std::mt19937_64 engine;  // draws the samples; the same tokens in every layer
};

// One head's columns of a [tokens, heads, d] tensor.
RowMajor head_columns(std::span<const float> tensor, uint32_t heads, uint32_t head, Eigen::Index d) {
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Index tokens = Eigen::Index(tensor.size()) / (heads * d);
  const Eigen::Map<const Rows> all(tensor.data(), tokens, heads * d);
  return all.middleCols(head * d, d).cast<double>();
}

// The mean before RoPE. Turning k_j back is linear in k_j t_j^T, so the sum of that holds all it takes.
Eigen::VectorXd mean_before_rope(const RowMajor& kt_mean) {
  Eigen::VectorXd mean(kt_mean.rows());
  for (Eigen::Index a = 0; a < mean.size(); a += 2) {
    const Eigen::Index b = a + 1;
    mean[a] = kt_mean(a, a) + kt_mean(b, b);
    mean[b] = kt_mean(b, a) - kt_mean(a, b);
  }
  return mean;
}

// M with M t_j = `mean` turned to position j.
RowMajor turning(const Eigen::VectorXd& mean) {
  RowMajor result = RowMajor::Zero(mean.size(), mean.size());
  for (Eigen::Index a = 0; a < mean.size(); a += 2) {
    result(a, a) = result(a + 1, a + 1) = mean[a];
    result(a, a + 1) = -mean[a + 1];
    result(a + 1, a) = mean[a + 1];
  }
  return result;
}

void append(const Eigen::VectorXd& vector, std::vector<float>& out) {
  for (const double value : vector) out.push_back(float(value));
}

// A sum of squares that rounding has left below 0 is 0.
void append_triangle(const RowMajor& symmetric, std::vector<float>& out) {
  for (Eigen::Index i = 0; i < symmetric.rows(); ++i)
    for (Eigen::Index j = i; j < symmetric.cols(); ++j)
      out.push_back(float(i == j ? std::max(0.0, symmetric(i, j)) : (symmetric(i, j) + symmetric(j, i)) / 2));
}

bool all_finite(const std::vector<float>& values) {
  return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

KvLayerStatistics statistics_of(const LayerSums& sums) {
  const double n = double(sums.tokens);
  const Eigen::VectorXd t = sums.t / n;
  const RowMajor tt = sums.tt / n;
  KvLayerStatistics result;
  for (const HeadSums& head : sums.heads) {
    const Eigen::VectorXd k_mean = head.k / n, v_mean = head.v / n, m = mean_before_rope(head.kt / n);
    const RowMajor kk = head.kk / n, M = turning(m);
    const RowMajor cross = (head.kt / n) * M.transpose();  // E k (M t)^T
    const Eigen::VectorXd rest_mean = k_mean - M * t;
    const RowMajor rest = kk - cross - cross.transpose() + M * tt * M.transpose() - rest_mean * rest_mean.transpose();
    append(m, result.k_mean_before_rope);
    append(k_mean, result.k_mean);
    append(rest_mean, result.k_rest_mean);
    append(v_mean, result.v_mean);
    append_triangle(head.qq / n, result.q_moment);
    append_triangle(kk - k_mean * k_mean.transpose(), result.k_covariance);
    append_triangle(rest, result.k_rest_covariance);
    append_triangle(head.vv / n - v_mean * v_mean.transpose(), result.v_covariance);
  }
  result.samples = sums.samples;
  return result;
}

// Share of K's energy in heads [begin, end) that the mean before RoPE carries. RoPE turns each pair of values and
// leaves its length, so the energy is the same before and after it.
double mean_share(const KvStatistics& statistics, uint32_t layer, uint32_t begin, uint32_t end) {
  const KvLayerStatistics& s = statistics.layers[layer];
  const size_t d = statistics.head_dim;
  double carried = 0, energy = 0;
  for (size_t i = begin * d; i < end * d; ++i) {
    const double before = s.k_mean_before_rope[i], after = s.k_mean[i];
    const size_t row = i % d;
    const size_t diagonal = i / d * (d * (d + 1) / 2) + row * d - row * (row - 1) / 2;
    carried += before * before;
    energy += s.k_covariance[diagonal] + after * after;
  }
  return energy > 0 ? std::min(1.0, carried / energy) : 0;
}

}  // namespace

struct KvCalibrator::Impl {
  Impl(const Esm2Config& model, std::vector<float> table, Options choices)
      : config(model), rope_table(std::move(table)), options(choices), threads(0) {
    for (uint32_t l = 0; l < config.layers; ++l) layers.emplace_back(config.heads, config.head_dim(), options.seed);
  }

  // Reservoir sampling (Vitter 1985, algorithm R).
  void sample(LayerSums& layer, std::span<const float> k, std::span<const float> v,
              std::span<const int32_t> positions) const {
    const size_t hidden = config.hidden;
    KvSamples& samples = layer.samples;
    for (size_t row = 0; row < positions.size(); ++row) {
      size_t slot = size_t(layer.tokens + row);
      if (slot >= options.sample_tokens) slot = size_t(layer.engine() % (layer.tokens + row + 1));
      if (slot >= options.sample_tokens) continue;
      if (slot == samples.positions.size()) {
        samples.positions.emplace_back();
        samples.k.resize(samples.k.size() + hidden);
        samples.v.resize(samples.v.size() + hidden);
      }
      samples.positions[slot] = positions[row];
      std::ranges::copy(k.subspan(row * hidden, hidden), samples.k.begin() + ptrdiff_t(slot * hidden));
      std::ranges::copy(v.subspan(row * hidden, hidden), samples.v.begin() + ptrdiff_t(slot * hidden));
    }
  }

  Esm2Config config;
  std::vector<float> rope_table;
  Options options;
  std::vector<LayerSums> layers;
  mutable cpu::ThreadPool threads;
};

KvCalibrator::KvCalibrator(const Esm2Config& config, std::vector<float> rope_table, Options options)
    : impl_(std::make_unique<Impl>(config, std::move(rope_table), options)) {}
KvCalibrator::KvCalibrator(KvCalibrator&&) noexcept = default;
KvCalibrator& KvCalibrator::operator=(KvCalibrator&&) noexcept = default;
KvCalibrator::~KvCalibrator() = default;

void KvCalibrator::add(uint32_t layer, std::span<const float> q, std::span<const float> k, std::span<const float> v,
                       std::span<const int32_t> positions) {
  Impl& impl = *impl_;
  const size_t size = positions.size() * impl.config.hidden;
  const Eigen::Index d = impl.config.head_dim();
  if (layer >= impl.layers.size() || q.size() != size || k.size() != size || v.size() != size)
    throw_error(ErrorKind::usage, "[KvCalibrator] layer {} of {}: {}, {}, {} values of q, k, v for {} tokens of {}",
                layer, impl.layers.size(), q.size(), k.size(), v.size(), positions.size(), impl.config.hidden);
  RowMajor table(Eigen::Index(positions.size()), d);
  for (Eigen::Index row = 0; row < table.rows(); ++row) {
    const int64_t position = positions[size_t(row)];
    if (position < 0 || uint64_t(position + 1) * uint64_t(d) > impl.rope_table.size())
      throw_error(ErrorKind::usage, "[KvCalibrator] position {} is not in a table of {} rows", position,
                  impl.rope_table.size() / size_t(d));
    table.row(row) = Eigen::Map<const Eigen::RowVectorXf>(&impl.rope_table[size_t(position * d)], d).cast<double>();
  }

  LayerSums& sums = impl.layers[layer];
  sums.t += table.colwise().sum().transpose();
  sums.tt += table.transpose() * table;
  const uint32_t heads = impl.config.heads;
  impl.threads.for_each(heads, 1, [&](uint64_t begin, uint64_t end) {
    for (uint32_t h = uint32_t(begin); h < end; ++h) {
      HeadSums& head = sums.heads[h];
      const RowMajor head_q = head_columns(q, heads, h, d);
      const RowMajor head_k = head_columns(k, heads, h, d);
      const RowMajor head_v = head_columns(v, heads, h, d);
      head.k += head_k.colwise().sum().transpose();
      head.v += head_v.colwise().sum().transpose();
      head.qq += head_q.transpose() * head_q;
      head.kk += head_k.transpose() * head_k;
      head.kt += head_k.transpose() * table;
      head.vv += head_v.transpose() * head_v;
    }
  });
  impl.sample(sums, k, v, positions);
  sums.tokens += positions.size();
}

KvStatistics KvCalibrator::finish(std::string model_hash, uint64_t sequences) const {
  const Impl& impl = *impl_;
  KvStatistics result;
  result.model = std::move(model_hash);
  result.heads = impl.config.heads;
  result.head_dim = impl.config.head_dim();
  result.sequences = sequences;
  result.tokens = impl.layers.empty() ? 0 : impl.layers[0].tokens;
  result.seed = impl.options.seed;
  result.rope_table = impl.rope_table;
  for (size_t l = 0; l < impl.layers.size(); ++l) {
    if (impl.layers[l].tokens != result.tokens || result.tokens == 0)
      throw_error(ErrorKind::usage, "[KvCalibrator] layer {} got {} tokens, layer 0 {}", l, impl.layers[l].tokens,
                  result.tokens);
    KvLayerStatistics& layer = result.layers.emplace_back(statistics_of(impl.layers[l]));
    for (const auto* values : {&layer.k_mean, &layer.v_mean, &layer.k_covariance, &layer.v_covariance, &layer.q_moment})
      if (!all_finite(*values))
        throw_error(ErrorKind::input, "queries, keys or values of layer {} are not finite numbers", l);
  }
  for (const KvPresetRow& row : kv_presets()) fit_kv_codebooks(result, parse_kv_preset(row.name), nullptr);
  return result;
}

double KvStatistics::position_mean_share(uint32_t layer, uint32_t head) const {
  return mean_share(*this, layer, head, head + 1);
}

double KvStatistics::position_mean_share(uint32_t layer) const { return mean_share(*this, layer, 0, heads); }

std::vector<size_t> choose_calibration(std::span<const uint32_t> lengths, size_t count, uint64_t seed) {
  std::vector<size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), size_t(0));
  if (count >= lengths.size() || count == 0) {
    order.resize(std::min(count, lengths.size()));
    return order;
  }
  const auto [shortest, longest] = std::ranges::minmax(lengths);
  std::mt19937_64 engine(seed);
  const auto shuffle = [&engine](auto& items) {  // std::shuffle differs between libraries
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[size_t(engine() % i)]);
  };
  shuffle(order);
  std::vector<std::vector<size_t>> bins(count);
  const uint64_t width = uint64_t(longest) - shortest + 1;
  for (const size_t i : order) bins[size_t((lengths[i] - shortest) * uint64_t(count) / width)].push_back(i);

  std::vector<size_t> chosen;
  while (chosen.size() < count) {
    // No length is favoured by a last round that cannot take from every bin.
    shuffle(bins);
    for (std::vector<size_t>& bin : bins) {
      if (bin.empty() || chosen.size() == count) continue;
      chosen.push_back(bin.back());
      bin.pop_back();
    }
  }
  std::ranges::sort(chosen);
  return chosen;
}

}  // namespace turboesm
