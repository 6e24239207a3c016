#include "model/kv_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/dtype.h"
#include "runtime/error.h"
#include "shaders/include/kv_scale.h"

namespace turboesm {
namespace {

constexpr KvPresetRow kPresets[] = {
    {"f32", "k32,v32", "as computed, 32 bits: what quality is measured against"},
    {"f16", "k16,v16", "half precision: what size and speed are measured against"},
    {"int8", "k8,v8,absmax", "8-bit integers, a scale for each token and head"},
    {"int4", "k4,v4,int,absmax", "4-bit integers, a scale for each token and head"},
    {"turboesm", "k3,v3,k:svd,kmeans,sign",
     "TurboESM: SVD rotation and sign residual of K, k-means tables of each head"},
    {"turboesm-nosign", "k3,v3,k:svd,kmeans", "TurboESM without the sign residual"},
    {"wht3", "k3,v3,hadamard,norm", "Walsh-Hadamard, 3-bit Lloyd-Max, norms"},
    {"wht3-qjl", "k3,v3,hadamard,norm,qjl", "wht3 with QJL on K"},
    {"turboquant-2", "k2,v2,random,norm", "TurboQuant: random rotation, Lloyd-Max, norms; 2 bits"},
    {"turboquant-2.5", "k2.5,v2.5,random,norm", "TurboQuant with 3 bits for the outlier half of the channels, 2 else"},
    {"turboquant-3", "k3,v3,random,norm", "TurboQuant, 3 bits"},
    {"turboquant-3.5", "k3.5,v3.5,random,norm", "TurboQuant with 4 bits for the outlier half of the channels, 3 else"},
    {"turboquant-4", "k4,v4,random,norm", "TurboQuant, 4 bits"},
    {"turboquant-2-qjl", "k1,v2,random,norm,qjl", "turboquant-2 with one bit of K spent on QJL"},
    {"turboquant-2.5-qjl", "k1.5,v2.5,random,norm,qjl", "turboquant-2.5 with one bit of K spent on QJL"},
    {"turboquant-3-qjl", "k2,v3,random,norm,qjl", "turboquant-3 with one bit of K spent on QJL"},
    {"turboquant-3.5-qjl", "k2.5,v3.5,random,norm,qjl", "turboquant-3.5 with one bit of K spent on QJL"},
    {"turboquant-4-qjl", "k3,v4,random,norm,qjl", "turboquant-4 with one bit of K spent on QJL"},
    {"turbo", "k4/3,v4/2,pre,balanced,search,s8",
     "mean of K before RoPE off, balanced transform, more bits for what matters more, best scale"},
    {"turbo-xs", "k3/1,v3/1,pre,balanced,search,s8", "turbo with 2 bits for K and V"},
    {"turbo-s", "k4/2,v4/2,pre,balanced,search,s8", "turbo with 3 bits for K and V"},
    {"turbo-l", "k4,v4,pre,balanced,search,s8", "turbo with 4 bits for all of K and V"},
};

// What the parts of a specification say about one side; nothing where no part does.
struct SideParts {
  std::optional<std::array<uint32_t, 2>> bits;  // the second is 0 but for split channels
  std::optional<KvCentre> centre;
  std::optional<KvTransform> transform;
  std::optional<KvScale> scale;
  std::optional<uint32_t> scale_bits;
  std::optional<KvCentroids> centroids;
  std::optional<bool> channel, sign, qjl;
};

// A whole specification being read.
class SpecParser {
 public:
  explicit SpecParser(std::string_view spec) : spec_(spec) {}

  KvPreset parse() {
    std::string_view rest = spec_;
    while (true) {
      const size_t end = rest.find_first_of(",+");
      read_part(rest.substr(0, end));
      if (end == std::string_view::npos) break;
      rest.remove_prefix(end + 1);
    }
    KvPreset preset{std::string(spec_), std::string(spec_), "", recipe(k_, true), recipe(v_, false)};
    if (both_.scale_bits && preset.k.side.scale_bits == 0 && preset.v.side.scale_bits == 0)
      fail("there is no scale that could have {} bits", *both_.scale_bits);
    return preset;
  }

 private:
  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    std::vector<std::string_view> names;
    for (const KvPresetRow& row : kPresets) names.push_back(row.name);
    throw_error(ErrorKind::usage,
                "KV preset \"{}\": {}; presets: {}; or parts such as k4/3,v4/2,pre,balanced,search,s8", spec_,
                fmt::format(format, std::forward<Args>(args)...), fmt::join(names, ", "));
  }

  template <class T, class U>
  void set(std::optional<T>& slot, U value, std::string_view part) {
    if (slot) fail("\"{}\" comes after another choice of the same kind", part);
    slot = value;
  }

