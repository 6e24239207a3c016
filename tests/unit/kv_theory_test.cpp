#include <cmath>
#include <map>
#include <numbers>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include "model/codebook.h"
#include "model/kv_calibration.h"
#include "model/kv_codec.h"
#include "runtime/registry.h"
#include "tests/unit/kv_data.h"

// What the encoder of the CPU back end leaves of values, against what theory says that it must.
namespace turboesm {
namespace {

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using conformance::Rng;

// One sequence's cache of one layer, as a device encoded it, read back on the host.
struct EncodedLayer {
  uint32_t heads, d;
  std::vector<std::vector<KvDecodedBlock>> k, v;  // [heads][blocks]

  const KvDecodedBlock& k_block(uint32_t head, uint32_t token) const { return k[head][token / KV_BLOCK]; }
  std::span<const float> row(const std::vector<std::vector<KvDecodedBlock>>& side, uint32_t head,
                             uint32_t token) const {
    return std::span(side[head][token / KV_BLOCK].values).subspan(size_t(token % KV_BLOCK) * d, d);
  }
};

class Encoder {
 public:
  Encoder() : device_(open_device("cpu", {}).device) {}

  // k, v [tokens, heads, d]; token t is at position t of the table.
  EncodedLayer encode(const KvFormat& format, const KvLayerTables& tables, uint32_t heads, uint32_t d,
                      std::span<const float> k, std::span<const float> v, std::span<const float> table = {}) {
    const uint32_t tokens = uint32_t(k.size() / (size_t(heads) * d)), capacity = kv_capacity(tokens);
    KvAppend append;
    append.k = upload(k);
    append.v = upload(v);
    append.format = format;
    append.appends = upload(std::vector<int32_t>{0, 0, int32_t(tokens)}, DType::i32);
    if (!table.empty()) append.table = upload(table);
    append.table_rows = uint32_t(table.size() / d);
    append.k_side = upload_side(tables.k);
    append.v_side = upload_side(tables.v);
    const uint32_t block_words = format.block_words(d);
    std::vector<uint32_t> words(size_t(heads) * capacity / KV_BLOCK * block_words);
    append.cache = upload(words, DType::i32);
    append.tokens = append.max_count = tokens;
    append.sequences = 1;
    append.heads = heads;
    append.head_dim = d;
    append.capacity = capacity;
    const Operation operation = append;
    device_->run({&operation, 1});
    device_->download<uint32_t>(append.cache, words);

    EncodedLayer result{heads, d, {}, {}};
    result.k.resize(heads);
    result.v.resize(heads);
    std::span<const uint32_t> rest = words;
    for (uint32_t head = 0; head < heads; ++head)
      for (uint32_t block = 0; block < capacity / KV_BLOCK; ++block) {
        const auto take = [&](const KvSide& side, const std::vector<float>& codebook) {
          const size_t size = side.codebook_size(), count = side.block_words(d);
          const auto own = std::span(codebook).subspan(codebook.size() > size ? head * size : 0, size);
          const KvDecodedBlock decoded = decode_kv_block(side, d, rest.first(count), own);
          rest = rest.subspan(count);
          return decoded;
        };
        result.k[head].push_back(take(format.k, tables.k.codebook));
        result.v[head].push_back(take(format.v, tables.v.codebook));
      }
    buffers_.clear();
    return result;
  }

 private:
  template <class T>
  Tensor upload(const T& values, DType dtype = DType::f32) {
    if (values.empty()) return {};
    const auto bytes = std::as_bytes(std::span(values));
    buffers_.push_back(device_->allocate(bytes.size(), MemoryLabel::activations));
    device_->upload(*buffers_.back(), 0, bytes);
    return {buffers_.back().get(), 0, values.size(), dtype};
  }

  KvSideTensors upload_side(const KvSideTables& side) {
    return {upload(side.mean), upload(side.position_mean), upload(side.transform), upload(side.codebook),
            upload(side.projection)};
  }

