#include "model/esm2.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/kv_cache.h"
#include "model/region.h"
#include "runtime/error.h"

namespace turboesm {
namespace {

uint64_t residues(uint32_t length) { return length > 2 ? length - 2 : 0; }

// Lays out every tensor of a forward pass. `cu_seqlens` may be empty when only sizes are wanted: then all sequences are
// taken to be of max_length.
ForwardTensors place(const Esm2Config& c, DType dtype, const BatchShape& shape, std::span<const int32_t> cu_seqlens,
                     const ForwardOptions& options, const Workspace& workspace, WorkspaceSizes& sizes) {
  using R = WorkspaceSizes;
  ForwardTensors t;
  const uint64_t T = shape.tokens, B = shape.sequences, H = c.hidden, L = shape.max_length;
  const auto region = [&](R::Region which, auto&& fill) {
    Region r(workspace[which]);
    fill(r);
    sizes.bytes[which] = r.size();
  };
  region(R::inputs, [&](Region& r) {
    t.ids = r.take(T, DType::i32);
    t.positions = r.take(T, DType::i32);
    t.cu_seqlens = r.take(B + 1, DType::i32);
    t.scale = r.take(B, DType::f32);
    t.rope_table = r.take(L * c.head_dim(), DType::f32);
    if (options.cache) t.appends = r.take(3 * B, DType::i32);
  });
  region(R::residual, [&](Region& r) { t.x = r.take(T * H, DType::f32); });
  region(R::normed, [&](Region& r) { t.normed = r.take(T * H, dtype); });
  // q, k and v, the feed-forward layer and the LM head's dense layer are never alive together.
  uint64_t wide = 0;
  region(R::wide, [&](Region& r) {
    t.qkv = r.take(3 * T * H, attention_dtype(dtype));
    t.q = part(t.qkv, 0, T * H);
    t.k = part(t.qkv, 1, T * H);
    t.v = part(t.qkv, 2, T * H);
    wide = r.size();
    r.restart();
    t.feed = r.take(T * c.intermediate, dtype);
    wide = std::max(wide, r.size());
    r.restart();
    t.lm_dense = r.take(T * H, DType::f32);
    wide = std::max(wide, r.size());
  });
  sizes.bytes[R::wide] = wide;
  region(R::final_hidden, [&](Region& r) {
    if (std::ranges::count(options.layers, c.layers)) t.final_hidden = r.take(T * H, DType::f32);
  });
  region(R::hidden, [&](Region& r) {
    for (size_t i = 0; options.hidden && i < options.layers.size(); ++i) t.hidden.push_back(r.take(T * H, DType::f32));
  });
  region(R::means, [&](Region& r) {
    for (size_t i = 0; options.means && i < options.layers.size(); ++i) t.means.push_back(r.take(B * H, DType::f32));
  });
  region(R::logits, [&](Region& r) {
    if (options.logits) t.logits = r.take(T * c.vocab, DType::f32);
  });
  region(R::maps, [&](Region& r) {
    if (!options.contacts || residues(uint32_t(L)) == 0) return;
    t.maps = r.take(c.heads * L * L, DType::f32);
    t.map_sums = r.take(c.heads * (L - 1), DType::f32);
  });
  region(R::contacts, [&](Region& r) {
    for (uint32_t b = 0; options.contacts && b < B; ++b) {
      const uint64_t n = residues(cu_seqlens.empty() ? uint32_t(L) : uint32_t(cu_seqlens[b + 1] - cu_seqlens[b]));
      t.contacts.push_back(n ? r.take(n * n, DType::f32) : Tensor{});
    }
  });
  region(R::captured, [&](Region& r) {
    for (uint32_t l = 0; options.capture && l < c.layers; ++l)
      t.captured.push_back(r.take(3 * T * H, attention_dtype(dtype)));
  });
  return t;
}

}  // namespace

// q, k and v are of moderate size, whatever the residual stream does: fp16's three more bits serve them better than
// bf16's range, and errors of the scores are what a sharp softmax amplifies.
DType attention_dtype(DType dtype) { return dtype == DType::bf16 ? DType::f16 : dtype; }

Tensor part(const Tensor& whole, uint64_t index, uint64_t count) {
  return {whole.buffer, whole.offset + index * count * size_of(whole.dtype), count, whole.dtype};
}

uint64_t WorkspaceSizes::total() const { return std::accumulate(bytes.begin(), bytes.end(), uint64_t(0)); }

WorkspaceSizes WorkspaceSizes::lay_out(const Esm2Config& config, DType dtype, const BatchShape& shape,
                                       const ForwardOptions& options) {
  WorkspaceSizes sizes;
  place(config, dtype, shape, {}, options, Workspace{}, sizes);
  return sizes;
}

void Workspace::reserve(Device& device, const WorkspaceSizes& sizes) {
  // What is too small goes first, so that old and new never exist together.
  for (uint32_t i = 0; i < WorkspaceSizes::kRegions; ++i)
    if (buffers_[i] && buffers_[i]->size() < sizes.bytes[i]) buffers_[i].reset();
  try {
    for (uint32_t i = 0; i < WorkspaceSizes::kRegions; ++i)
      if (!buffers_[i] && sizes.bytes[i]) buffers_[i] = device.allocate(sizes.bytes[i], MemoryLabel::activations);
  } catch (...) {
    buffers_ = {};
    throw;
  }
}

bool Workspace::holds(const WorkspaceSizes& sizes) const {
  for (uint32_t i = 0; i < WorkspaceSizes::kRegions; ++i)
    if (sizes.bytes[i] > (buffers_[i] ? buffers_[i]->size() : 0)) return false;
  return true;
}

bool Esm2::prepares_beside(const Batch& batch, const ForwardOptions& options) const {
  WorkspaceSizes sizes;
  place(config(), weights_.dtype(), batch.shape, batch.cu_seqlens, options, Workspace{}, sizes);
  return workspace_.holds(sizes);
}

Forward Esm2::prepare(const Batch& batch, const ForwardOptions& options, const RecordOptions& record) {
  for (uint32_t layer : options.layers)
    if (layer > config().layers)
      throw_error(ErrorKind::usage, "layer {} does not exist: the model has hidden states 0 to {}", layer,
                  config().layers);
  if (options.contacts && !weights_.has_contact_head)
    throw_error(ErrorKind::usage, "this model has no contact head (esm.contact_head.regression.weight)");

  Forward forward(*device_, weights_, batch.shape, options);
  WorkspaceSizes sizes;
  place(config(), weights_.dtype(), batch.shape, batch.cu_seqlens, options, Workspace{}, sizes);
  workspace_.reserve(*device_, sizes);
  forward.tensors_ = place(config(), weights_.dtype(), batch.shape, batch.cu_seqlens, options, workspace_, sizes);
  if (rope_table_->size() < forward.tensors_.rope_table.count)
    rope_table_ = std::make_shared<const std::vector<float>>(rope_table(batch.shape.max_length, config().head_dim()));
  forward.rope_table_ = rope_table_;
  forward.operations_ = forward_operations(weights_, forward.tensors_, batch.shape, batch.cu_seqlens, options);
  forward.recording_ = device_->record(forward.operations_, record);
  return forward;
}

ForwardResult Esm2::forward(const Batch& batch, const ForwardOptions& options) {
  Forward forward = prepare(batch, options);
  forward.upload(batch);
  forward.run();
  return forward.download();
}

void Forward::upload(const Batch& batch) {
  if (batch.shape.tokens != shape_.tokens || batch.shape.sequences != shape_.sequences ||
      batch.shape.max_length > shape_.max_length)
    throw_error(ErrorKind::usage,
                "[forward] recorded for {} tokens in {} sequences of at most {}, given {} in {} of {}", shape_.tokens,
                shape_.sequences, shape_.max_length, batch.shape.tokens, batch.shape.sequences, batch.shape.max_length);
  device_->upload<float>(tensors_.rope_table, std::span(*rope_table_).first(tensors_.rope_table.count));
  device_->upload<int32_t>(tensors_.ids, batch.ids);
  device_->upload<int32_t>(tensors_.positions, batch.positions);
  device_->upload<int32_t>(tensors_.cu_seqlens, batch.cu_seqlens);
  if (!options_.cache) return;
  std::vector<int32_t> appends;
  for (uint32_t b = 0; b < batch.shape.sequences; ++b)
    appends.insert(appends.end(), {batch.cu_seqlens[b], 0, int32_t(batch.length(b))});
  device_->upload<int32_t>(tensors_.appends, appends);
}

Ticket Forward::submit() { return device_->submit(*recording_); }

void Forward::run() { device_->wait(submit()); }

ForwardQueue::ForwardQueue(Esm2& model, const ForwardOptions& options, const RecordOptions& record, Visit visit)
    : model_(&model), options_(options), record_(record), visit_(std::move(visit)) {}

ForwardResult ForwardQueue::run(const Batch& batch, const Batch* next) {
  Forward forward = ahead_ ? std::move(*ahead_) : model_->prepare(batch, options_, record_);
  ahead_.reset();
  forward.upload(batch);
  const Ticket ticket = forward.submit();
  try {
    if (next && model_->prepares_beside(*next, options_)) ahead_ = model_->prepare(*next, options_, record_);
  } catch (const std::exception&) {  // what is wrong will be said when it is asked for
    ahead_.reset();
  }
  try {
    model_->device().wait(ticket);
    if (visit_) visit_(forward);
    return forward.download();
  } catch (...) {
    ahead_.reset();
    throw;
  }
}

ForwardResult Forward::download() const {
  const auto fetch = [&](const Tensor& tensor) {
    std::vector<float> values(tensor.count);
    if (!tensor) return values;
    if (tensor.dtype == DType::f32) {
      device_->download<float>(tensor, values);
      return values;
    }
    std::vector<std::byte> stored(tensor.bytes());
    device_->download<std::byte>(tensor, stored);
    convert(tensor.dtype, stored.data(), DType::f32, values.data(), values.size());
    return values;
  };
  ForwardResult result;
  for (const Tensor& tensor : tensors_.means) result.means.push_back(fetch(tensor));
  for (const Tensor& tensor : tensors_.hidden) result.hidden.push_back(fetch(tensor));
  result.logits = fetch(tensors_.logits);
  for (const Tensor& tensor : tensors_.captured) result.captured.push_back(fetch(tensor));
  for (const Tensor& tensor : tensors_.contacts) {
    std::vector<float> contacts = fetch(tensor);
    for (float& value : contacts) value = 1.0f / (1.0f + std::exp(-(value + weights_->contact_bias)));
    result.contacts.push_back(std::move(contacts));
  }
  return result;
}

}  // namespace turboesm
