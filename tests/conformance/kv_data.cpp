#include "tests/conformance/kv_data.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "runtime/dtype.h"
#include "runtime/error.h"

namespace turboesm::conformance {
namespace {

constexpr const char* kScaleNames[] = {"none", "norm", "corrected", "searched", "absmax"};

KvSide exact(uint32_t bits) { return {.segments = 1, .bits = {bits, 0}}; }
KvSide coded(uint32_t bits, KvScale scale, uint32_t scale_bits, bool qjl = false) {
  return {.segments = 1, .bits = {bits, 0}, .scale_bits = scale_bits, .scale = scale, .qjl = qjl};
}
KvSide split(uint32_t first, uint32_t second, KvScale scale, uint32_t scale_bits, bool qjl = false) {
  return {.segments = 2, .bits = {first, second}, .scale_bits = scale_bits, .scale = scale, .qjl = qjl};
}

constexpr size_t kSingularFormats = 16;  // the first ones, each of its own kind

std::vector<NamedFormat> make_formats() {
  using enum KvScale;
  std::vector<NamedFormat> formats{
      {"f32", {exact(32), exact(32)}},
      {"f16", {exact(16), exact(16)}},
      {"int8", {coded(8, absmax, 16), coded(8, absmax, 16)}},
      {"int8 with 8-bit scales, f16", {coded(8, absmax, 8), exact(16)}},
      {"int4", {coded(4, absmax, 16), coded(4, absmax, 16)}},
      {"4 and 3 bits without scales", {coded(4, none, 0), coded(3, none, 0)}},
      {"1 and 2 bits without scales", {coded(1, none, 0), coded(2, none, 0)}},
      {"3 bits with QJL and no scales", {coded(3, none, 0, true), coded(3, none, 0)}},
      {"2|1 bits with QJL, 3|2 bits", {split(2, 1, norm, 16, true), split(3, 2, norm, 16)}},
      {"3|2 bits with QJL, 4|3 bits", {split(3, 2, norm, 16, true), split(4, 3, norm, 16)}},
      {"4|3 bits with QJL, 3 bits", {split(4, 3, searched, 8, true), coded(3, corrected, 8)}},
      {"3|2 bits searched, 4|3 bits corrected", {split(3, 2, searched, 16), split(4, 3, corrected, 8)}},
      {"1|4 bits, int8", {split(1, 4, none, 0), coded(8, absmax, 16)}},
      {"f32, 2 bits", {exact(32), coded(2, searched, 8)}},
      {"3 bits absmax, 2|3 bits absmax", {coded(3, absmax, 8), split(2, 3, absmax, 16)}},
      {"4|3 and 4|2 bits searched, 8-bit scales", {split(4, 3, searched, 8), split(4, 2, searched, 8)}},
  };
  REQUIRE(formats.size() == kSingularFormats);
  // Numbers of bits for K and V through all kinds of scale.
  for (const KvScale scale : {norm, corrected, searched})
    for (const uint32_t scale_bits : {16u, 8u})
      for (const auto& [k, v] : {std::pair{1u, 2u}, {2u, 2u}, {3u, 3u}, {3u, 4u}, {4u, 1u}}) {
        const bool qjl = scale_bits == 16 && k != 4;
        formats.push_back({fmt::format("{} and {} bits {}, {}-bit scales{}", k, v, kScaleNames[uint32_t(scale)],
                                       scale_bits, qjl ? ", QJL" : ""),
                           {coded(k, scale, scale_bits, qjl), coded(v, scale, scale_bits)}});
      }
  return formats;
}

}  // namespace

const std::vector<NamedFormat>& kv_formats() {
  static const std::vector<NamedFormat> formats = make_formats();
  return formats;
}

const NamedFormat& kv_format(const std::string& name) {
  for (const NamedFormat& format : kv_formats())
    if (format.name == name) return format;
  throw_error(ErrorKind::usage, "no test format {}", name);
}

std::vector<FormatCase> format_cases(const Harness& harness, bool encoding) {
  const std::vector<uint32_t> usual(std::begin(kHeadDims), std::end(kHeadDims));
  std::vector<uint32_t> all = usual;
  all.insert(all.end(), std::begin(kOtherHeadDims), std::end(kOtherHeadDims));
  std::vector<FormatCase> cases;
  std::vector<KvFormat> seen;
  for (const NamedFormat& format : kv_formats()) {
    KvFormat key = format.format;
    if (!encoding) key.k.scale = key.v.scale = KvScale::none;
    if (harness.compiles() && std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
    seen.push_back(key);
    const size_t index = seen.size();
    if (harness.compiles() && !harness.takes_large() && index > kSingularFormats && index % 2 == 0) continue;
    if (!harness.compiles())
      cases.push_back({format, all});
    else if (harness.takes_large())
      cases.push_back({format, {usual[index % usual.size()], usual[(index + 2) % usual.size()]}});
    else
      cases.push_back({format, {usual[index % usual.size()]}});
  }
  return cases;
}

std::vector<float> random_codebook(Rng& rng, const KvSide& side, uint32_t heads) {
  std::vector<float> codebook;
  for (uint32_t head = 0; head < heads; ++head)
    for (uint32_t segment = 0; segment < side.segments && side.has_codebook(); ++segment) {
      const uint32_t count = 1u << side.bits[segment];
      std::vector<float> centroids;
      const float reach = std::min(2.0f, 0.8f * std::sqrt(float(count))), step = 2 * reach / float(count);
      for (uint32_t k = 0; k < count; ++k)
        centroids.push_back(side.scale == KvScale::absmax
                                ? float(k) - float(count / 2)
                                : (float(k) + 0.5f + rng.uniform(-0.3f, 0.3f)) * step - reach);
      codebook.insert(codebook.end(), centroids.begin(), centroids.end());
      for (uint32_t k = 0; k + 1 < count; ++k) codebook.push_back(0.5f * (centroids[k] + centroids[k + 1]));
    }
  return codebook;
}

std::vector<float> random_matrices(Rng& rng, uint32_t count, uint32_t head_dim) {
  return rng.normals(uint64_t(count) * head_dim * head_dim, 1 / std::sqrt(float(head_dim)));
}

std::vector<int32_t> random_words(Rng& rng, uint64_t count) {
  std::vector<int32_t> words(count);
  for (int32_t& word : words) word = int32_t(rng.next());
  return words;
}

Tensor DeviceOperands::place(DType dtype, uint64_t count) {
  const Tensor tensor{buffer_.get(), end_, count, dtype};
  end_ = (end_ + tensor.bytes() + 255) / 256 * 256;
  REQUIRE(end_ <= buffer_->size());
  return tensor;
}

Tensor DeviceOperands::upload(std::span<const float> values) {
  if (values.empty()) return {};
  const Tensor tensor = place(DType::f32, values.size());
  device_.upload<float>(tensor, values);
  return tensor;
}

Tensor DeviceOperands::upload(std::span<const int32_t> values) {
  const Tensor tensor = place(DType::i32, values.size());
  device_.upload<int32_t>(tensor, values);
  return tensor;
}

Tensor DeviceOperands::upload_f16(std::span<const float> values) {
  std::vector<uint16_t> narrow;
  for (const float value : values) narrow.push_back(f16_from_f32(value));
  const Tensor tensor = place(DType::f16, values.size());
  device_.upload<uint16_t>(tensor, narrow);
  return tensor;
}

}  // namespace turboesm::conformance
