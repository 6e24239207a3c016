#include "model/kv_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <fmt/ranges.h>

#include "model/safetensors.h"
#include "model/tensor_output.h"
#include "runtime/error.h"

namespace turboesm {
namespace {

constexpr std::string_view kFormat = "turboesm-kv", kVersion = "1", kCodebookPrefix = "codebook.";

// The tensors of a layer that have a fixed size.
struct Field {
  std::string_view name;
  std::vector<float> KvLayerStatistics::*values;
  bool triangle;  // [heads, d (d + 1) / 2], else [heads, d]

  uint64_t width(uint64_t d) const { return triangle ? d * (d + 1) / 2 : d; }
};

constexpr Field kFields[] = {
    {"k_mean_before_rope", &KvLayerStatistics::k_mean_before_rope, false},
    {"k_mean", &KvLayerStatistics::k_mean, false},
    {"k_rest_mean", &KvLayerStatistics::k_rest_mean, false},
    {"v_mean", &KvLayerStatistics::v_mean, false},
    {"q_moment", &KvLayerStatistics::q_moment, true},
    {"k_covariance", &KvLayerStatistics::k_covariance, true},
    {"k_rest_covariance", &KvLayerStatistics::k_rest_covariance, true},
    {"v_covariance", &KvLayerStatistics::v_covariance, true},
};

// A calibration file being read.
class Reader {
 public:
  Reader(const std::filesystem::path& path, const Esm2Config& config)
      : file_(SafetensorsFile::open(path)), layers_(config.layers), heads_(config.heads) {}

  const SafetensorsFile& file() const { return file_; }

  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw_error(ErrorKind::input, "{}: {}", file_.path().string(), fmt::format(format, std::forward<Args>(args)...));
  }

  const std::string& text(std::string_view key) const {
    const auto found = file_.metadata().find(key);
    if (found == file_.metadata().end())
      fail("no calibration of a KV cache (its metadata has no \"{}\"); make one with turboesm calibrate", key);
    return found->second;
  }

  uint64_t number(std::string_view key) const {
    const std::string& digits = text(key);
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size())
      fail("metadata \"{}\" is \"{}\", not a number", key, digits);
    return value;
  }

  // One element for each layer of the tensor [layers, heads, width].
  std::vector<std::vector<float>> stacked(std::string_view name, uint64_t width) const {
    const TensorEntry* entry = file_.find(name);
    if (!entry) fail("no tensor \"{}\"", name);
    const std::vector<uint64_t> shape{layers_, heads_, width};
    if (entry->dtype != FileDType::f32 || entry->shape != shape)
      fail("tensor \"{}\" is {} [{}], for this model it must be F32 [{}]", name, name_of(entry->dtype),
           fmt::join(entry->shape, ", "), fmt::join(shape, ", "));
    std::vector<std::vector<float>> result(layers_, std::vector<float>(heads_ * width));
    const std::byte* source = entry->data.data();
    for (std::vector<float>& values : result) {
      std::memcpy(values.data(), source, values.size() * sizeof(float));
      source += values.size() * sizeof(float);
      if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); }))
        fail("tensor \"{}\" has values that are not finite numbers", name);
    }
    return result;
  }

 private:
  SafetensorsFile file_;
  uint64_t layers_, heads_;
};

// Whether one head's stored codebooks are ones that k-means could have made.
bool ascending(const KvSideRecipe& recipe, std::span<const float> stored) {
  for (uint32_t segment = 0; segment < recipe.side.segments; ++segment) {
    const size_t count = size_t(1) << kv_centroid_bits(recipe, segment);
    if (!std::ranges::is_sorted(stored.first(count)) || stored[count] < 0) return false;
    stored = stored.subspan(count + 1);
  }
  return true;
}