  void read_part(std::string_view part) {
    if (part.starts_with("k:")) return read_choice(part.substr(2), k_, part);
    if (part.starts_with("v:")) {
      if (part == "v:pre" || part == "v:sign" || part == "v:qjl") fail("\"{}\" is for K only", part);
      return read_choice(part.substr(2), v_, part);
    }
    const size_t digit = part.find_first_of("0123456789");
    if (digit == 1 && part[0] != 's') {
      if (part[0] != 'k' && part[0] != 'v') fail("no part \"{}\"", part);
      return set(part[0] == 'k' ? k_.bits : v_.bits, read_bits(part), part);
    }
    read_choice(part, both_, part);
  }

  std::array<uint32_t, 2> read_bits(std::string_view part) const {
    struct Row {
      std::string_view text;
      std::array<uint32_t, 2> bits;
    };
    static constexpr Row kRows[] = {{"1", {1, 0}},   {"2", {2, 0}},   {"3", {3, 0}},   {"4", {4, 0}},
                                    {"8", {8, 0}},   {"16", {16, 0}}, {"32", {32, 0}}, {"1.5", {2, 1}},
                                    {"2.5", {3, 2}}, {"3.5", {4, 3}}, {"2/1", {2, 1}}, {"3/1", {3, 1}},
                                    {"3/2", {3, 2}}, {"4/1", {4, 1}}, {"4/2", {4, 2}}, {"4/3", {4, 3}}};
    for (const Row& row : kRows)
      if (row.text == part.substr(1)) return row.bits;
    fail("\"{}\": bits are 1, 2, 3, 4, 8, 16, 32 or, of two halves, 2/1, 3/1, 3/2, 4/1, 4/2, 4/3 (or 1.5, 2.5, 3.5)",
         part);
  }

  void read_choice(std::string_view choice, SideParts& side, std::string_view part) {
    if (choice == "post") return set(side.centre, KvCentre::mean, part);
    if (choice == "pre") return set(side.centre, KvCentre::position_mean, part);
    if (choice == "svd") return set(side.transform, KvTransform::svd, part);
    if (choice == "hadamard") return set(side.transform, KvTransform::hadamard, part);
    if (choice == "random") return set(side.transform, KvTransform::random_orthogonal, part);
    if (choice == "balanced") return set(side.transform, KvTransform::balanced, part);
    if (choice == "norm") return set(side.scale, KvScale::norm, part);
    if (choice == "correct") return set(side.scale, KvScale::corrected, part);
    if (choice == "search") return set(side.scale, KvScale::searched, part);
    if (choice == "absmax") return set(side.scale, KvScale::absmax, part);
    if (choice == "s8") return set(side.scale_bits, 8u, part);
    if (choice == "s16") return set(side.scale_bits, 16u, part);
    if (choice == "gauss") return set(side.centroids, KvCentroids::gaussian, part);
    if (choice == "kmeans") return set(side.centroids, KvCentroids::kmeans, part);
    if (choice == "int") return set(side.centroids, KvCentroids::integer, part);
    if (choice == "channel") return set(side.channel, true, part);
    if (choice == "sign") return set(side.sign, true, part);
    if (choice == "qjl") return set(side.qjl, true, part);
    fail("no part \"{}\"", part);
  }

