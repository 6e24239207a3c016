#include "model/config.h"

#include <cmath>
#include <fstream>
#include <string>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace turboesm {

namespace {

using nlohmann::json;

// Far above ESM-2 15B, and small enough that every product of two of them fits 64 bits.
constexpr uint32_t kMaxLayers = 1024;
constexpr uint32_t kMaxHidden = 65536;
constexpr uint32_t kMaxIntermediate = 1u << 20;

json read_object(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    throw_error(ErrorKind::input, "{}: is a directory, not a file", path.string());
  std::ifstream file(path, std::ios::binary);
  if (!file) throw_error(ErrorKind::input, "{}: cannot open the model's configuration", path.string());
  json object;
  try {
    object = json::parse(file);
  } catch (const json::parse_error& e) {
    throw_error(ErrorKind::input, "{}: not valid JSON near byte {}", path.string(), e.byte);
  }
  if (!object.is_object()) throw_error(ErrorKind::input, "{}: not a JSON object", path.string());
  return object;
}

// One config.json with errors that name file, key and value. A key that is absent or null counts as not given, as it
// does in transformers.
class ConfigReader {
 public:
  explicit ConfigReader(const std::filesystem::path& path) : path_(path.string()), object_(read_object(path)) {}

  uint32_t size(const char* key, uint32_t maximum) const {
    const json* value = find(key);
    if (!value) fail(key, "is missing");
    if (!value->is_number_integer() || *value < 1 || *value > maximum)
      fail(key, fmt::format("must be a whole number from 1 to {}", maximum));
    return value->get<uint32_t>();
  }

  bool flag(const char* key, bool fallback) const {
    const json* value = find(key);
    if (!value) return fallback;
    if (!value->is_boolean()) fail(key, "must be true or false");
    return value->get<bool>();
  }

  float positive(const char* key, float fallback) const {
    const json* value = find(key);
    if (!value) return fallback;
    if (!value->is_number() || !(value->get<double>() > 0) || !(value->get<double>() < 1))
      fail(key, "must be a number between 0 and 1");
    return value->get<float>();
  }

  // What the forward pass is written for: a key that is given must have this value, and if the fallback of an absent
  // key is not that value, the key must be given.
  void require(const char* key, const json& wanted, const json& fallback, std::string_view why) const {
    const json* value = find(key);
    if ((value ? *value : fallback) != wanted) fail(key, fmt::format("must be {}: {}", wanted.dump(), why));
  }

  [[noreturn]] void fail(const char* key, std::string_view what) const {
    const json* value = find(key);
    const std::string shown = value ? value->dump(-1, ' ', false, json::error_handler_t::replace) : "not given";
    throw_error(ErrorKind::input, "{}: \"{}\" ({}) {}", path_, key, shown.substr(0, 80), what);
  }

 private:
  const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  std::string path_;
  json object_;
};

void check_is_esm2(const ConfigReader& reader) {
  reader.require("model_type", "esm", nullptr, "only ESM-2 models are supported");
  reader.require("position_embedding_type", "rotary", "absolute", "ESM-2 has rotary positions, ESM-1 has not");
  reader.require("emb_layer_norm_before", false, false, "ESM-2 has no LayerNorm before its encoder");
  reader.require("is_folding_model", false, false, "ESMFold is not supported, only the language models are");
  reader.require("is_decoder", false, false, "ESM-2 is a bidirectional encoder");
  reader.require("hidden_act", "gelu", "gelu", "ESM-2 uses the exact GELU");
  reader.require("rope_theta", 10000.0, 10000.0, "ESM-2's rotary positions have this base");
  reader.require("vocab_size", 33, nullptr, "ESM-2's vocabulary has 33 tokens");
  reader.require("pad_token_id", 1, 1, "this is the place of <pad> in ESM-2's vocabulary");
  reader.require("mask_token_id", 32, 32, "this is the place of <mask> in ESM-2's vocabulary");
  reader.require("eos_token_id", 2, 2, "this is the place of <eos> in ESM-2's vocabulary");
}

void check_head_dim(const ConfigReader& reader, const Esm2Config& config) {
  if (config.hidden % config.heads != 0)
    reader.fail("hidden_size", fmt::format("must be a multiple of num_attention_heads ({})", config.heads));
  if (config.head_dim() % 8 != 0)
    reader.fail("hidden_size",
                fmt::format("gives {} heads of {} values, which must be a multiple of 8: rotary positions "
                            "turn pairs of values, and the kernels read four pairs at a time",
                            config.heads, config.head_dim()));
  if (config.head_dim() > kMaxHeadDim)
    reader.fail("hidden_size", fmt::format("gives {} heads of {} values, more than the {} that attention is built for",
                                           config.heads, config.head_dim(), kMaxHeadDim));
}

struct OfficialSize {
  std::string_view name;
  uint32_t layers, hidden, heads;
};

constexpr OfficialSize kOfficial[] = {{"8M", 6, 320, 20},     {"35M", 12, 480, 20}, {"150M", 30, 640, 20},
                                      {"650M", 33, 1280, 20}, {"3B", 36, 2560, 40}, {"15B", 48, 5120, 40}};
constexpr std::string_view kOfficialNames[] = {"8M", "35M", "150M", "650M", "3B", "15B"};

}  // namespace

uint64_t Esm2Config::parameter_count() const {
  const auto linear = [](uint64_t in, uint64_t out) { return in * out + out; };
  const uint64_t layer_norm = 2 * uint64_t(hidden);
  const uint64_t attention = layer_norm + 4 * linear(hidden, hidden);
  const uint64_t feed_forward = layer_norm + linear(hidden, intermediate) + linear(intermediate, hidden);
  const uint64_t embedding = uint64_t(vocab) * hidden;
  const uint64_t lm_head = linear(hidden, hidden) + layer_norm + vocab;  // its decoder is the embedding
  const uint64_t contact_head = linear(uint64_t(layers) * heads, 1);
  return embedding + layers * (attention + feed_forward) + layer_norm + lm_head + contact_head;
}

Esm2Config load_config(const std::filesystem::path& json) {
  const ConfigReader reader(json);
  check_is_esm2(reader);
  Esm2Config config;
  config.layers = reader.size("num_hidden_layers", kMaxLayers);
  config.hidden = reader.size("hidden_size", kMaxHidden);
  config.heads = reader.size("num_attention_heads", kMaxHidden);
  config.intermediate = reader.size("intermediate_size", kMaxIntermediate);
  config.layer_norm_eps = reader.positive("layer_norm_eps", 1e-12f);
  config.token_dropout = reader.flag("token_dropout", false);
  check_head_dim(reader, config);
  return config;
}

std::span<const std::string_view> official_sizes() { return kOfficialNames; }

Esm2Config official_config(std::string_view size) {
  for (const OfficialSize& official : kOfficial) {
    if (official.name != size) continue;
    Esm2Config config;
    config.layers = official.layers;
    config.hidden = official.hidden;
    config.heads = official.heads;
    config.intermediate = 4 * official.hidden;
    return config;
  }
  throw_error(ErrorKind::usage, "there is no ESM-2 of size \"{}\": choose one of {}", size,
              fmt::join(kOfficialNames, ", "));
}

}  // namespace turboesm
