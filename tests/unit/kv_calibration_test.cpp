#include "model/kv_calibration.h"

#include <array>
#include <cmath>
#include <limits>
#include <set>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include "model/kv_file.h"
#include "tests/unit/files.h"
#include "tests/unit/kv_data.h"

namespace turboesm {
namespace {

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using test::check_error;
using test::KvLayerData;
using test::KvModelData;

using Vector = std::vector<double>;

// Mean and E (x - shift)(x - shift)^T of vectors, plainly.
Vector mean_of(const std::vector<Vector>& rows) {
  Vector mean(rows[0].size());
  for (const Vector& row : rows)
    for (size_t i = 0; i < row.size(); ++i) mean[i] += row[i] / double(rows.size());
  return mean;
}

Vector triangle_of(const std::vector<Vector>& rows, const Vector& shift) {
  Vector triangle;
  for (size_t i = 0; i < shift.size(); ++i)
    for (size_t j = i; j < shift.size(); ++j) {
      double sum = 0;
      for (const Vector& row : rows) sum += (row[i] - shift[i]) * (row[j] - shift[j]);
      triangle.push_back(sum / double(rows.size()));
    }
  return triangle;
}

void check_near(const std::vector<float>& actual, uint32_t head, const Vector& expected) {
  double largest = 1;  // keys are of this order, and the mean taken off them is an f32
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  REQUIRE(actual.size() >= (head + 1) * expected.size());
  for (size_t i = 0; i < expected.size(); ++i)
    CHECK_THAT(actual[head * expected.size() + i], WithinAbs(expected[i], 1e-6 * largest));
}

TEST_CASE("calibration's one pass finds what two passes over all tokens find", "[unit]") {
  const uint32_t d = 8;
  const KvModelData model(2, 3, d, 150);
  KvCalibrator calibrator(model.config, model.rope_table);
  for (const uint32_t l : {1u, 0u}) {  // layers in any order, tokens in pieces
    const KvLayerData& data = model.layers[l];
    const auto piece = [&data](const std::vector<float>& tensor, size_t begin, size_t end) {
      const size_t width = size_t(data.heads) * data.d;
      return std::span(tensor).subspan(begin * width, (end - begin) * width);
    };
    for (const auto& [begin, end] : {std::array<size_t, 2>{0, 1}, {1, 100}, {100, 100}, {100, 150}})
      calibrator.add(l, piece(data.q, begin, end), piece(data.k, begin, end), piece(data.v, begin, end),
                     std::span(data.positions).subspan(begin, end - begin));
  }
  const KvStatistics statistics = calibrator.finish("hash", 4);
  CHECK(statistics.tokens == 150);
  CHECK(statistics.sequences == 4);
  CHECK(statistics.model == "hash");
  REQUIRE(statistics.layers.size() == 2);
  for (uint32_t l = 0; l < 2; ++l)
    for (uint32_t h = 0; h < 3; ++h) {
      const KvLayerData& data = model.layers[l];
      const KvLayerStatistics& found = statistics.layers[l];
      std::vector<Vector> q, k, v, before;
      const auto table_row = [&](uint32_t t) {
        return std::span(model.rope_table).subspan(size_t(data.positions[t]) * d, d);
      };
      for (uint32_t t = 0; t < data.tokens; ++t) {
        const auto as_doubles = [](std::span<const float> row) { return Vector(row.begin(), row.end()); };
        q.push_back(as_doubles(data.row(data.q, t, h)));
        k.push_back(as_doubles(data.row(data.k, t, h)));
        v.push_back(as_doubles(data.row(data.v, t, h)));
        std::vector<float> back(table_row(t).begin(), table_row(t).end());
        for (uint32_t i = 1; i < d; i += 2) back[i] = -back[i];  // the opposite angle
        before.push_back(test::turned(data.row(data.k, t, h), back));
      }
      const Vector k_mean = mean_of(k), v_mean = mean_of(v), before_mean = mean_of(before);
      const std::vector<float> rounded(before_mean.begin(), before_mean.end());
      std::vector<Vector> rest = k;
      for (uint32_t t = 0; t < data.tokens; ++t) {
        const Vector off = test::turned(rounded, table_row(t));
        for (uint32_t i = 0; i < d; ++i) rest[t][i] -= off[i];
      }
      check_near(found.k_mean_before_rope, h, before_mean);
      check_near(found.k_mean, h, k_mean);
      check_near(found.k_rest_mean, h, mean_of(rest));
      check_near(found.v_mean, h, v_mean);
      check_near(found.q_moment, h, triangle_of(q, Vector(d)));
      check_near(found.k_covariance, h, triangle_of(k, k_mean));
      check_near(found.k_rest_covariance, h, triangle_of(rest, mean_of(rest)));
      check_near(found.v_covariance, h, triangle_of(v, v_mean));

      double carried = 0, energy = 0;
      for (uint32_t i = 0; i < d; ++i) carried += before_mean[i] * before_mean[i];
      for (const Vector& row : before)
        for (const double value : row) energy += value * value / double(data.tokens);
      CHECK_THAT(statistics.position_mean_share(l, h), WithinAbs(carried / energy, 1e-6));
    }
  CHECK(statistics.position_mean_share(0) > 0.5);
}

TEST_CASE("calibration refuses what it cannot use", "[unit]") {
  const KvModelData model(2, 2, 8, 40);
  const KvLayerData& data = model.layers[0];
  KvCalibrator calibrator(model.config, model.rope_table);
  check_error(ErrorKind::usage, {"layer 0 got 0 tokens"}, [&] { calibrator.finish("", 0); });
  check_error(ErrorKind::usage, {"layer 2 of 2"}, [&] { calibrator.add(2, data.q, data.k, data.v, data.positions); });
  check_error(ErrorKind::usage, {"640, 639"},
              [&] { calibrator.add(0, data.q, std::span(data.k).first(639), data.v, data.positions); });
  std::vector<int32_t> positions = data.positions;
  positions[7] = 64;
  check_error(ErrorKind::usage, {"position 64", "64 rows"},
              [&] { calibrator.add(0, data.q, data.k, data.v, positions); });
  calibrator.add(0, data.q, data.k, data.v, data.positions);
  check_error(ErrorKind::usage, {"layer 1 got 0 tokens, layer 0 40"}, [&] { calibrator.finish("", 0); });
  std::vector<float> v = data.v;
  v[9] = std::numeric_limits<float>::infinity();
  calibrator.add(1, data.q, data.k, v, data.positions);
  check_error(ErrorKind::input, {"layer 1", "finite"}, [&] { calibrator.finish("", 0); });
}

TEST_CASE("calibration sequences are spread evenly over the lengths", "[unit]") {
  // Nine of ten are short, as in real collections.
  std::vector<uint32_t> lengths;
  for (uint32_t i = 0; i < 1000; ++i) lengths.push_back(i % 10 == 0 ? 50 + i : 50 + i % 100);
  const std::vector<size_t> chosen = choose_calibration(lengths, 40, 1);
  REQUIRE(chosen.size() == 40);
  CHECK(std::set(chosen.begin(), chosen.end()).size() == 40);
  CHECK(std::ranges::is_sorted(chosen));
  std::array<uint32_t, 4> quarters{};
  for (const size_t i : chosen) ++quarters[(lengths[i] - 50) / 250];
  for (const uint32_t count : quarters) CHECK(count == 10);
  CHECK(choose_calibration(lengths, 40, 1) == chosen);
  CHECK(choose_calibration(lengths, 40, 2) != chosen);

  // More than any bin holds: every bin gives what it has.
  const std::vector<uint32_t> skewed{1000, 10, 10, 10, 10, 10};
  const std::vector<size_t> few = choose_calibration(skewed, 3, 0);
  REQUIRE(few.size() == 3);
  CHECK(few[0] == 0);
  CHECK(choose_calibration(skewed, 6, 0) == std::vector<size_t>{0, 1, 2, 3, 4, 5});
  CHECK(choose_calibration(skewed, 100, 0).size() == 6);
  CHECK(choose_calibration(skewed, 0, 0).empty());
  CHECK(choose_calibration({}, 5, 0).empty());
  const std::vector<uint32_t> equal(9, 77);
  CHECK(choose_calibration(equal, 4, 0).size() == 4);
}

// Head `head` of an operand [heads or 1, size].
std::span<const float> of_head(const std::vector<float>& operand, size_t size, uint32_t head) {
  return std::span(operand).subspan(operand.size() > size ? head * size : 0, size);
}

Vector times(std::span<const float> matrix, const Vector& x) {
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    for (size_t j = 0; j < x.size(); ++j) y[i] += double(matrix[i * x.size() + j]) * x[j];
  return y;
}

double dot(const Vector& a, const Vector& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

TEST_CASE("operands of every preset are complete and undo each other", "[unit]") {
  for (const uint32_t d : {24u, 32u}) {
    const uint32_t heads = 2;
    const KvModelData model(2, heads, d, 200);
    const KvStatistics statistics = model.calibrate();
    std::vector<std::string_view> names{
        "k3,v3,post,balanced,search",        "k3,v3,pre,hadamard,channel", "k2,v2,gauss",
        "k2.5,v2.5,pre,balanced,correct,s8", "k3,v3,svd,kmeans,norm,s8",   "k2,v3,pre,balanced,kmeans,sign",
        "k3.5,v2.5,hadamard,kmeans"};
    for (const KvPresetRow& row : kv_presets()) names.push_back(row.name);
    for (const std::string_view name : names) {
      INFO(name << ", head_dim " << d);
      const KvPreset preset = parse_kv_preset(name);
      const KvTables tables = make_kv_tables(preset, model.config, &statistics, model.output_weights());
      CHECK(tables.shared == !preset.needs_calibration());
      REQUIRE(tables.layers.size() == (tables.shared ? 1 : 2));
      for (uint32_t l = 0; l < 2; ++l) {
        const KvLayerTables& layer = tables.of(l);
        const KvLayerData& data = model.layers[l];
        const size_t square = size_t(d) * d, width = size_t(heads) * d;
        const auto one_of = [](size_t size, std::initializer_list<size_t> sizes) {
          return std::ranges::find(sizes, size) != sizes.end();
        };
        CHECK(one_of(layer.k.transform.size(), {0, square, heads * square}));
        CHECK(layer.query_transform.size() == layer.k.transform.size());
        CHECK(layer.out_transform.size() == layer.v.transform.size());
        CHECK(layer.k.mean.size() == (preset.k.centre == KvCentre::none ? 0 : width));
        CHECK(layer.v.mean.size() == (preset.v.centre == KvCentre::none ? 0 : width));
        CHECK(layer.k.position_mean.size() == (preset.k.centre == KvCentre::position_mean ? width : 0));
        CHECK(layer.v.position_mean.empty());
        CHECK(layer.k.projection.size() == (preset.k.side.qjl ? square : 0));
        for (const auto& [side, table] : {std::pair(preset.k.side, layer.k), std::pair(preset.v.side, layer.v)}) {
          const size_t size = side.codebook_size();
          CHECK(one_of(table.codebook.size(), {size, heads * size}));
          for (uint32_t h = 0; h < heads && size > 0; ++h) {
            std::span<const float> codebook = of_head(table.codebook, size, h);
            for (uint32_t segment = 0; segment < side.segments; ++segment) {
              const size_t count = size_t(1) << side.bits[segment];
              CHECK(std::ranges::is_sorted(codebook.first(count)));
              CHECK(std::ranges::is_sorted(codebook.subspan(count, count - 1)));
              codebook = codebook.subspan(2 * count - 1);
            }
          }
        }
        for (uint32_t h = 0; h < heads; ++h) {
          const uint32_t t = 33;
          const auto vector = [&](const std::vector<float>& tensor) {
            const std::span<const float> row = data.row(tensor, t, h);
            return Vector(row.begin(), row.end());
          };
          // q . k is the score of what is quantized and of what was taken off.
          const Vector q = vector(data.q), k = vector(data.k), v = vector(data.v);
          Vector off(d);
          if (!layer.k.position_mean.empty())
            off = test::turned(of_head(layer.k.position_mean, d, h),
                               std::span(model.rope_table).subspan(size_t(data.positions[t]) * d, d));
          Vector left = k, seen = q;
          for (uint32_t i = 0; i < d; ++i) {
            if (!layer.k.mean.empty()) off[i] += layer.k.mean[h * d + i];
            left[i] -= off[i];
          }
          if (!layer.k.transform.empty()) {
            left = times(of_head(layer.k.transform, square, h), left);
            seen = times(of_head(layer.query_transform, square, h), q);
          }
          const double scale = std::sqrt(dot(q, q) * dot(k, k));
          CHECK_THAT(dot(seen, left) + dot(q, off), WithinAbs(dot(q, k), 1e-4 * scale));
          // v comes back.
          Vector back = v;
          if (!layer.v.mean.empty())
            for (uint32_t i = 0; i < d; ++i) back[i] -= layer.v.mean[h * d + i];
          if (!layer.v.transform.empty())
            back = times(of_head(layer.out_transform, square, h), times(of_head(layer.v.transform, square, h), back));
          if (!layer.v.mean.empty())
            for (uint32_t i = 0; i < d; ++i) back[i] += layer.v.mean[h * d + i];
          for (uint32_t i = 0; i < d; ++i) CHECK_THAT(back[i], WithinAbs(v[i], 1e-4 * std::sqrt(dot(v, v))));
        }
      }
    }
  }
}

// Mean square over the tokens of each transformed channel of V (centred by the layer's own operands).
Vector channel_energy(const KvModelData& model, const KvTables& tables, uint32_t head) {
  const KvLayerData& data = model.layers[0];
  const KvLayerTables& layer = tables.of(0);
  Vector energy(data.d);
  for (uint32_t t = 0; t < data.tokens; ++t) {
    const std::span<const float> row = data.row(data.v, t, head);
    Vector x(row.begin(), row.end());
    if (!layer.v.mean.empty())
      for (uint32_t i = 0; i < data.d; ++i) x[i] -= layer.v.mean[head * data.d + i];
    const Vector y = times(of_head(layer.v.transform, size_t(data.d) * data.d, head), x);
    for (uint32_t i = 0; i < data.d; ++i) energy[i] += y[i] * y[i] / data.tokens;
  }
  return energy;
}

TEST_CASE("calibrated transforms bring values to the scale they are meant for", "[unit]") {
  const KvModelData model(1, 2, 32, 400);
  const KvStatistics statistics = model.calibrate();
  const auto energy = [&](std::string_view name, uint32_t head) {
    return channel_energy(
        model, make_kv_tables(parse_kv_preset(name), model.config, &statistics, model.output_weights()), head);
  };
  for (uint32_t head = 0; head < 2; ++head) {
    const Vector turbo = energy("turbo", head), plain = energy("k3,v3,hadamard", head);
    CHECK_THAT(std::accumulate(turbo.begin(), turbo.end(), 0.0) / 32, WithinRel(1.0, 1e-4));
    CHECK_THAT(std::accumulate(plain.begin(), plain.end(), 0.0) / 32, WithinRel(1.0, 1e-4));
    for (const double value : energy("k3,v3,pre,hadamard,channel", head)) CHECK_THAT(value, WithinRel(1.0, 1e-4));
    // The half with more energy comes first, and a rotation within it evens it out.
    const Vector split = energy("turboquant-2.5", head);
    const auto half = split.begin() + 16;
    CHECK(std::accumulate(split.begin(), half, 0.0) > 1.5 * std::accumulate(half, split.end(), 0.0));
    const Vector svd = energy("k3,v3,svd,norm", head);
    CHECK(std::ranges::is_sorted(svd, std::greater{}));
    CHECK(svd.front() > 20 * svd.back());
  }
}

TEST_CASE("codebooks of TurboESM are fitted to each head", "[unit]") {
  const KvModelData model(1, 2, 32, 400);
  const KvStatistics statistics = model.calibrate();
  const auto tables = [&](std::string_view name) {
    return make_kv_tables(parse_kv_preset(name), model.config, &statistics, model.output_weights());
  };
  const KvTables with_sign = tables("turboesm"), without = tables("turboesm-nosign");
  REQUIRE(without.of(0).k.codebook.size() == 2 * 15);
  REQUIRE(with_sign.of(0).k.codebook.size() == 2 * 31);
  CHECK(with_sign.of(0).v.codebook == without.of(0).v.codebook);
  for (uint32_t head = 0; head < 2; ++head) {
    const auto three = of_head(without.of(0).k.codebook, 15, head),
               four = of_head(with_sign.of(0).k.codebook, 31, head);
    const float deviation = (four[1] - four[0]) / 2;
    CHECK(deviation > 0);
    for (uint32_t i = 0; i < 8; ++i) {
      CHECK_THAT((four[2 * i] + four[2 * i + 1]) / 2, WithinAbs(three[i], 1e-5));
      CHECK(four[16 + 2 * i] == three[i]);  // the old centroids are among the thresholds
    }
    for (uint32_t i = 0; i < 7; ++i) CHECK(four[17 + 2 * i] == three[8 + i]);
  }
  CHECK(of_head(without.of(0).k.codebook, 15, 0)[7] != of_head(without.of(0).k.codebook, 15, 1)[7]);
}

TEST_CASE("a preset that needs a calibration says so", "[unit]") {
  const KvModelData model(1, 2, 16, 100);
  check_error(ErrorKind::usage, {"turbo", "turboesm calibrate"},
              [&] { make_kv_tables(parse_kv_preset("turbo"), model.config, nullptr, model.output_weights()); });
  for (const char* name : {"f32", "f16", "int8", "int4", "wht3", "wht3-qjl", "turboquant-3", "turboquant-4-qjl"})
    CHECK(make_kv_tables(parse_kv_preset(name), model.config, nullptr, nullptr).shared);
  const KvStatistics statistics = KvModelData(1, 2, 24, 100).calibrate();
  check_error(ErrorKind::usage, {"2 heads of 24", "2 of 16"},
              [&] { make_kv_tables(parse_kv_preset("turbo"), model.config, &statistics, model.output_weights()); });
}

TEST_CASE("a calibration file brings back the same operands", "[unit]") {
  const KvModelData model(2, 3, 24, 120);
  const test::TemporaryFolder folder;
  const auto path = folder / "model.kv.safetensors";
  const KvStatistics fresh = model.calibrate(5);
  save_kv_statistics(fresh, path);
  const KvStatistics loaded = load_kv_statistics(path, model.config, fresh.model);
  CHECK(loaded.tokens == 120);
  CHECK(loaded.sequences == 3);
  CHECK(loaded.seed == 5);
  CHECK(loaded.position_mean_share(1, 2) == fresh.position_mean_share(1, 2));
  for (const KvPresetRow& row : kv_presets()) {
    INFO(row.name);
    const KvPreset preset = parse_kv_preset(row.name);
    const KvTables a = make_kv_tables(preset, model.config, &fresh, model.output_weights());
    const KvTables b = make_kv_tables(preset, model.config, &loaded, model.output_weights());
    for (uint32_t l = 0; l < 2; ++l) {
      CHECK(a.of(l).k.transform == b.of(l).k.transform);
      CHECK(a.of(l).query_transform == b.of(l).query_transform);
      CHECK(a.of(l).k.codebook == b.of(l).k.codebook);
      CHECK(a.of(l).v.codebook == b.of(l).v.codebook);
      CHECK(a.of(l).k.mean == b.of(l).k.mean);
      CHECK(a.of(l).k.position_mean == b.of(l).k.position_mean);
      CHECK(a.of(l).v.mean == b.of(l).v.mean);
    }
  }
  // Equal statistics make equal files, and so does another run over the same tokens.
  save_kv_statistics(loaded, folder / "loaded.kv.safetensors");
  save_kv_statistics(model.calibrate(5), folder / "again.kv.safetensors");
  const std::string bytes = test::read_file(path);
  CHECK(test::read_file(folder / "loaded.kv.safetensors") == bytes);
  CHECK(test::read_file(folder / "again.kv.safetensors") == bytes);

  // Codebooks of a specification can be fitted from samples, which are not in the file, and kept.
  const KvPreset other = parse_kv_preset("k2,v2,pre,balanced,kmeans");
  check_error(ErrorKind::usage, {"k.2.position_mean.balanced", "calibrate"},
              [&] { make_kv_tables(other, model.config, &loaded, model.output_weights()); });
  KvStatistics fitted = fresh;
  fit_kv_codebooks(fitted, other, model.output_weights());
  CHECK(make_kv_tables(other, model.config, &fitted, model.output_weights()).of(1).v.codebook ==
        make_kv_tables(other, model.config, &fresh, model.output_weights()).of(1).v.codebook);
}

TEST_CASE("a calibration file that is not this model's is refused", "[unit]") {
  const KvModelData model(1, 2, 8, 60);
  const test::TemporaryFolder folder;
  const auto path = folder / "model.kv.safetensors";
  const KvStatistics statistics = model.calibrate();
  save_kv_statistics(statistics, path);
  const std::string bytes = test::read_file(path);
  const auto refused = [&](ErrorKind kind, std::initializer_list<std::string_view> parts, const std::string& content) {
    const auto other = folder.write("other.kv.safetensors", content);
    check_error(kind, parts, [&] { load_kv_statistics(other, model.config, statistics.model); });
  };
  const auto with = [&bytes](std::string_view from, std::string_view to) {
    std::string changed = bytes;
    const size_t at = changed.find(from);
    REQUIRE(at != std::string::npos);
    REQUIRE(from.size() == to.size());
    return changed.replace(at, from.size(), to);
  };
  check_error(ErrorKind::input, {"model.kv.safetensors", "another model", "0123456789abcdef", "fedcba9876543210"},
              [&] { load_kv_statistics(path, model.config, "fedcba9876543210"); });
  Esm2Config config = model.config;
  config.layers = 2;
  check_error(ErrorKind::input, {"k_mean_before_rope", "[1, 2, 8]", "[2, 2, 8]"},
              [&] { load_kv_statistics(path, config, statistics.model); });
  check_error(ErrorKind::input, {"absent.kv.safetensors"},
              [&] { load_kv_statistics(folder / "absent.kv.safetensors", model.config, statistics.model); });
  check_error(ErrorKind::usage, {".safetensors"}, [&] { save_kv_statistics(statistics, folder / "model.npz"); });

  refused(ErrorKind::input, {"other.kv.safetensors"}, bytes.substr(0, bytes.size() - 1));
  refused(ErrorKind::input, {"other.kv.safetensors"}, bytes.substr(0, 100));
  refused(ErrorKind::input, {"other.kv.safetensors"}, "");
  refused(ErrorKind::input, {"no calibration"}, test::safetensors_bytes("{}", ""));
  refused(ErrorKind::input, {"no calibration"}, with("turboesm-kv", "turboesm-xx"));
  refused(ErrorKind::input, {"version 9", "version 1"}, with("\"version\":\"1\"", "\"version\":\"9\""));
  refused(ErrorKind::input, {"\"tokens\"", "6x"}, with("\"tokens\":\"60\"", "\"tokens\":\"6x\""));
  refused(ErrorKind::input, {"no tensor \"v_mean\""}, with("\"v_mean\"", "\"w_mean\""));
  refused(ErrorKind::input, {"k_mean", "[2, 1, 8]"}, with("[1,2,8]", "[2,1,8]"));
  refused(ErrorKind::input, {"v_covariance", "I32"}, [&] {
    std::string changed = bytes;
    const size_t at = changed.find("F32", changed.find("v_covariance"));
    return changed.replace(at, 3, "I32");
  }());
  // The data of the last tensors, in the order written, are codebooks.
  std::string infinite = bytes;
  infinite.replace(infinite.size() - 4, 4, std::string("\0\0\x80\x7f", 4));
  refused(ErrorKind::input, {"codebook.v.3", "finite"}, infinite);
  std::string unordered = bytes;
  unordered.replace(unordered.size() - 8, 4, std::string("\0\0\x80\xc7", 4));  // the last centroid: -65536
  refused(ErrorKind::input, {"codebook.v.3", "ascend"}, unordered);
}

}  // namespace
}  // namespace turboesm
