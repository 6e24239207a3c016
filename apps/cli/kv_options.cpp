#include "apps/cli/kv_options.h"

#include "model/kv_file.h"

namespace turboesm::cli {

void KvOptions::add_calibration(CLI::App& app) {
  app.add_option("--calibration", calibration,
                 "What `turboesm calibrate` wrote for this model (default: model.kv.safetensors in its folder)")
      ->type_name("FILE");
}

std::filesystem::path KvOptions::calibration_file(const Common& common) const {
  return calibration.empty() ? default_calibration_file(common.model_directory()) : std::filesystem::path(calibration);
}

}  // namespace turboesm::cli
