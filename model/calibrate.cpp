#include "model/calibrate.h"

#include <algorithm>

#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm {
namespace {

// Indices of the chosen sequences, shortest first: batches of like length.
std::vector<size_t> choose(const std::vector<std::vector<int32_t>>& sequences, const CalibrateOptions& options) {
  std::vector<size_t> short_enough;
  std::vector<uint32_t> lengths;
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (sequences[i].size() > options.max_length) continue;
    short_enough.push_back(i);
    lengths.push_back(uint32_t(sequences[i].size()));
  }
  if (short_enough.empty())
    throw_error(ErrorKind::input, "no sequence of at most {} tokens to calibrate with", options.max_length);
  std::vector<size_t> chosen;
  for (size_t i : choose_calibration(lengths, options.sequences, options.seed)) chosen.push_back(short_enough[i]);
  std::ranges::stable_sort(chosen, {}, [&](size_t i) { return sequences[i].size(); });
  return chosen;
}

void add_batch(Esm2& model, const Batch& batch, KvCalibrator& calibrator) {
  const ForwardResult result = model.forward(batch, {.capture = true});
  const size_t part = size_t(batch.shape.tokens) * model.config().hidden;
  for (uint32_t l = 0; l < model.config().layers; ++l) {
    const std::span<const float> qkv = result.captured[l];
    calibrator.add(l, qkv.subspan(0, part), qkv.subspan(part, part), qkv.subspan(2 * part, part), batch.positions);
  }
}

}  // namespace

KvStatistics calibrate(Esm2& model, const std::string& model_hash, const std::vector<std::vector<int32_t>>& sequences,
                       const CalibrateOptions& options, const std::function<void(double)>& progress) {
  const std::vector<size_t> chosen = choose(sequences, options);
  const uint32_t longest = uint32_t(sequences[chosen.back()].size());
  KvCalibrator calibrator(model.config(), rope_table(longest, model.config().head_dim()), {.seed = options.seed});
  for (size_t next = 0; next < chosen.size();) {
    if (interrupted()) throw_error(ErrorKind::cancelled, "interrupted");
    Batch batch;
    do batch.add(sequences[chosen[next++]]);
    while (next < chosen.size() && batch.shape.tokens + sequences[chosen[next]].size() <= options.max_tokens);
    add_batch(model, batch, calibrator);
    progress(double(next) / double(chosen.size()));
  }
  return calibrator.finish(model_hash, chosen.size());
}

}  // namespace turboesm
