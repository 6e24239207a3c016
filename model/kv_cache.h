#pragma once

#include <memory>
#include <vector>

#include "model/config.h"
#include "model/kv_calibration.h"
#include "runtime/backend.h"

namespace turboesm {

// The operands of one layer's cache.
struct KvLayer {
  KvSideTensors k, v;
  Tensor query_transform;   // [heads or 1, d, d] f32; empty: none
  Tensor output_transform;  // [heads or 1, d, d] f32; empty: none
  Tensor cache;             // [sequences, heads, capacity / 32, block_words] i32
};

// A model's KV cache in device memory: one buffer for each layer's codes, labelled kv, and one for the tables of all
// layers (means, transforms, codebooks), labelled weights, as it is calibrated with the model and does not grow.
class KvCache {
 public:
  // `sequences` rows of at least `capacity` tokens each. Errors: out_of_memory; usage when one layer's cache would be
  // larger than an operation can index.
  KvCache(Device& device, const Esm2Config& config, const KvTables& tables, uint32_t sequences, uint32_t capacity);

  // Device memory of the tables that make_kv_tables() makes of a preset, exactly as the constructor allocates it;
  // kv_cache_bytes() is that of the codes.
  static uint64_t table_bytes(const Esm2Config& config, const KvPreset& preset);

  const KvFormat& format() const { return format_; }
  uint32_t sequences() const { return sequences_; }
  uint32_t capacity() const { return capacity_; }  // a multiple of 32
  const KvLayer& layer(uint32_t index) const { return layers_[index]; }
  // The same layer's cache of sequences [first, first + count) alone.
  Tensor rows(uint32_t layer, uint32_t first, uint32_t count) const;

 private:
  KvFormat format_;
  uint32_t sequences_, capacity_;
  std::vector<KvLayer> layers_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace turboesm