// The codebooks of one side of a preset, where it has fitted ones that are not read yet.
void read_codebooks(const Reader& reader, const KvSideRecipe& recipe, bool is_k, KvStatistics& statistics) {
  if (recipe.centroids != KvCentroids::kmeans) return;
  const std::string key = kv_codebook_key(recipe, is_k);
  if (statistics.layers[0].codebooks.contains(key)) return;
  std::vector<std::vector<float>> stacked =
      reader.stacked(std::string(kCodebookPrefix) + key, kv_codebook_values(recipe));
  const size_t width = kv_codebook_values(recipe);
  for (size_t l = 0; l < stacked.size(); ++l) {
    for (size_t at = 0; at < stacked[l].size(); at += width)
      if (!ascending(recipe, std::span(stacked[l]).subspan(at, width)))
        reader.fail("the centroids of tensor \"{}{}\" do not ascend", kCodebookPrefix, key);
    statistics.layers[l].codebooks[key] = std::move(stacked[l]);
  }
}

}  // namespace

void save_kv_statistics(const KvStatistics& statistics, const std::filesystem::path& path) {
  if (path.extension() != ".safetensors")
    throw_error(ErrorKind::usage, "{}: the name of a calibration must end in .safetensors", path.string());
  const uint64_t layers = statistics.layers.size(), heads = statistics.heads;
  if (layers == 0) throw_error(ErrorKind::usage, "[save_kv_statistics] there are no layers");
  TensorOutput output(path);
  std::vector<float> stacked;
  const auto write = [&](std::string_view name, uint64_t width, const auto& values_of) {
    stacked.clear();
    for (const KvLayerStatistics& layer : statistics.layers) {
      const std::vector<float>& values = values_of(layer);
      stacked.insert(stacked.end(), values.begin(), values.end());
    }
    output.add(name, std::array{layers, heads, width}, stacked);
  };
  for (const Field& field : kFields)
    write(field.name, field.width(statistics.head_dim),
          [&field](const KvLayerStatistics& layer) -> const std::vector<float>& { return layer.*field.values; });
  for (const auto& [key, values] : statistics.layers[0].codebooks)
    write(std::string(kCodebookPrefix) + key, values.size() / heads,
          [&name = key](const KvLayerStatistics& layer) -> const std::vector<float>& {
            return layer.codebooks.at(name);
          });
  output.finish({{"format", std::string(kFormat)},
                 {"version", std::string(kVersion)},
                 {"model", statistics.model},
                 {"sequences", std::to_string(statistics.sequences)},
                 {"tokens", std::to_string(statistics.tokens)},
                 {"seed", std::to_string(statistics.seed)}});
}

KvStatistics load_kv_statistics(const std::filesystem::path& path, const Esm2Config& config,
                                std::string_view model_hash) {
  const Reader reader(path, config);
  if (reader.text("format") != kFormat)
    reader.fail("is no calibration of a KV cache; make one with turboesm calibrate");
  if (reader.text("version") != kVersion)
    reader.fail("is a calibration of version {}, this program reads version {}; make it again with turboesm calibrate",
                reader.text("version"), kVersion);
  if (reader.text("model") != model_hash)
    reader.fail("made for another model (its hash is {}, this model's {}); make one with turboesm calibrate",
                reader.text("model"), model_hash);

  KvStatistics statistics;
  statistics.model = model_hash;
  statistics.heads = config.heads;
  statistics.head_dim = config.head_dim();
  statistics.sequences = reader.number("sequences");
  statistics.tokens = reader.number("tokens");
  statistics.seed = reader.number("seed");
  statistics.layers.resize(config.layers);
  for (const Field& field : kFields) {
    std::vector<std::vector<float>> stacked = reader.stacked(field.name, field.width(config.head_dim()));
    for (size_t l = 0; l < stacked.size(); ++l) statistics.layers[l].*field.values = std::move(stacked[l]);
  }
  for (const KvPresetRow& row : kv_presets()) {
    const KvPreset preset = parse_kv_preset(row.name);
    read_codebooks(reader, preset.k, true, statistics);
    read_codebooks(reader, preset.v, false, statistics);
  }
  return statistics;
}

std::filesystem::path default_calibration_file(const std::filesystem::path& model_directory) {
  return model_directory / "model.kv.safetensors";
}

KvTables KvTableMaker::operator()(const KvPreset& preset) {
  const Esm2Config& config = checkpoint_->config();
  if (preset.needs_calibration() && !statistics_) statistics_ = load_kv_statistics(file_, config, checkpoint_->hash());
  return make_kv_tables(preset, config, statistics_ ? &*statistics_ : nullptr, checkpoint_output_weights(*checkpoint_));
}

}  // namespace turboesm
