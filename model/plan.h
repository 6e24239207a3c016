#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/esm2.h"
#include "model/kv_codec.h"

namespace turboesm {

// Device memory that a run will take, before anything runs.
struct MemoryPlan {
  struct Row {
    std::string what;  // "token embedding and heads", "qkv and feed-forward", ...
    MemoryLabel label;
    uint64_t bytes;
  };
  std::vector<Row> rows;
  uint64_t bytes(MemoryLabel label) const;
  uint64_t total() const;
};

// What is planned for unless more is asked for: the means of the last hidden state, as `embed` writes them.
ForwardOptions plan_options(const Esm2Config& config);

// With `kv` also a cache of this preset for these sequences, and their decoding.
MemoryPlan plan_memory(const Esm2Config& config, DType dtype, const BatchShape& shape, const ForwardOptions& options,
                       const DeviceInfo& device, const KvPreset* kv = nullptr);

// Most sequences of `length` tokens whose plan stays within `budget` bytes; 0 when not even one does.
uint32_t max_batch(const Esm2Config& config, DType dtype, uint32_t length, const ForwardOptions& options,
                   const DeviceInfo& device, uint64_t budget, const KvPreset* kv = nullptr);

// Longest length, in tokens and at most `longest`, at which `batch` sequences fit in the same way; 0 when not even 2
// tokens (<cls> and <eos>) do.
uint32_t max_length(const Esm2Config& config, DType dtype, uint32_t batch, const ForwardOptions& options,
                    const DeviceInfo& device, uint64_t budget, const KvPreset* kv, uint32_t longest);

}  // namespace turboesm