  KvSideRecipe recipe(const SideParts& own, bool is_k) const {
    const std::string_view name = is_k ? "K" : "V";
    if (!own.bits) fail("the bits of {} are missing", name);
    KvSideRecipe recipe;
    KvSide& side = recipe.side;
    side.segments = (*own.bits)[1] > 0 ? 2 : 1;
    side.bits = *own.bits;
    if (side.bits[0] >= 16) {
      if (own.centre || own.transform || own.scale || own.scale_bits || own.centroids || own.channel || own.sign ||
          own.qjl)
        fail("{} of {} bits is stored as it is", name, side.bits[0]);
      return recipe;
    }
    const auto pick = [](const auto& specific, const auto& general, auto otherwise) {
      return specific ? *specific : general ? *general : otherwise;
    };
    recipe.centre = pick(own.centre, both_.centre, KvCentre::none);
    if (!is_k && recipe.centre != KvCentre::none) recipe.centre = KvCentre::mean;
    recipe.transform = pick(own.transform, both_.transform, KvTransform::none);
    recipe.channel_scale = pick(own.channel, both_.channel, false);
    recipe.sign = is_k && pick(own.sign, both_.sign, false);
    recipe.centroids = pick(own.centroids, both_.centroids, KvCentroids::gaussian);
    side.qjl = is_k && pick(own.qjl, both_.qjl, false);
    side.scale = pick(own.scale, both_.scale, KvScale::none);
    if (side.scale != KvScale::none) side.scale_bits = pick(own.scale_bits, both_.scale_bits, 16u);
    if (own.scale_bits && side.scale == KvScale::none) fail("{} has no scale that could have 8 or 16 bits", name);
    if (recipe.channel_scale && side.scale != KvScale::none) fail("{}: \"channel\" takes the place of a scale", name);

    if (side.bits[0] == 8) {
      recipe.centroids = KvCentroids::integer;
      if (side.scale_bits != 16) fail("{} of 8 bits needs \"absmax\" and 16-bit scales", name);
      if (recipe.sign) fail("the sign of the residual needs K of at most 3 bits");
    }
    const bool integer = recipe.centroids == KvCentroids::integer;
    if (integer && side.scale != KvScale::absmax) fail("integers go with the scale \"absmax\" ({})", name);
    if (integer && (side.bits[0] == 1 || side.bits[1] == 1)) fail("integers need at least 2 bits ({})", name);
    if (recipe.centroids == KvCentroids::kmeans && side.scale == KvScale::absmax)
      fail("k-means tables do not go with the scale \"absmax\" ({})", name);
    if (recipe.sign) {
      if (side.segments == 2 || side.bits[0] > 3) fail("the sign of the residual needs K of 1, 2 or 3 bits");
      if (integer) fail("the sign of the residual needs the codebook gauss or kmeans");
      ++side.bits[0];
    }
    side.gaussian = recipe.centroids == KvCentroids::gaussian && !recipe.sign;
    return recipe;
  }

  std::string_view spec_;
  SideParts both_, k_, v_;
};

// The value that bits [shift, shift + width) of a word hold.
uint32_t bits_of(uint32_t word, uint32_t shift, uint32_t width) {
  return width == 32 ? word : word >> shift & ((1u << width) - 1);
}

uint32_t element_of(std::span<const uint32_t> unit, uint32_t bits, uint32_t e) {
  if (bits != 3) return bits_of(unit[e * bits / 32], e * bits % 32, bits);
  if (e < 24) return bits_of(unit[e / 8], 4 * (e % 8), 3);
  const uint32_t high = 4 * (e - 24) + 3;
  return bits_of(unit[0], high, 1) | bits_of(unit[1], high, 1) << 1 | bits_of(unit[2], high, 1) << 2;
}

// Code of value i of token t in the codes of n values.
uint32_t code_of(std::span<const uint32_t> codes, uint32_t n, uint32_t bits, uint32_t t, uint32_t i) {
  std::array<uint32_t, 32> unit{};
  for (uint32_t w = 0; w < bits; ++w) unit[w] = codes[kv_code_word(n, t, i, w)];
  return element_of(std::span(unit).first(bits), bits, kv_element(n, t, i));
}

uint32_t scale_code_of(std::span<const uint32_t> scales, uint32_t scale_bits, uint32_t t) {
  return bits_of(scales[kv_scale_word(scale_bits, t)], kv_scale_shift(scale_bits, t), scale_bits);
}

float decoded(uint32_t bits, uint32_t code, float scale, bool scaled, std::span<const float> centroids) {
  if (bits == 32) return std::bit_cast<float>(code);
  if (bits == 16) return f32_from_f16(uint16_t(code));
  const float level = bits == 8 ? float(int8_t(uint8_t(code))) : centroids[code];
  return scaled ? scale * level : level;
}

}  // namespace

bool KvSideRecipe::has_factor() const {
  if (channel_scale) return false;
  return side.scale_bits == 8 || (side.scale == KvScale::none && centroids == KvCentroids::gaussian);
}

bool KvSideRecipe::needs_calibration() const {
  return centre != KvCentre::none || transform == KvTransform::svd || transform == KvTransform::balanced ||
         centroids == KvCentroids::kmeans || side.segments == 2 || channel_scale || has_factor();
}

std::span<const KvPresetRow> kv_presets() { return kPresets; }

KvPreset parse_kv_preset(std::string_view text) {
  for (const KvPresetRow& row : kPresets)
    if (row.name == text) {
      KvPreset preset = SpecParser(row.spec).parse();
      preset.name = row.name;
      preset.what = row.what;
      return preset;
    }
  return SpecParser(text).parse();
}

std::vector<KvPreset> parse_kv_presets(std::string_view list) {
  std::vector<KvPreset> presets;
  while (true) {
    const size_t end = list.find(',');
    presets.push_back(parse_kv_preset(list.substr(0, end)));
    if (end == std::string_view::npos) return presets;
    list.remove_prefix(end + 1);
  }
}

