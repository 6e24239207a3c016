#include "model/kv_cache.h"

#include <limits>

#include "model/region.h"
#include "runtime/error.h"

namespace turboesm {
namespace {

// Hands `visit` each table of a layer with the tensor that it becomes.
template <class Visit>
void visit_side(const KvSideTables& tables, KvSideTensors& tensors, Visit&& visit) {
  visit(tables.mean, tensors.mean);
  visit(tables.position_mean, tensors.position_mean);
  visit(tables.transform, tensors.transform);
  visit(tables.codebook, tensors.codebook);
  visit(tables.projection, tensors.projection);
}

template <class Visit>
void visit_tables(const KvLayerTables& tables, KvLayer& layer, Visit&& visit) {
  visit_side(tables.k, layer.k, visit);
  visit_side(tables.v, layer.v, visit);
  visit(tables.query_transform, layer.query_transform);
  visit(tables.out_transform, layer.output_transform);
}

// Places a layer's tables in `region`; the tensors of empty tables stay empty.
KvLayer place(const KvLayerTables& tables, Region& region) {
  KvLayer layer;
  visit_tables(tables, layer, [&](const std::vector<float>& values, Tensor& tensor) {
    if (!values.empty()) tensor = region.take(values.size(), DType::f32);
  });
  return layer;
}

uint64_t bytes_of(const KvTables& tables) {
  Region region;
  for (const KvLayerTables& layer : tables.layers) place(layer, region);
  return region.size();
}

}  // namespace

KvCache::KvCache(Device& device, const Esm2Config& config, const KvTables& tables, uint32_t sequences,
                 uint32_t capacity)
    : format_(tables.preset.format()), sequences_(sequences), capacity_(kv_capacity(capacity)) {
  const uint64_t layer_bytes = kv_layer_bytes(format_, config, sequences_, capacity_);
  if (layer_bytes / sizeof(uint32_t) > uint64_t(std::numeric_limits<int32_t>::max()))
    throw_error(ErrorKind::out_of_memory,
                "a {} cache of {} sequences of {} tokens takes {} bytes a layer, more than 2^31 - 1 words: use fewer "
                "sequences",
                tables.preset.name, sequences_, capacity_, layer_bytes);
  Buffer* shared = nullptr;
  if (const uint64_t size = bytes_of(tables)) {
    buffers_.push_back(device.allocate(size, MemoryLabel::weights));
    shared = buffers_.back().get();
  }
  Region region(shared);
  std::vector<KvLayer> placed;
  for (const KvLayerTables& layer : tables.layers) {
    placed.push_back(place(layer, region));
    visit_tables(layer, placed.back(), [&](const std::vector<float>& values, const Tensor& tensor) {
      if (tensor) device.upload<float>(tensor, values);
    });
  }
  for (uint32_t l = 0; l < config.layers; ++l) {
    layers_.push_back(placed[tables.shared ? 0 : l]);
    buffers_.push_back(device.allocate(layer_bytes, MemoryLabel::kv));
    layers_.back().cache = {buffers_.back().get(), 0, layer_bytes / sizeof(uint32_t), DType::i32};
  }
}

uint64_t KvCache::table_bytes(const Esm2Config& config, const KvPreset& preset) {
  Region region;
  for (const uint64_t values : kv_table_sizes(preset, config.heads, config.head_dim())) region.take(values, DType::f32);
  return region.size() * (preset.needs_calibration() ? config.layers : 1);
}

Tensor KvCache::rows(uint32_t layer, uint32_t first, uint32_t count) const {
  const Tensor& all = layers_[layer].cache;
  const uint64_t row = all.count / sequences_;
  return {all.buffer, all.offset + first * row * sizeof(uint32_t), count * row, all.dtype};
}

}  // namespace turboesm
