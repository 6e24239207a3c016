#include "model/weights.h"

#include <algorithm>
#include <string>

#include "runtime/cpu/thread_pool.h"
#include "runtime/error.h"

namespace turboesm {
namespace {

enum class Kind { matrix, exact_matrix, vector, norm_weight };  // only `matrix` is stored in the model's dtype

// A tensor of the file. ESM-2 is published for rotary embedding of value i of a head with value i + head_dim / 2 (the
// half-split form), and QkvRope turns neighbours: the rows of what makes q and k change their places within each head.
// The scores do not change with it, as those of q and k change places alike.
struct Source {
  std::string name;            // as published
  uint32_t rope_head_dim = 0;  // head_dim where it makes q or k; 0: the rows stay in order
};

// One device tensor and the file's tensors that it is made of, one below the other.
struct Part {
  Tensor* tensor;
  Kind kind;
  std::vector<uint64_t> shape;  // of each source
  std::vector<Source> sources;  // none: not read from the file by name

  uint64_t source_elements() const {
    uint64_t n = 1;
    for (uint64_t extent : shape) n *= extent;
    return n;
  }
  uint64_t elements() const { return source_elements() * std::max<size_t>(1, sources.size()); }
};

constexpr uint64_t kAlignment = 256;

std::vector<Part> layer_parts(LayerWeights& w, const Esm2Config& c, uint32_t index) {
  const std::string prefix = fmt::format("esm.encoder.layer.{}.", index);
  const auto name = [&](const char* rest) { return prefix + rest; };
  const uint64_t H = c.hidden, I = c.intermediate;
  const uint32_t d = c.head_dim();
  return {
      {&w.attention_norm_weight, Kind::norm_weight, {H}, {{name("attention.LayerNorm.weight")}}},
      {&w.attention_norm_bias, Kind::vector, {H}, {{name("attention.LayerNorm.bias")}}},
      {&w.qkv_weight,
       Kind::matrix,
       {H, H},
       {{name("attention.self.query.weight"), d},
        {name("attention.self.key.weight"), d},
        {name("attention.self.value.weight")}}},
      {&w.qkv_bias,
       Kind::vector,
       {H},
       {{name("attention.self.query.bias"), d},
        {name("attention.self.key.bias"), d},
        {name("attention.self.value.bias")}}},
      {&w.output_weight, Kind::matrix, {H, H}, {{name("attention.output.dense.weight")}}},
      {&w.output_bias, Kind::vector, {H}, {{name("attention.output.dense.bias")}}},
      {&w.feed_norm_weight, Kind::norm_weight, {H}, {{name("LayerNorm.weight")}}},
      {&w.feed_norm_bias, Kind::vector, {H}, {{name("LayerNorm.bias")}}},
      {&w.up_weight, Kind::matrix, {I, H}, {{name("intermediate.dense.weight")}}},
      {&w.up_bias, Kind::vector, {I}, {{name("intermediate.dense.bias")}}},
      {&w.down_weight, Kind::matrix, {H, I}, {{name("output.dense.weight")}}},
      {&w.down_bias, Kind::vector, {H}, {{name("output.dense.bias")}}},
      {&w.contact_weight, Kind::vector, {c.heads}, {}},
  };
}

std::vector<Part> shared_parts(Esm2Weights& w, const Esm2Config& c) {
  const uint64_t H = c.hidden, V = c.vocab;
  return {
      {&w.embedding, Kind::exact_matrix, {V, H}, {{"esm.embeddings.word_embeddings.weight"}}},
      {&w.final_norm_weight, Kind::norm_weight, {H}, {{"esm.encoder.emb_layer_norm_after.weight"}}},
      {&w.final_norm_bias, Kind::vector, {H}, {{"esm.encoder.emb_layer_norm_after.bias"}}},
      {&w.lm_dense_weight, Kind::matrix, {H, H}, {{"lm_head.dense.weight"}}},
      {&w.lm_dense_bias, Kind::vector, {H}, {{"lm_head.dense.bias"}}},
      {&w.lm_norm_weight, Kind::norm_weight, {H}, {{"lm_head.layer_norm.weight"}}},
      {&w.lm_norm_bias, Kind::vector, {H}, {{"lm_head.layer_norm.bias"}}},
      {&w.lm_bias, Kind::vector, {V}, {{"lm_head.bias"}}},
  };
}

DType storage(Kind kind, DType dtype) { return kind == Kind::matrix ? dtype : DType::f32; }

// Lays the parts out in one buffer: sets each tensor's offset, count and dtype, and returns the buffer's size.
uint64_t lay_out(std::vector<Part>& parts, DType dtype) {
  uint64_t size = 0;
  for (Part& part : parts) {
    *part.tensor = Tensor{nullptr, size, part.elements(), storage(part.kind, dtype)};
    size += (part.tensor->bytes() + kAlignment - 1) / kAlignment * kAlignment;
  }
  return size;
}

// The published row that becomes row `row` where heads of head_dim rows are turned in pairs of neighbours.
uint64_t published_row(uint64_t row, uint32_t head_dim) {
  const uint64_t i = row % head_dim;
  return row - i + i / 2 + i % 2 * (head_dim / 2);
}

// Reads, converts and uploads. One thread is held up by page faults on the mapped file and by the conversion: all take
// part in filling a chunk.
class Uploader {
 public:
  Uploader(Device& device, const Checkpoint& checkpoint) : device_(device), checkpoint_(checkpoint) {}

