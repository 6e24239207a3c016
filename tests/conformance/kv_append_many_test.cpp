#include <cmath>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "model/codebook.h"
#include "model/kv_codec.h"
#include "runtime/dtype.h"
#include "runtime/registry.h"
#include "tests/conformance/kv_data.h"
#include "tests/rope_table.h"

// Many f16 tokens at once may be encoded in a faster way, with sums rounded as they come. No bits to compare then, but
// what they stand for: it must be as near to the exact transformed values as what the CPU packs.
namespace turboesm::conformance {
namespace {

struct Append {
  uint32_t position, count;
};

// Operands on the host; empty ones are left out.
struct ManyTokens {
  KvFormat format;
  uint32_t heads, head_dim, tokens = 0, capacity = 0, table_rows = 0;
  std::vector<Append> appends;
  struct Side {
    std::vector<float> values, mean, position_mean, transform, codebook;  // the last two of each head, or of all
  };
  Side k, v;
  std::vector<int32_t> cache;  // before

  const Side& side(bool is_v) const { return is_v ? v : k; }
  const KvSide& side_format(bool is_v) const { return is_v ? format.v : format.k; }
  uint32_t sequences() const { return uint32_t(appends.size()); }
  uint32_t blocks() const { return capacity / KV_BLOCK; }
};

std::vector<float> codebooks(Rng& rng, const KvSide& side, uint32_t heads) {
  if (!side.gaussian) return random_codebook(rng, side, heads);
  std::vector<float> all;
  for (uint32_t segment = 0; segment < side.segments; ++segment)
    append_codebook(lloyd_max_gaussian(side.bits[segment]), all);
  return all;
}

ManyTokens make_tokens(Rng& rng, const KvFormat& format, uint32_t heads, uint32_t head_dim,
                       const std::vector<Append>& appends, bool all_operands) {
  ManyTokens data{
      .format = format, .heads = heads, .head_dim = head_dim, .appends = appends, .k = {}, .v = {}, .cache = {}};
  uint32_t end = 0;
  for (const Append& append : appends) {
    data.tokens += append.count;
    end = std::max(end, append.position + append.count);
  }
  data.capacity = kv_capacity(end) + KV_BLOCK;
  data.table_rows = end;
  const uint64_t width = uint64_t(heads) * head_dim;
  for (const bool is_v : {false, true}) {
    ManyTokens::Side& side = is_v ? data.v : data.k;
    side.values = rng.normals(data.tokens * width, is_v ? 0.5f : 2.0f);
    const bool coded = data.side_format(is_v).has_codebook();
    const auto in_place = [&] { return all_operands || rng.coin(); };
    if (coded && in_place()) side.mean = rng.normals(width, 0.5f);
    if (coded && !is_v && in_place()) side.position_mean = rng.normals(width);
    if (coded && in_place()) side.transform = random_matrices(rng, in_place() ? heads : 1, head_dim);
    side.codebook = codebooks(rng, data.side_format(is_v), in_place() ? heads : 1);
    for (size_t t = 0; t < data.tokens; ++t) {  // tokens of unlike size
      const float size = std::exp2(float(t % 5) - 2);
      for (size_t i = 0; i < width; ++i) {
        float& value = side.values[t * width + i];
        value = f32_from_f16(f16_from_f32(value * size));
      }
    }
  }
  data.cache = random_words(rng, uint64_t(data.sequences()) * heads * data.blocks() * format.block_words(head_dim));
  return data;
}

// The cache after the append.
std::vector<int32_t> append(Device& device, const ManyTokens& data) {
  DeviceOperands operands(device,
                          (64ull << 10) + 64 * (data.k.values.size() + data.cache.size() + data.k.transform.size()));
  const auto upload_side = [&](const ManyTokens::Side& side) {
    return KvSideTensors{.mean = operands.upload(side.mean),
                         .position_mean = operands.upload(side.position_mean),
                         .transform = operands.upload(side.transform),
                         .codebook = operands.upload(side.codebook),
                         .projection = {}};
  };
  std::vector<int32_t> rows;
  uint32_t row = 0, longest = 0;
  for (const Append& append : data.appends) {
    rows.insert(rows.end(), {int32_t(row), int32_t(append.position), int32_t(append.count)});
    row += append.count;
    longest = std::max(longest, append.count);
  }
  KvAppend a;
  a.k = operands.upload_f16(data.k.values);
  a.v = operands.upload_f16(data.v.values);
  a.appends = operands.upload(rows);
  a.table = operands.upload(rope_table(data.table_rows, data.head_dim));
  a.k_side = upload_side(data.k);
  a.v_side = upload_side(data.v);
  a.cache = operands.upload(data.cache);
  a.format = data.format;
  a.tokens = data.tokens, a.sequences = data.sequences(), a.heads = data.heads, a.head_dim = data.head_dim;
  a.capacity = data.capacity, a.table_rows = data.table_rows, a.max_count = longest;
  const Operation operation = a;
  const auto recording = device.record({&operation, 1});
  device.wait(device.submit(*recording));
  std::vector<int32_t> cache(data.cache.size());
  device.download<int32_t>(a.cache, cache);
  return cache;
}

// transform (x - mean - turned position mean) of one token and head, in double.
std::vector<double> exact_values(const ManyTokens& data, bool is_v, uint32_t row, uint32_t position, uint32_t head,
                                 const std::vector<float>& table) {
  const ManyTokens::Side& side = data.side(is_v);
  const uint32_t d = data.head_dim;
  std::vector<double> x(d), y(d);
  for (uint32_t i = 0; i < d; ++i) {
    x[i] = side.values[(size_t(row) * data.heads + head) * d + i];
    if (!side.mean.empty()) x[i] -= side.mean[head * d + i];
    if (side.position_mean.empty()) continue;
    const float* m = &side.position_mean[head * d + (i & ~1u)];
    const float* turn = &table[position * d + (i & ~1u)];
    x[i] -=
        i % 2 == 0 ? double(m[0]) * turn[0] - double(m[1]) * turn[1] : double(m[1]) * turn[0] + double(m[0]) * turn[1];
  }
  if (side.transform.empty()) return x;
  const size_t square = size_t(d) * d, first = side.transform.size() > square ? head * square : 0;
  for (uint32_t i = 0; i < d; ++i)
    for (uint32_t j = 0; j < d; ++j) y[i] += double(side.transform[first + size_t(i) * d + j]) * x[j];
  return y;
}

KvDecodedBlock decoded(const ManyTokens& data, const std::vector<int32_t>& cache, bool is_v, uint32_t sequence,
                       uint32_t head, uint32_t block) {
  const uint32_t k_words = data.format.k.block_words(data.head_dim), all = data.format.block_words(data.head_dim);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(cache.data()) +
                          ((uint64_t(sequence) * data.heads + head) * data.blocks() + block) * all +
                          (is_v ? k_words : 0);
  const uint32_t size = data.side_format(is_v).codebook_size();
  const auto& codebook = data.side(is_v).codebook;
  const uint32_t first = codebook.size() > size ? head * size : 0;
  return decode_kv_block(data.side_format(is_v), data.head_dim, std::span(words, is_v ? all - k_words : k_words),
                         std::span(codebook).subspan(first, size));
}

double squared_error(const KvDecodedBlock& block, uint32_t t, const std::vector<double>& y) {
  double error = 0;
  for (size_t i = 0; i < y.size(); ++i) error += std::pow(block.values[t * y.size() + i] - y[i], 2);
  return error;
}

bool same_bits(const KvDecodedBlock& a, const KvDecodedBlock& b, uint32_t t, uint32_t d) {
  const size_t scales = a.scales.size() / KV_BLOCK;
  const auto equal = [t](const auto& x, const auto& y, size_t n) {
    return std::equal(x.begin() + t * n, x.begin() + (t + 1) * n, y.begin() + t * n);
  };
  return equal(a.codes, b.codes, d) && equal(a.scales, b.scales, scales);
}

void check_side(const ManyTokens& data, bool is_v, const std::vector<int32_t>& got, const std::vector<int32_t>& want) {
  const std::vector<float> table = rope_table(data.capacity, data.head_dim);
  double error_got = 0, error_want = 0;
  uint32_t row = 0, touched = 0, worse = 0;
  for (uint32_t s = 0; s < data.sequences(); ++s) {
    const Append& append = data.appends[s];
    for (uint32_t head = 0; head < data.heads; ++head)
      for (uint32_t block = 0; block < data.blocks(); ++block) {
        const KvDecodedBlock before = decoded(data, data.cache, is_v, s, head, block);
        const KvDecodedBlock here = decoded(data, got, is_v, s, head, block);
        const KvDecodedBlock there = decoded(data, want, is_v, s, head, block);
        for (uint32_t t = 0; t < KV_BLOCK; ++t) {
          const uint32_t position = block * KV_BLOCK + t;
          if (position < append.position || position >= append.position + append.count) {
            touched += !same_bits(before, here, t, data.head_dim);
            continue;
          }
          const std::vector<double> y =
              exact_values(data, is_v, row + position - append.position, position, head, table);
          double size = 0;
          for (const double value : y) size += value * value;
          const double here_error = squared_error(here, t, y) / size, there_error = squared_error(there, t, y) / size;
          worse += here_error > 1.2 * there_error + 1e-3;
          error_got += here_error;
          error_want += there_error;
        }
      }
    row += append.count;
  }
  INFO((is_v ? "V" : "K") << ": relative error " << error_got << " against " << error_want);
  CHECK(touched == 0);
  CHECK(error_got <= 1.005 * error_want);
  CHECK(worse <= data.tokens * data.heads / 100);
}

KvSide coded(std::array<uint32_t, 2> bits, KvScale scale, uint32_t scale_bits, bool gaussian = true) {
  return {
      .segments = bits[1] > 0 ? 2u : 1u, .bits = bits, .scale_bits = scale_bits, .scale = scale, .gaussian = gaussian};
}

}  // namespace

TEST_CASE("kv_append of many f16 tokens is as near as the oracle's", "[conformance]") {
  using enum KvScale;
  const auto cpu = open_device("cpu", {}).device;
  const KvSide copied{.bits = {16, 0}}, tables = coded({4, 0}, none, 0, false);
  const KvFormat formats[] = {
      {coded({4, 3}, searched, 8), coded({4, 2}, searched, 8)},
      {coded({3, 1}, searched, 16), coded({3, 0}, searched, 8)},
      {coded({3, 0}, searched, 8), coded({4, 0}, searched, 16)},
      {coded({3, 0}, norm, 16), coded({4, 0}, norm, 16)},
      {coded({2, 0}, corrected, 8), coded({1, 0}, corrected, 16)},
      {coded({4, 1}, corrected, 8), coded({3, 2}, norm, 16)},
      {tables, coded({3, 0}, none, 0, false)},
      {tables, coded({3, 2}, none, 0, false)},
      {coded({2, 1}, none, 0), tables},
      {copied, coded({4, 0}, searched, 8)},
      {coded({3, 0}, norm, 16), copied},
  };
  for (const bool matrix_cores : {true, false}) {
    const auto device = open_device_under_test(matrix_cores);
    const DeviceKind kind = device->info().kind;
    const bool on_cpu = kind == DeviceKind::cpu;
    const bool is_exact = on_cpu || (device->info().spec.starts_with("cuda") && !matrix_cores);
    Rng rng(61);
    bool any_differ = false;
    const auto check = [&](const KvFormat& format, uint32_t heads, uint32_t head_dim,
                           const std::vector<Append>& appends, bool all_operands) {
      INFO(fmt::format("{}matrix cores, {} heads of {}, bits {}|{} and {}|{}, scales {} and {}",
                       matrix_cores ? "" : "no ", heads, head_dim, format.k.bits[0], format.k.bits[1], format.v.bits[0],
                       format.v.bits[1], uint32_t(format.k.scale), uint32_t(format.v.scale)));
      const ManyTokens data = make_tokens(rng, format, heads, head_dim, appends, all_operands);
      const std::vector<int32_t> got = append(*device, data), want = append(*cpu, data);
      any_differ = any_differ || got != want;
      check_side(data, false, got, want);
      check_side(data, true, got, want);
    };
    uint32_t index = 0;
    for (const KvFormat& format : formats)
      for (const uint32_t head_dim : {32u, 64u, 128u}) {
        if (head_dim == 32 && (format.k.segments == 2 || format.v.segments == 2)) continue;  // no whole units
        if (index++ % 2 == 0)
          check(format, 3, head_dim, {{0, 70}, {37, 0}, {17, 33}}, index % 3 == 0);
        else
          check(format, 3, head_dim, {{5, 200}, {64, 64}}, index % 3 == 0);
      }
    // With many heads a workgroup walks along several blocks of several sequences, an empty one among them.
    check(formats[0], 24, 64, {{5, 200}, {64, 0}, {64, 64}, {32, 70}}, true);
    CHECK(any_differ != is_exact);  // else it was not the fast way that was checked
    if (on_cpu || kind == DeviceKind::software_gpu) break;
  }
}

}  // namespace turboesm::conformance