double kv_bits_per_value(const KvSide& side, uint32_t head_dim) {
  return double(side.block_words(head_dim)) / head_dim;  // 32 bits a word, 32 tokens a block
}

double kv_bits_per_value(const KvFormat& format, uint32_t head_dim) {
  return (kv_bits_per_value(format.k, head_dim) + kv_bits_per_value(format.v, head_dim)) / 2;
}

double kv_token_layer_bytes(const KvFormat& format, uint32_t heads, uint32_t head_dim) {
  return 4.0 * format.block_words(head_dim) * heads / KV_BLOCK;
}

uint32_t kv_capacity(uint32_t tokens) { return (tokens + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK; }

uint64_t kv_layer_bytes(const KvFormat& format, const Esm2Config& config, uint32_t sequences, uint32_t capacity) {
  const uint64_t blocks = kv_capacity(capacity) / KV_BLOCK;
  return 4ull * format.block_words(config.head_dim()) * blocks * config.heads * sequences;
}

uint64_t kv_cache_bytes(const KvFormat& format, const Esm2Config& config, uint32_t sequences, uint32_t capacity) {
  return config.layers * kv_layer_bytes(format, config, sequences, capacity);
}

double kv_ratio_to_f16(const KvFormat& format, uint32_t head_dim) { return 16 / kv_bits_per_value(format, head_dim); }
double kv_ratio_to_f32(const KvFormat& format, uint32_t head_dim) { return 32 / kv_bits_per_value(format, head_dim); }

KvDecodedBlock decode_kv_block(const KvSide& side, uint32_t head_dim, std::span<const uint32_t> words,
                               std::span<const float> codebook) {
  if (words.size() != side.block_words(head_dim) || (side.has_codebook() && codebook.size() != side.codebook_size()))
    throw_error(ErrorKind::usage, "[decode_kv_block] {} words and a codebook of {} values, expected {} and {}",
                words.size(), codebook.size(), side.block_words(head_dim), side.codebook_size());
  const uint32_t n = head_dim / side.segments;
  const bool scaled = side.scale_bits > 0;
  KvDecodedBlock block;
  block.codes.resize(size_t(KV_BLOCK) * head_dim);
  block.values.resize(size_t(KV_BLOCK) * head_dim);
  if (scaled) block.scales.resize(size_t(KV_BLOCK) * side.segments);
  const auto scales = words.subspan(kv_scales_at(n, side.segments, side.bits[0], side.bits[1]));
  for (uint32_t t = 0; t < KV_BLOCK; ++t)
    for (uint32_t segment = 0; segment < side.segments; ++segment) {
      const uint32_t bits = side.bits[segment];
      const auto codes = words.subspan(kv_codes_at(n, side.bits[0], segment));
      const auto centroids = side.has_codebook() && segment > 0 ? codebook.subspan((2u << side.bits[0]) - 1) : codebook;
      float scale = 1;
      if (scaled) {
        const uint32_t code = scale_code_of(scales.subspan(segment * side.scale_bits), side.scale_bits, t);
        block.scales[t * side.segments + segment] = scale = kv_scale_value(side.scale_bits, code);
      }
      for (uint32_t i = 0; i < n; ++i) {
        const size_t at = size_t(t) * head_dim + segment * n + i;
        block.codes[at] = code_of(codes, n, bits, t, i);
        block.values[at] = decoded(bits, block.codes[at], scale, scaled, centroids);
      }
    }
  if (!side.qjl) return block;
  const auto signs = words.subspan(kv_signs_at(n, side.segments, side.bits[0], side.bits[1], side.scale_bits));
  for (uint32_t t = 0; t < KV_BLOCK; ++t) {
    for (uint32_t i = 0; i < head_dim; ++i)
      block.signs.push_back(code_of(signs, head_dim, 1, t, i) != 0 ? 1.0f : -1.0f);
    block.residual_norms.push_back(kv_scale_value(16, scale_code_of(signs.subspan(head_dim), 16, t)));
  }
  return block;
}

void deposit_kv_code(const KvSide& side, uint32_t head_dim, std::span<uint32_t> words, uint32_t t, uint32_t i,
                     uint32_t code) {
  const uint32_t n = head_dim / side.segments, segment = i / n;
  const uint32_t bits = side.bits[segment], value = i % n;
  const auto codes = words.subspan(kv_codes_at(n, side.bits[0], segment));
  for (uint32_t w = 0; w < bits; ++w)
    codes[kv_code_word(n, t, value, w)] |= kv_deposit(bits, kv_element(n, t, value), w, code);
}

}  // namespace turboesm