  void operator()(const std::vector<Part>& parts) {
    for (const Part& part : parts)
      for (size_t i = 0; i < part.sources.size(); ++i)
        upload(*part.tensor, i * part.source_elements(), checkpoint_.require(part.sources[i].name, part.shape),
               part.sources[i].rope_head_dim);
  }

 private:
  // Uploads `entry` as the elements from `first` on.
  void upload(const Tensor& tensor, uint64_t first, const TensorEntry& entry, uint32_t rope_head_dim) {
    constexpr uint64_t kGrain = 1 << 16;  // elements
    const uint64_t width = size_of(tensor.dtype);
    device_.upload(*tensor.buffer, tensor.offset + first * width, entry.elements() * width,
                   [&](std::span<std::byte> chunk, uint64_t offset) {
                     threads_.for_each(chunk.size() / width, kGrain, [&](uint64_t begin, uint64_t end) {
                       fill(chunk.data() + begin * width, tensor.dtype, entry, rope_head_dim, offset / width + begin,
                            offset / width + end);
                     });
                   });
  }

  // Writes the elements [begin, end) of what becomes of `entry` on the device.
  static void fill(std::byte* to, DType dtype, const TensorEntry& entry, uint32_t rope_head_dim, uint64_t begin,
                   uint64_t end) {
    const DType from = *runtime_dtype(entry.dtype);
    const uint64_t run = rope_head_dim ? entry.elements() / entry.shape[0] : entry.elements();  // stays together
    for (uint64_t at = begin, next; at < end; at = next) {
      next = std::min(end, (at / run + 1) * run);
      const uint64_t source = rope_head_dim ? published_row(at / run, rope_head_dim) * run + at % run : at;
      convert(from, entry.data.data() + source * size_of(from), dtype, to + (at - begin) * size_of(dtype), next - at);
    }
  }

  Device& device_;
  const Checkpoint& checkpoint_;
  cpu::ThreadPool threads_{0};
};

void make_random(const std::vector<Part>& parts, uint32_t& seed, std::vector<Operation>& operations) {
  constexpr float kStddev = 0.02f;
  for (const Part& part : parts) {
    if (part.kind == Kind::matrix || part.kind == Kind::exact_matrix)
      operations.push_back(RandomNormal{*part.tensor, seed++, kStddev});
    else
      operations.push_back(Fill{*part.tensor, part.kind == Kind::norm_weight ? 1.0f : 0.0f});
  }
}

}  // namespace

uint64_t Esm2Weights::bytes(const Esm2Config& config, DType dtype) {
  Esm2Weights weights(config, dtype);
  std::vector<Part> shared = shared_parts(weights, config), layer = layer_parts(weights.layers[0], config, 0);
  return lay_out(shared, dtype) + config.layers * lay_out(layer, dtype);
}

void Esm2Weights::allocate(Device& device) {
  const auto place = [&](std::vector<Part> parts) {
    buffers_.push_back(device.allocate(lay_out(parts, dtype_), MemoryLabel::weights));
    for (const Part& part : parts) part.tensor->buffer = buffers_.back().get();
  };
  place(shared_parts(*this, config_));
  for (uint32_t i = 0; i < config_.layers; ++i) place(layer_parts(layers[i], config_, i));
}

Esm2Weights Esm2Weights::load(Device& device, const Checkpoint& checkpoint, DType dtype) {
  Esm2Weights weights(checkpoint.config(), dtype);
  const Esm2Config& config = weights.config_;

  // The published files may leave the contact head out (and ESM-2 as an encoder works without one).
  const TensorEntry* regression = nullptr;
  float contact_bias = 0;
  if (checkpoint.find("esm.contact_head.regression.weight")) {
    const uint64_t maps = uint64_t(config.layers) * config.heads;
    regression = &checkpoint.require("esm.contact_head.regression.weight", std::vector<uint64_t>{1, maps});
    const TensorEntry& bias = checkpoint.require("esm.contact_head.regression.bias", std::vector<uint64_t>{1});
    convert(*runtime_dtype(bias.dtype), bias.data.data(), DType::f32, &contact_bias, 1);
  }
  // Everything is looked up, and so complained about, before device memory is taken.
  for (const Part& part : shared_parts(weights, config))
    for (const Source& source : part.sources) checkpoint.require(source.name, part.shape);
  for (uint32_t i = 0; i < config.layers; ++i)
    for (const Part& part : layer_parts(weights.layers[i], config, i))
      for (const Source& source : part.sources) checkpoint.require(source.name, part.shape);

  weights.allocate(device);
  Uploader upload(device, checkpoint);
  upload(shared_parts(weights, config));
  for (uint32_t i = 0; i < config.layers; ++i) {
    LayerWeights& layer = weights.layers[i];
    upload(layer_parts(layer, config, i));
    std::vector<float> contact(config.heads, 0.0f);
    if (regression) {
      const DType from = *runtime_dtype(regression->dtype);
      convert(from, regression->data.data() + uint64_t(i) * config.heads * size_of(from), DType::f32, contact.data(),
              config.heads);
    }
    device.upload<float>(layer.contact_weight, contact);
  }
  weights.contact_bias = contact_bias;
  weights.has_contact_head = regression != nullptr;
  return weights;
}

Esm2Weights Esm2Weights::random(Device& device, const Esm2Config& config, DType dtype, uint32_t seed) {
  Esm2Weights weights(config, dtype);
  weights.allocate(device);
  std::vector<Operation> operations;
  make_random(shared_parts(weights, config), seed, operations);
  for (uint32_t i = 0; i < config.layers; ++i) make_random(layer_parts(weights.layers[i], config, i), seed, operations);
  device.run(operations);
  return weights;
}

}  // namespace turboesm
