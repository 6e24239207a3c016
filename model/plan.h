#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/esm2.h"
#include "model/kv_calibration.h"

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

// With `kv`, of this preset's sizes (one layer's tables are enough), also a cache for these sequences and their
// decoding.
MemoryPlan plan_memory(const Esm2Config& config, DType dtype, const BatchShape& shape, const ForwardOptions& options,
                       const DeviceInfo& device, const KvTables* kv = nullptr);

// Most sequences of `length` tokens whose plan stays within `budget` bytes; 0 when not even one does.
uint32_t max_batch(const Esm2Config& config, DType dtype, uint32_t length, const ForwardOptions& options,
                   const DeviceInfo& device, uint64_t budget, const KvTables* kv = nullptr);

}  // namespace turboesm