  std::unique_ptr<Device> device_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

KvLayerTables with_codebook(const Codebook& codebook) {
  KvLayerTables tables;
  append_codebook(codebook, tables.k.codebook);
  return tables;
}

// Mean squared error of K's values over their mean square.
double relative_error(const EncodedLayer& layer, std::span<const float> k) {
  double error = 0, energy = 0;
  for (size_t i = 0; i < k.size(); ++i) {
    const size_t token = i / layer.d, at = i % layer.d;
    const double difference = k[i] - layer.row(layer.k, 0, uint32_t(token))[at];
    error += difference * difference;
    energy += double(k[i]) * k[i];
  }
  return error / energy;
}

TEST_CASE("the encoder's error is that of the Lloyd-Max quantizer", "[unit]") {
  Encoder encoder;
  const uint32_t d = 128, tokens = 4096;
  const std::vector<float> k = Rng(1).normals(uint64_t(tokens) * d);
  std::vector<float> scaled = k;  // with a norm of each token's own
  for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= float(1 + i / d % 50);
  const double published[] = {.3634, .1175, .03455, .00950};
  for (uint32_t bits = 1; bits <= 4; ++bits) {
    INFO(bits << " bits");
    const KvLayerTables tables = with_codebook(lloyd_max_gaussian(bits));
    KvFormat format;
    format.k = {.bits = {bits, 0}};
    CHECK_THAT(relative_error(encoder.encode(format, tables, 1, d, k, k), k), WithinRel(published[bits - 1], 0.02));
    format.k = {.bits = {bits, 0}, .scale_bits = 16, .scale = KvScale::norm};
    CHECK_THAT(relative_error(encoder.encode(format, tables, 1, d, scaled, k), scaled),
               WithinRel(published[bits - 1], 0.02));
  }
  KvFormat format;
  format.k = {.bits = {4, 0}};
  const Codebook three = lloyd_max_gaussian(3);
  const Codebook signs = with_residual_sign(three, gaussian_mean_residual(three));
  CHECK_THAT(relative_error(encoder.encode(format, with_codebook(signs), 1, d, k, k), k), WithinRel(.01217, 0.02));
}

TEST_CASE("what each kind of scale promises holds for every token", "[unit]") {
  Encoder encoder;
  const uint32_t d = 64, tokens = 512;
  std::vector<float> k = Rng(2).normals(uint64_t(tokens) * d);
  for (size_t i = 0; i < k.size(); ++i) k[i] *= std::exp2(float(i / d % 7) - 3);
  const KvLayerTables tables = with_codebook(lloyd_max_gaussian(3));
  const auto encoded = [&](KvScale scale, uint32_t scale_bits) {
    KvFormat format;
    format.k = {.bits = {3, 0}, .scale_bits = scale_bits, .scale = scale};
    return encoder.encode(format, tables, 1, d, k, k);
  };
  for (const uint32_t scale_bits : {8u, 16u}) {
    const double step = scale_bits == 8 ? 1.0 / 64 : 1.0 / 2048;  // half the distance between scales, relative
    const EncodedLayer corrected = encoded(KvScale::corrected, scale_bits),
                       searched = encoded(KvScale::searched, scale_bits);
    const EncodedLayer norm = encoded(KvScale::norm, scale_bits);
    double cosine_norm = 0, cosine_searched = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      const auto x = std::span(k).subspan(size_t(t) * d, d);
      const auto product = [](auto a, auto b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); };
      const double xx = product(x, x);
      const auto c = corrected.row(corrected.k, 0, t), s = searched.row(searched.k, 0, t), n = norm.row(norm.k, 0, t);
      CHECK_THAT(std::sqrt(product(c, c) / xx), WithinAbs(1, 1.01 * step));  // as long as before
      CHECK_THAT(product(x, s) / xx, WithinAbs(1, 1.01 * step));             // as much along x as before
      cosine_norm += product(x, n) / std::sqrt(xx * product(n, n));
      cosine_searched += product(x, s) / std::sqrt(xx * product(s, s));
    }
    CHECK(1 - cosine_searched / tokens < 0.95 * (1 - cosine_norm / tokens));
  }
}

TEST_CASE("QJL estimates inner products without bias", "[unit]") {
  // sqrt(pi / 2) / d |r| (S q) . sign(S r), S with independent N(0, 1) entries: mean q . r, variance
  // (pi / 2 |q|^2 |r|^2 - (q . r)^2) / d.
  const uint32_t d = 16, draws = 10'000;
  Rng rng(3);
  const std::vector<float> q = rng.normals(d), r = rng.normals(d);
  const auto product = [](const auto& a, const auto& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  };
  const double qr = product(q, r), qq = product(q, q), rr = product(r, r);
  double sum = 0, squares = 0;
  for (uint32_t draw = 0; draw < draws; ++draw) {
    const SquareMatrix s = random_normal(d, draw);
    double estimate = 0;
    for (uint32_t i = 0; i < d; ++i) {
      double sq = 0, sr = 0;
      for (uint32_t j = 0; j < d; ++j) {
        sq += s(i, j) * q[j];
        sr += s(i, j) * r[j];
      }
      estimate += sr >= 0 ? sq : -sq;
    }
    estimate *= std::sqrt(std::numbers::pi / 2) / d * std::sqrt(rr);
    sum += estimate;
    squares += (estimate - qr) * (estimate - qr);
  }
  const double variance = (std::numbers::pi / 2 * qq * rr - qr * qr) / d;
  CHECK_THAT(sum / draws, WithinAbs(qr, 4 * std::sqrt(variance / draws)));
  CHECK_THAT(squares / draws, WithinRel(variance, 0.1));
}

TEST_CASE("a cache with QJL has the distortion of TurboQuant's inner-product quantizer", "[unit]") {
  // Zandieh et al. 2025, theorem 2: for unit q the mean square error of a score is about pi / 2 D(b - 1) |k|^2 / d.
  Encoder encoder;
  const uint32_t d = 128, tokens = 2048;
  const std::vector<float> k = Rng(4).normals(uint64_t(tokens) * d), queries = Rng(5).normals(uint64_t(tokens) * d);
  Esm2Config config;
  config.layers = config.heads = 1;
  config.hidden = d;
  const double distortion[] = {.3634, .1175, .03455};  // of the codes, one bit fewer
  for (const auto& [name, codes] :
       {std::pair("turboquant-2-qjl", 1u), {"turboquant-3-qjl", 2u}, {"turboquant-4-qjl", 3u}}) {
    INFO(name);
    const KvPreset preset = parse_kv_preset(name);
    const KvTables tables = make_kv_tables(preset, config, nullptr, nullptr);
    const KvLayerTables& layer = tables.of(0);
    const EncodedLayer encoded = encoder.encode(preset.format(), layer, 1, d, k, k);
    const auto times = [](const std::vector<float>& matrix, const std::vector<double>& x) {
      std::vector<double> y(d);
      for (uint32_t i = 0; i < d; ++i)
        for (uint32_t j = 0; j < d; ++j) y[i] += double(matrix[i * d + j]) * x[j];
      return y;
    };
    double error = 0, squares = 0, energy = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      std::vector<double> q(d);
      double exact = 0, norm = 0, square = 0;
      for (uint32_t i = 0; i < d; ++i) {
        const double value = queries[t * d + i];
        q[i] = value;
        norm += value * value;
        exact += value * k[t * d + i];
        square += double(k[t * d + i]) * k[t * d + i];
      }
      q = times(layer.query_transform, q);
      const std::vector<double> projected = times(layer.k.projection, q);
      const KvDecodedBlock& block = encoded.k_block(0, t);
      double score = 0, residual = 0;
      for (uint32_t i = 0; i < d; ++i) {
        score += q[i] * encoded.row(encoded.k, 0, t)[i];
        residual += projected[i] * block.signs[t % KV_BLOCK * d + i];
      }
      score += std::sqrt(std::numbers::pi / 2) / d * block.residual_norms[t % KV_BLOCK] * residual;
      error += (score - exact) / std::sqrt(norm) / tokens;
      squares += (score - exact) * (score - exact) / norm / tokens;
      energy += square / tokens;
    }
    CHECK_THAT(error, WithinAbs(0, 4 * std::sqrt(squares / tokens)));
    CHECK_THAT(squares, WithinRel(std::numbers::pi / 2 * distortion[codes - 1] * energy / d, 0.1));
  }
}

