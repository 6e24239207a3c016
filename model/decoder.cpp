#include "model/decoder.h"

#include <algorithm>
#include <numeric>

#include "model/region.h"
#include "model/tokenizer.h"
#include "runtime/error.h"

namespace turboesm {
namespace {

constexpr float kTokenDropoutScale = 1.0f - 0.15f * 0.8f;  // of a sequence without <mask>

// What a step may choose: the 20 amino acids, and <eos> to stop.
std::vector<int32_t> candidates() {
  constexpr int32_t kFirst = 4, kCount = 20;
  std::vector<int32_t> ids(kCount);
  std::iota(ids.begin(), ids.end(), kFirst);
  ids.push_back(Tokenizer::kEos);
  return ids;
}

struct Placed {
  ForwardTensors forward;
  DecodeTensors decode;
  uint64_t bytes = 0;
};

Placed place(const Esm2Config& c, DType dtype, const KvPreset& preset, const DecoderOptions& o, Buffer* buffer) {
  const uint64_t B = o.sequences, R = 2 * B, H = c.hidden, capacity = kv_capacity(o.capacity), d = c.head_dim();
  const DType attention = attention_dtype(dtype);
  Placed placed;
  ForwardTensors& t = placed.forward;
  DecodeTensors& s = placed.decode;
  Region r(buffer);
  t.ids = r.take(R, DType::i32);
  t.positions = r.take(R, DType::i32);
  t.cu_seqlens = r.take(2, DType::i32);
  t.scale = r.take(1, DType::f32);
  t.rope_table = r.take(capacity * d, DType::f32);
  t.x = r.take(R * H, DType::f32);
  t.normed = r.take(R * H, dtype);
  t.qkv = r.take(3 * R * H, attention);
  t.q = part(t.qkv, 0, R * H);
  t.k = part(t.qkv, 1, R * H);
  t.v = part(t.qkv, 2, R * H);
  t.feed = r.take(R * c.intermediate, dtype);
  t.lm_dense = r.take(R * H, DType::f32);
  t.logits = r.take(R * c.vocab, DType::f32);
  if (o.hidden) t.final_hidden = r.take(R * H, DType::f32);

  s.appends = r.take(3 * B, DType::i32);
  s.lengths = r.take(B, DType::i32);
  s.active = r.take(B, DType::i32);
  s.limits = r.take(B, DType::i32);
  s.tokens = r.take(B * capacity, DType::i32);
  s.log_probability = r.take(B, DType::f32);
  s.candidates = r.take(candidates().size(), DType::i32);
  s.q = r.take(R * H, DType::f32);
  if (preset.k.side.qjl) s.projected = r.take(R * H, DType::f32);
  if (preset.k.centre == KvCentre::position_mean) {
    s.position = r.take(R * H, attention);
    s.table = attention == DType::f32 ? t.rope_table : r.take(capacity * d, attention);
    s.bias = r.take(R * c.heads * capacity, DType::f32);
  }
  if (o.probe) s.probe = r.take(R * H, dtype);
  placed.bytes = r.size();
  return placed;
}

}  // namespace

uint64_t Decoder::bytes(const Esm2Config& config, DType dtype, const KvPreset& preset, const DecoderOptions& options) {
  return place(config, dtype, preset, options, nullptr).bytes;
}

Decoder::Decoder(Esm2& model, const KvTables& tables, const DecoderOptions& options, const RecordOptions& record)
    : device_(&model.device()),
      model_(&model),
      options_(options),
      cache_(model.device(), model.config(), tables, options.sequences, options.capacity) {
  const Esm2Config& config = model.config();
  const DType dtype = model.weights().dtype();
  workspace_ = device_->allocate(bytes(config, dtype, tables.preset, options), MemoryLabel::activations);
  Placed placed = place(config, dtype, tables.preset, options, workspace_.get());
  forward_ = placed.forward;
  decode_ = placed.decode;

  const std::vector<float> table = rope_table(cache_.capacity(), config.head_dim());
  device_->upload<float>(forward_.rope_table, table);
  if (decode_.table && decode_.table.dtype != DType::f32) {
    std::vector<std::byte> narrow(decode_.table.bytes());
    convert(DType::f32, table.data(), decode_.table.dtype, narrow.data(), table.size());
    device_->upload<std::byte>(decode_.table, narrow);
  }
  const int32_t rows = int32_t(2 * options.sequences);
  device_->upload<int32_t>(forward_.cu_seqlens, std::vector<int32_t>{0, rows});
  device_->upload<float>(forward_.scale, std::vector<float>{kTokenDropoutScale});
  device_->upload<int32_t>(decode_.candidates, candidates());
  operations_ = decode_operations(model.weights(), forward_, decode_, cache_, options);
  recording_ = device_->record(operations_, record);
}

void Decoder::start(std::span<const DecodeTask> tasks, uint32_t max_tokens) {
  if (tasks.size() > options_.sequences)
    throw_error(ErrorKind::usage, "[decoder] {} sequences where {} were planned for", tasks.size(), options_.sequences);
  for (const DecodeTask& task : tasks)
    if (task.prompt.empty() || task.limit > cache_.capacity() || task.prompt.size() >= task.limit ||
        task.forced.size() > task.limit - task.prompt.size())
      throw_error(ErrorKind::usage,
                  "[decoder] a prompt of {} tokens, {} forced ones and a limit of {} do not go into {}",
                  task.prompt.size(), task.forced.size(), task.limit, cache_.capacity());

  // Sequences without a task are inactive: they append nothing and see nothing.
  const size_t B = options_.sequences, capacity = cache_.capacity();
  std::vector<int32_t> ids(2 * B, Tokenizer::kMask), positions(2 * B), appends(3 * B), lengths(B), active(B), limits(B);
  std::vector<int32_t> tokens(B * capacity, -1);
  prompt_lengths_.clear();
  limits_.clear();
  for (size_t b = 0; b < tasks.size(); ++b) {
    const DecodeTask& task = tasks[b];
    const int32_t length = int32_t(task.prompt.size());
    ids[2 * b] = task.prompt.back();
    positions[2 * b] = length - 1;
    positions[2 * b + 1] = length;
    lengths[b] = length;
    active[b] = 1;
    limits[b] = int32_t(task.limit);
    std::ranges::copy(task.prompt, tokens.begin() + ptrdiff_t(b * capacity));
    std::ranges::copy(task.forced, tokens.begin() + ptrdiff_t(b * capacity) + length);
    prompt_lengths_.push_back(uint32_t(length));
    limits_.push_back(task.limit);
  }
  prefill(tasks, max_tokens);
  device_->upload<int32_t>(forward_.ids, ids);
  device_->upload<int32_t>(forward_.positions, positions);
  device_->upload<int32_t>(decode_.appends, appends);
  device_->upload<int32_t>(decode_.lengths, lengths);
  device_->upload<int32_t>(decode_.active, active);
  device_->upload<int32_t>(decode_.limits, limits);
  device_->upload<int32_t>(decode_.tokens, tokens);
  device_->upload<float>(decode_.log_probability, std::vector<float>(B));
}

void Decoder::prefill(std::span<const DecodeTask> tasks, uint32_t max_tokens) {
  for (size_t first = 0; first < tasks.size();) {
    Batch batch;
    size_t end = first;
    while (end < tasks.size() && (end == first || batch.shape.tokens + tasks[end].prompt.size() <= max_tokens))
      batch.add(tasks[end++].prompt);
    Forward forward = model_->prepare(batch, {.cache = &cache_, .cache_first = uint32_t(first)});
    forward.upload(batch);
    forward.run();
    first = end;
  }
}

bool Decoder::any_active() {
  std::vector<int32_t> active(options_.sequences);
  device_->download<int32_t>(decode_.active, active);
  return std::ranges::any_of(active, [](int32_t a) { return a != 0; });
}

std::vector<std::vector<int32_t>> Decoder::tokens() {
  const size_t capacity = cache_.capacity();
  std::vector<int32_t> all(options_.sequences * capacity);
  device_->download<int32_t>(decode_.tokens, all);
  std::vector<std::vector<int32_t>> tokens;
  for (size_t b = 0; b < limits_.size(); ++b) {
    const auto begin = all.begin() + ptrdiff_t(b * capacity);
    auto end = std::find(begin + ptrdiff_t(prompt_lengths_[b]), begin + ptrdiff_t(limits_[b]), -1);
    tokens.emplace_back(begin, end);
  }
  return tokens;
}

std::vector<float> Decoder::log_probability() {
  std::vector<float> sums(options_.sequences);
  device_->download<float>(decode_.log_probability, sums);
  sums.resize(limits_.size());
  return sums;
}

void Decoder::download_logits(std::span<float> logits) { device_->download<float>(forward_.logits, logits); }

void Decoder::download_hidden(std::span<float> hidden) { device_->download<float>(forward_.final_hidden, hidden); }

void Decoder::download_probe(std::span<float> attention) {
  std::vector<std::byte> stored(decode_.probe.bytes());
  device_->download<std::byte>(decode_.probe, stored);
  convert(decode_.probe.dtype, stored.data(), DType::f32, attention.data(), attention.size());
}

}  // namespace turboesm
