#pragma once

#include <filesystem>
#include <string>

#include "apps/cli/common.h"

namespace turboesm::cli {

// Options of commands that use a KV cache.
struct KvOptions {
  std::string calibration;  // file; empty: model.kv.safetensors in the model's folder

  void add_calibration(CLI::App& app);
  std::filesystem::path calibration_file(const Common& common) const;
};

}  // namespace turboesm::cli