// Mean square error of the scores q . k and of the outputs W_o v that a preset leaves, over those of `exact` ones.
struct Damage {
  double score = 0, out = 0;
};

Damage damage(Encoder& encoder, const test::KvModelData& model, const KvTables& tables) {
  const test::KvLayerData& data = model.layers[0];
  const KvLayerTables& layer = tables.of(0);
  const uint32_t d = data.d, heads = data.heads, hidden = heads * d;
  const EncodedLayer encoded =
      encoder.encode(tables.preset.format(), layer, heads, d, data.k, data.v, model.rope_table);
  const auto head_matrix = [d](const std::vector<float>& matrix, uint32_t head) {
    if (matrix.empty()) return SquareMatrix::identity(d);
    SquareMatrix result(d);
    const size_t size = size_t(d) * d, first = matrix.size() > size ? head * size : 0;
    for (size_t i = 0; i < size; ++i) result.values[i] = matrix[first + i];
    return result;
  };
  Damage result;
  double scores = 0, outs = 0;
  for (uint32_t h = 0; h < heads; ++h)
    for (uint32_t t = 0; t < data.tokens; ++t) {
      std::vector<double> k_error(d), v_error(d);
      const auto y = encoded.row(encoded.k, h, t), z = encoded.row(encoded.v, h, t);
      const SquareMatrix k_back = head_matrix(layer.query_transform, h), v_back = head_matrix(layer.out_transform, h);
      std::vector<double> off(d);
      if (!layer.k.position_mean.empty())
        off = test::turned(std::span(layer.k.position_mean).subspan(h * d, d),
                           std::span(model.rope_table).subspan(size_t(t) * d, d));
      const auto k = data.row(data.k, t, h), v = data.row(data.v, t, h);
      for (uint32_t i = 0; i < d; ++i) {
        double k_decoded = off[i] + (layer.k.mean.empty() ? 0 : layer.k.mean[h * d + i]);
        double v_decoded = layer.v.mean.empty() ? 0 : layer.v.mean[h * d + i];
        for (uint32_t j = 0; j < d; ++j) {
          k_decoded += k_back(j, i) * y[j];  // query_transform is the inverse, transposed
          v_decoded += v_back(i, j) * z[j];
        }
        k_error[i] = k_decoded - k[i];
        v_error[i] = v_decoded - v[i];
      }
      for (uint32_t other = 0; other < data.tokens; other += 16) {
        const auto q = data.row(data.q, other, h);
        result.score += std::pow(std::inner_product(q.begin(), q.end(), k_error.begin(), 0.0), 2);
        scores += std::pow(std::inner_product(q.begin(), q.end(), k.begin(), 0.0), 2);
      }
      for (uint32_t row = 0; row < hidden; ++row) {
        const auto w = std::span(model.weights[0]).subspan(size_t(row) * hidden + h * d, d);
        result.out += std::pow(std::inner_product(w.begin(), w.end(), v_error.begin(), 0.0), 2);
        outs += std::pow(std::inner_product(w.begin(), w.end(), v.begin(), 0.0), 2);
      }
    }
  return {result.score / scores, result.out / outs};
}

