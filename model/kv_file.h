#pragma once

#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

#include "model/config.h"
#include "model/kv_calibration.h"

namespace turboesm {

// MODEL.kv.safetensors: what one calibration run found, for every preset, so that no preset needs another run. L
// layers, all values f32; the tensors of KvLayerStatistics stacked over the layers under their own names:
//   k_mean_before_rope, k_mean, k_rest_mean, v_mean                  [L, heads, d]
//   q_moment, k_covariance, k_rest_covariance, v_covariance          [L, heads, d (d + 1) / 2]
//   codebook.KEY for each fitted codebook                            [L, heads, values]; those of named presets are
//   read
// metadata: format "turboesm-kv", version, model (Checkpoint::hash()), sequences, tokens, seed. Equal statistics give
// equal bytes. Errors as TensorOutput's.
void save_kv_statistics(const KvStatistics& statistics, const std::filesystem::path& path);

// Reads it for the model of this configuration and hash; without samples. Errors (input) name the file and what is
// wrong: no such file, another version, made for another model, a tensor missing, misshapen or not finite.
KvStatistics load_kv_statistics(const std::filesystem::path& path, const Esm2Config& config,
                                std::string_view model_hash);

// The calibration that a model's own folder holds.
std::filesystem::path default_calibration_file(const std::filesystem::path& model_directory);

// Makes the tables of presets for one model; reads the calibration file when the first preset that needs it comes, and
// the model's hash with it. The checkpoint must outlive it.
class KvTableMaker {
 public:
  KvTableMaker(std::filesystem::path calibration_file, const Checkpoint& checkpoint)
      : file_(std::move(calibration_file)), checkpoint_(&checkpoint) {}

  // Errors: as load_kv_statistics and make_kv_tables.
  KvTables operator()(const KvPreset& preset);

 private:
  std::filesystem::path file_;
  const Checkpoint* checkpoint_;
  std::optional<KvStatistics> statistics_;
};

}  // namespace turboesm
