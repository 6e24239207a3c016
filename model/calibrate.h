#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/esm2.h"
#include "model/kv_calibration.h"

namespace turboesm {

struct CalibrateOptions {
  uint32_t sequences = 128;    // drawn uniformly over length (PTQ4Protein)
  uint32_t max_length = 1024;  // tokens; longer sequences are left out
  uint64_t seed = 1;
  uint32_t max_tokens = 4096;  // of a batch
};

// Runs the model over a choice of `sequences` (token ids with <cls> and <eos>) and collects what the presets of a KV
// cache need to know of its queries, keys and values. The choice and all that is drawn at random depend on the seed
// alone; results of different back ends differ by the rounding of their forward passes. Errors: input when no sequence
// is short enough; cancelled once interrupted().
KvStatistics calibrate(Esm2& model, const std::string& model_hash, const std::vector<std::vector<int32_t>>& sequences,
                       const CalibrateOptions& options, const std::function<void(double share)>& progress);

}  // namespace turboesm