TEST_CASE("each step of the codec makes scores and outputs better on keys like a model's", "[unit]") {
  Encoder encoder;
  const test::KvModelData model(1, 2, 32, 64, 6);
  const KvStatistics statistics = model.calibrate();
  std::map<std::string, Damage> found;
  const auto of = [&](const std::string& name) {
    if (!found.contains(name))
      found[name] = damage(encoder, model,
                           make_kv_tables(parse_kv_preset(name), model.config, &statistics, model.output_weights()));
    INFO(name << ": scores " << found[name].score << ", outputs " << found[name].out);
    return found[name];
  };
  CHECK(of("f32").score < 1e-12);
  CHECK(of("f32").out < 1e-12);
  CHECK(of("f16").score < 1e-6);
  CHECK(of("int8").score < 1e-3);
  CHECK(of("k3,v3,pre,hadamard,correct").score < 0.5 * of("k3,v3,hadamard,correct").score);
  CHECK(of("k3,v3,pre,balanced,correct").score < 0.8 * of("k3,v3,pre,hadamard,correct").score);
  CHECK(of("k3,v3,pre,balanced,correct").out < 0.9 * of("k3,v3,post,hadamard,correct").out);
  CHECK(of("turbo-s").score < of("wht3").score / 4);
  CHECK(of("turbo-s").out < of("wht3").out);
  CHECK(of("turbo-l").score < of("turbo-s").score);
  CHECK(of("turbo-s").score < of("turbo-xs").score);
  // More bits for the half of the channels that matters more, with as many bits in codes.
  CHECK(of("turbo-s").score < of("k3,v3,pre,balanced,search,s8").score);
  CHECK(of("turbo-s").out < of("k3,v3,pre,balanced,search,s8").out);
  CHECK(of("turboesm").score < of("turboesm-nosign").score);
  // A scale of 8 bits costs little.
  CHECK(of("turbo-s").score < 1.1 * of("k4/2,v4/2,pre,balanced,search,s16").score);
}

}  // namespace
}  // namespace turboesm
