#pragma once

#include <functional>
#include <optional>
#include <string>

#include "apps/cli/common.h"
#include "model/kv_calibration.h"

namespace turboesm::cli {

// Options of commands that use a KV cache.
struct KvOptions {
  std::string calibration;  // file; empty: model.kv.safetensors in the model's folder

  void add_calibration(CLI::App& app);
  std::filesystem::path calibration_file(const Common& common) const;
};

// Makes the tables of presets for one model; reads the calibration file when the first preset that needs it comes, and
// the model's hash with it.
class KvTableMaker {
 public:
  KvTableMaker(const KvOptions& options, const Common& common, const Checkpoint& checkpoint);
  KvTables operator()(const KvPreset& preset);

 private:
  std::filesystem::path file_;
  const Checkpoint& checkpoint_;
  std::optional<KvStatistics> statistics_;
};

}  // namespace turboesm::cli
