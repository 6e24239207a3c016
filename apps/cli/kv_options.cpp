#include "apps/cli/kv_options.h"

#include <fmt/format.h>

#include "model/kv_file.h"

namespace turboesm::cli {

void KvOptions::add_calibration(CLI::App& app) {
  app.add_option("--calibration", calibration,
                 "What `turboesm calibrate` wrote for this model (default: model.kv.safetensors in its folder)")
      ->type_name("FILE");
}

std::filesystem::path KvOptions::calibration_file(const Common& common) const {
  return calibration.empty() ? common.model_directory() / "model.kv.safetensors" : std::filesystem::path(calibration);
}

KvTableMaker::KvTableMaker(const KvOptions& options, const Common& common, const Checkpoint& checkpoint)
    : file_(options.calibration_file(common)), checkpoint_(checkpoint) {}

KvTables KvTableMaker::operator()(const KvPreset& preset) {
  const Esm2Config& config = checkpoint_.config();
  if (preset.needs_calibration() && !statistics_) statistics_ = load_kv_statistics(file_, config, checkpoint_.hash());
  return make_kv_tables(preset, config, statistics_ ? &*statistics_ : nullptr, checkpoint_output_weights(checkpoint_));
}

}  // namespace turboesm::cli
