#include "model/bench.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <numeric>
#include <optional>

#include "model/decoder.h"
#include "model/packing.h"
#include "model/plan.h"
#include "model/tokenizer.h"
#include "runtime/random.h"

namespace turboesm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

Timing summarize(std::vector<double> seconds, uint32_t warm_up) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back(), uint32_t(seconds.size()), warm_up};
}

struct Timings {
  Timing device, host;
};

// Calls run() until the time is spent, as often as the options let it.
template <class Run>
void repeat(const BenchOptions& options, Run&& run) {
  const Clock::time_point start = Clock::now();
  for (uint32_t n = 0; n < options.max_repeats && (n < options.min_repeats || seconds_since(start) < options.seconds);
       ++n)
    run();
}

// The first run may still compile or page in, and a device that has idled may take a while to reach its clock.
constexpr uint32_t kWarmUp = 2;
constexpr double kWarmUpShare = 0.25;  // of the time that is measured

Timings repeat(Device& device, Recording& recording, const BenchOptions& options) {
  const Clock::time_point start = Clock::now();
  uint32_t warm_up = 0;
  for (; warm_up < kWarmUp || seconds_since(start) < kWarmUpShare * options.seconds; ++warm_up)
    device.wait(device.submit(recording));
  std::vector<double> device_seconds, host_seconds;
  repeat(options, [&] {
    const Clock::time_point begin = Clock::now();
    device.wait(device.submit(recording));
    host_seconds.push_back(seconds_since(begin));
    device_seconds.push_back(recording.device_seconds());
  });
  const Timing host = summarize(std::move(host_seconds), warm_up);
  const Timing on_device = summarize(std::move(device_seconds), warm_up);
  return {on_device.median > 0 ? on_device : host, host};  // a device without timestamps says 0
}

// Each operand once.
Work work_of(const Operation& operation) { return {flops(operation), double(bytes(operation))}; }

bool is_product(const Operation& operation) {
  return std::holds_alternative<Linear>(operation) || std::holds_alternative<QkvRope>(operation) ||
         std::holds_alternative<Attention>(operation);
}

// A forward pass: its products, and the weights read once.
Work forward_work(const Esm2& model, const Forward& forward) {
  Work work;
  for (const Operation& operation : forward.operations())
    if (is_product(operation)) work.flops += flops(operation);
  work.bytes = double(Esm2Weights::bytes(model.config(), model.weights().dtype()));
  return work;
}

}  // namespace

CopyBench bench_copy(Device& device, uint64_t bytes, const BenchOptions& options) {
  const uint64_t count = std::max<uint64_t>(4, bytes / 4 / 4 * 4);
  const auto source = device.allocate(count * 4, MemoryLabel::activations);
  const auto destination = device.allocate(count * 4, MemoryLabel::activations);
  const Tensor from{source.get(), 0, count, DType::f32}, to{destination.get(), 0, count, DType::f32};
  device.run(std::array<Operation, 1>{RandomNormal{from, 1, 1.0f}});
  const auto recording = device.record(std::array<Operation, 1>{Copy{from, to}});
  return {count * 4, repeat(device, *recording, options).device};
}

namespace {

// Buffers of a benchmark, each with one tensor.
class Tensors {
 public:
  explicit Tensors(Device& device) : device_(device) {}
  Tensor make(uint64_t count, DType dtype) {
    buffers_.push_back(device_.allocate(count * size_of(dtype), MemoryLabel::activations));
    return {buffers_.back().get(), 0, count, dtype};
  }

 private:
  Device& device_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

std::vector<VariantTiming> time_variants(Device& device, std::span<const Operation> operations,
                                         const BenchOptions& options) {
  std::vector<VariantTiming> timings;
  if (!options.variants) return timings;
  const std::vector<std::string> names = device.variants(operations.front());
  for (uint32_t i = 0; i < names.size(); ++i) {
    if (names[i].find(*options.variants) == std::string::npos) continue;
    const auto recording = device.record(operations, {.variant = i});
    timings.push_back({names[i], repeat(device, *recording, options).device});
  }
  std::ranges::stable_sort(timings, {}, [](const VariantTiming& v) { return v.device.median; });
  return timings;
}

Operation make_product(Device& device, Tensors& tensors, const LinearShape& s) {
  constexpr uint32_t kHeadDim = 64, kPositions = 1024;
  const auto [rows, inputs, outputs, dtype, epilogue] = s;
  const bool none = epilogue == "none", residual = epilogue == "residual";
  const Tensor x = tensors.make(uint64_t(rows) * inputs, dtype), bias = tensors.make(outputs, DType::f32);
  const Tensor weight = tensors.make(uint64_t(outputs) * inputs, dtype);
  const Tensor y = tensors.make(uint64_t(rows) * outputs, none || residual ? DType::f32 : dtype);
  device.run(std::array<Operation, 4>{RandomNormal{x, 1, 1.0f}, RandomNormal{weight, 2, 0.02f}, Fill{bias, 0.5f},
                                      Fill{y, 0.0f}});
  if (none) return Linear{x, weight, {}, {}, y, rows, inputs, outputs};
  if (epilogue != "rope")
    return Linear{x, weight, bias, residual ? y : Tensor{}, y, rows, inputs, outputs, epilogue == "gelu"};
  const Tensor positions = tensors.make(rows, DType::i32);
  const Tensor table = tensors.make(uint64_t(kPositions) * kHeadDim, DType::f32);
  std::vector<int32_t> places(rows);
  for (uint32_t row = 0; row < rows; ++row) places[row] = int32_t(row % kPositions);
  device.upload<int32_t>(positions, places);
  device.upload<float>(table, rope_table(kPositions, kHeadDim));
  return QkvRope{x,        weight,     bias,  positions, table, y, rows, inputs, outputs / (3 * kHeadDim),
                 kHeadDim, kPositions, 0.125f};
}

}  // namespace

LinearBench bench_linear(Device& device, const LinearShape& shape, const BenchOptions& options) {
  Tensors tensors(device);
  const std::array operations{make_product(device, tensors, shape)};
  return {shape, work_of(operations.front()), repeat(device, *device.record(operations), options).device,
          time_variants(device, operations, options)};
}

AttentionBench bench_attention(Device& device, const AttentionShape& shape, const BenchOptions& options) {
  const auto [sequences, length, heads, head_dim, dtype] = shape;
  const uint32_t tokens = sequences * length;
  Tensors tensors(device);
  const uint64_t count = uint64_t(tokens) * heads * head_dim;
  const DType operands = attention_dtype(dtype);
  const Tensor q = tensors.make(count, operands), k = tensors.make(count, operands), v = tensors.make(count, operands);
  const Tensor out = tensors.make(count, dtype), cu_seqlens = tensors.make(sequences + 1, DType::i32);
  std::vector<int32_t> starts(sequences + 1);
  for (uint32_t b = 0; b <= sequences; ++b) starts[b] = int32_t(b * length);
  device.upload<int32_t>(cu_seqlens, starts);
  device.run(std::array<Operation, 3>{RandomNormal{q, 1, 1 / std::sqrt(float(head_dim))}, RandomNormal{k, 2, 1.0f},
                                      RandomNormal{v, 3, 1.0f}});
  const std::array<Operation, 1> operations{Attention{q, k, v, cu_seqlens, out, tokens, sequences, heads, head_dim,
                                                      length, double(length) * length * sequences}};
  return {shape, work_of(operations.front()), repeat(device, *device.record(operations), options).device,
          time_variants(device, operations, options)};
}

Batch random_batch(uint32_t sequences, uint32_t length) {
  Batch batch;
  std::vector<int32_t> ids(length);
  for (uint32_t b = 0; b < sequences; ++b) {
    for (uint32_t i = 0; i < length; ++i) ids[i] = int32_t(4 + pcg_hash(b * length + i) % 20);
    ids.front() = Tokenizer::kCls;
    ids.back() = Tokenizer::kEos;
    batch.add(ids);
  }
  return batch;
}

PrefillBench bench_prefill(Esm2& model, uint32_t sequences, uint32_t length, const BenchOptions& options,
                           const KvCache* cache) {
  const Batch batch = random_batch(sequences, length);
  const ForwardOptions outputs{.logits = true, .cache = cache};
  Forward forward = model.prepare(batch, outputs);
  forward.upload(batch);
  const Timings timings = repeat(model.device(), forward.recording(), options);

  PrefillBench bench;
  bench.shape = batch.shape;
  bench.device = timings.device;
  bench.host = timings.host;
  bench.work = forward_work(model, forward);
  bench.work.bytes += 4.0 * batch.shape.tokens * model.config().vocab;
  if (cache) bench.work.bytes += double(kv_cache_bytes(cache->format(), model.config(), sequences, length));
  if (options.profile) {
    Forward profiled = model.prepare(batch, outputs, {.profile = true});
    profiled.upload(batch);
    for (int i = 0; i < 3; ++i) profiled.run();
    bench.profile.add(profiled.operations(), profiled.recording().operation_seconds());
  }
  return bench;
}

EmbedBench bench_embed(Esm2& model, std::span<const std::vector<int32_t>> sequences, uint32_t max_tokens,
                       const BenchOptions& options) {
  std::vector<uint32_t> lengths;
  for (const std::vector<int32_t>& ids : sequences) lengths.push_back(uint32_t(ids.size()));
  const std::vector<uint32_t> order = longest_first(lengths);
  const ForwardOptions outputs{.layers = {model.config().layers}, .means = true};

  EmbedBench bench;
  const auto take_batch = [&](std::span<const uint32_t>& left) {
    const size_t count = batch_size(lengths, left, max_tokens, kMaxBatchSequences);
    Batch batch;
    for (const uint32_t i : left.first(count)) batch.add(sequences[i]);
    left = left.subspan(count);
    return batch;
  };
  const auto pass = [&](const ForwardQueue::Visit& visit, const RecordOptions& record = {}) {
    const Clock::time_point begin = Clock::now();
    ForwardQueue queue(model, outputs, record, visit);
    std::span<const uint32_t> left = order;
    for (Batch batch = left.empty() ? Batch{} : take_batch(left); batch.shape.sequences != 0;) {
      Batch next = left.empty() ? Batch{} : take_batch(left);
      queue.run(batch, next.shape.sequences != 0 ? &next : nullptr);
      batch = std::move(next);
    }
    return seconds_since(begin);
  };
  bench.first_seconds = pass([&](const Forward& forward) {
    const Work work = forward_work(model, forward);
    const BatchShape& shape = forward.shape();
    bench.work.flops += work.flops;
    bench.work.bytes += work.bytes + 4.0 * shape.sequences * model.config().hidden;
    bench.sequences += shape.sequences;
    bench.tokens += shape.tokens;
    bench.batches += 1;
  });
  std::vector<double> host, device;
  repeat(options, [&] {
    double on_device = 0;
    host.push_back(pass([&](const Forward& forward) { on_device += forward.recording().device_seconds(); }));
    device.push_back(on_device);
  });
  bench.host = summarize(std::move(host), 1);
  bench.device = summarize(std::move(device), 1);
  if (options.profile)
    pass(
        [&](const Forward& forward) {
          bench.profile.add(forward.operations(), forward.recording().operation_seconds());
        },
        {.profile = true});
  return bench;
}

namespace {

Esm2Config one_layer(const DecodeShape& shape) {
  Esm2Config config = official_config("650M");
  config.layers = 1;
  config.heads = shape.heads;
  config.hidden = shape.heads * shape.head_dim;
  config.intermediate = 4 * config.hidden;
  return config;
}

// Every sequence's cached tokens, from the same random K and V of one.
void fill(Device& device, const KvCache& cache, const DecodeShape& shape, DType dtype, const Tensor& table) {
  Tensors tensors(device);
  const uint64_t size = uint64_t(shape.context) * shape.heads * shape.head_dim;
  const Tensor k = tensors.make(size, dtype), v = tensors.make(size, dtype);
  const Tensor appends = tensors.make(3 * uint64_t(shape.sequences), DType::i32);
  std::vector<int32_t> whole;
  for (uint32_t b = 0; b < shape.sequences; ++b) whole.insert(whole.end(), {0, 0, int32_t(shape.context)});
  device.upload<int32_t>(appends, whole);
  const KvLayer& layer = cache.layer(0);
  device.run(std::array<Operation, 3>{RandomNormal{k, 1, 1.0f}, RandomNormal{v, 2, 1.0f},
                                      KvAppend{.k = k,
                                               .v = v,
                                               .appends = appends,
                                               .table = table,
                                               .k_side = layer.k,
                                               .v_side = layer.v,
                                               .cache = layer.cache,
                                               .format = cache.format(),
                                               .tokens = shape.context,
                                               .sequences = shape.sequences,
                                               .heads = shape.heads,
                                               .head_dim = shape.head_dim,
                                               .capacity = cache.capacity(),
                                               .table_rows = cache.capacity(),
                                               .max_count = shape.context}});
}

}  // namespace

KvTables random_kv_tables(const KvPreset& preset, const Esm2Config& config) {
  constexpr uint32_t kTokens = 256;
  const size_t size = size_t(kTokens) * config.hidden;
  std::vector<float> q(size), k(size), v(size);
  for (uint32_t pair = 0; pair < size / 2; ++pair) {
    random_normal_pair(1, pair, q[2 * pair], q[2 * pair + 1]);
    random_normal_pair(2, pair, k[2 * pair], k[2 * pair + 1]);
    random_normal_pair(3, pair, v[2 * pair], v[2 * pair + 1]);
  }
  std::vector<int32_t> positions(kTokens);
  std::iota(positions.begin(), positions.end(), 0);
  KvStatistics statistics;
  if (preset.needs_calibration()) {
    KvCalibrator calibrator(config, rope_table(kTokens, config.head_dim()));
    for (uint32_t l = 0; l < config.layers; ++l) calibrator.add(l, q, k, v, positions);
    statistics = calibrator.finish("", 1);
  }
  const auto identity = [&](uint32_t) {
    std::vector<float> weights(size_t(config.hidden) * config.hidden);
    for (size_t i = 0; i < config.hidden; ++i) weights[i * config.hidden + i] = 1;
    return weights;
  };
  return make_kv_tables(preset, config, preset.needs_calibration() ? &statistics : nullptr, identity);
}

DecodeBench bench_decode(Device& device, const KvPreset& preset, const DecodeShape& shape, DType dtype,
                         const BenchOptions& options) {
  const Esm2Config config = one_layer(shape);
  const KvTables tables = random_kv_tables(preset, config);
  const KvCache cache(device, config, tables, shape.sequences, shape.context);
  const KvLayer& layer = cache.layer(0);
  const uint32_t rows = shape.sequences * shape.queries, d = shape.head_dim;
  const uint64_t size = uint64_t(rows) * shape.heads * d;

  Tensors tensors(device);
  const Tensor table = tensors.make(uint64_t(cache.capacity()) * d, DType::f32);
  const std::vector<float> angles = rope_table(cache.capacity(), d);
  device.upload<float>(table, angles);
  fill(device, cache, shape, dtype, table);

  const Tensor q = tensors.make(size, dtype), turned = tensors.make(size, DType::f32);
  const Tensor lengths = tensors.make(shape.sequences, DType::i32), out = tensors.make(size, dtype);
  device.upload<int32_t>(lengths, std::vector<int32_t>(shape.sequences, int32_t(shape.context)));
  device.run(std::array<Operation, 1>{RandomNormal{q, 4, 1.0f / float(d)}});
  KvQuery query{.q = q,
                .transform = layer.query_transform,
                .projection = layer.k.projection,
                .position_mean = layer.k.position_mean,
                .out = turned,
                .projected = {},
                .position = {},
                .rows = rows,
                .heads = shape.heads,
                .head_dim = d};
  KvAttention attention{.q = turned,
                        .projected = {},
                        .bias = {},
                        .cache = layer.cache,
                        .lengths = lengths,
                        .k_codebook = layer.k.codebook,
                        .v_codebook = layer.v.codebook,
                        .transform = layer.output_transform,
                        .mean = layer.v.mean,
                        .out = out,
                        .format = cache.format(),
                        .sequences = shape.sequences,
                        .queries = shape.queries,
                        .heads = shape.heads,
                        .head_dim = d,
                        .capacity = cache.capacity(),
                        .cached_tokens = double(shape.sequences) * shape.context};
  if (layer.k.projection) query.projected = attention.projected = tensors.make(size, DType::f32);
  std::vector<Operation> operations;
  if (layer.k.position_mean) {
    query.position = tensors.make(size, dtype);
    attention.bias = tensors.make(uint64_t(rows) * shape.heads * cache.capacity(), DType::f32);
    const Tensor narrow = tensors.make(angles.size(), dtype);
    std::vector<std::byte> stored(narrow.bytes());
    convert(DType::f32, angles.data(), dtype, stored.data(), angles.size());
    device.upload<std::byte>(narrow, stored);
    operations = {query,
                  Linear{query.position, narrow, {}, {}, attention.bias, rows * shape.heads, d, cache.capacity()}};
  } else {
    operations = {query};
  }
  operations.push_back(attention);

  DecodeBench bench;
  bench.preset = preset;
  bench.shape = shape;
  bench.cache_bytes = uint64_t(kv_token_layer_bytes(cache.format(), shape.heads, d) * shape.sequences * shape.context);
  bench.work = {attention.flops(), double(bench.cache_bytes + q.bytes() + out.bytes())};
  bench.device = repeat(device, *device.record(operations), options).device;
  bench.variants = time_variants(device, std::array<Operation, 1>{attention}, options);
  if (options.profile) {
    const auto profiled = device.record(operations, {.profile = true});
    for (int i = 0; i < 3; ++i) device.wait(device.submit(*profiled));
    bench.profile.add(operations, profiled->operation_seconds());
  }
  return bench;
}

GenerateBench bench_generate(Esm2& model, const KvPreset& preset, uint32_t sequences, uint32_t prompt, uint32_t length,
                             const BenchOptions& options) {
  constexpr uint32_t kMaxTokens = 16384;  // of a batch of prompts
  const Esm2Config& config = model.config();
  // One layer's tables serve for all: random statistics are as good for one as for another.
  Esm2Config single = config;
  single.layers = 1;
  KvTables tables = random_kv_tables(preset, single);
  tables.layers.resize(tables.shared ? 1 : config.layers, tables.layers.front());

  GenerateBench bench;
  bench.sequences = sequences;
  bench.prompt = prompt;
  bench.length = length;
  bench.planned_bytes = plan_memory(config, model.weights().dtype(), BatchShape::uniform(sequences, length), {},
                                    model.device().info(), &preset)
                            .total();
  const DecoderOptions decoder_options{.sequences = sequences, .capacity = length};
  std::optional<Decoder> decoder(std::in_place, model, tables, decoder_options);
  bench.cache_bytes = kv_cache_bytes(preset.format(), config, sequences, length);
  std::vector<DecodeTask> tasks(sequences);
  for (uint32_t b = 0; b < sequences; ++b) {
    DecodeTask& task = tasks[b];
    for (uint32_t i = 0; i < length; ++i)
      (i < prompt ? task.prompt : task.forced).push_back(int32_t(4 + pcg_hash(b * length + i) % 20));
    task.prompt.front() = Tokenizer::kCls;
    task.limit = length;
  }
  bench.steps = length - prompt;
  const double rows = 2.0 * sequences, cached = 0.5 * (prompt + length) * sequences;  // of a step; on the average
  const double token_bytes = kv_token_layer_bytes(preset.format(), config.heads, config.head_dim());
  bench.work.flops = 2.0 * double(config.parameter_count()) * rows + 8.0 * cached * config.hidden * config.layers;
  bench.work.bytes = double(Esm2Weights::bytes(config, model.weights().dtype())) + cached * token_bytes * config.layers;
  const auto decode = [&](uint64_t steps) {
    const Clock::time_point begin = Clock::now();
    Ticket last = 0;
    for (uint64_t step = 0; step < steps; ++step) last = decoder->submit();
    decoder->wait(last);
    return seconds_since(begin);
  };
  decoder->start(tasks, kMaxTokens);
  decode(std::min<uint64_t>(bench.steps, kWarmUp));
  std::vector<double> prefills, decodes;
  repeat(options, [&] {
    const Clock::time_point begin = Clock::now();
    decoder->start(tasks, kMaxTokens);
    prefills.push_back(seconds_since(begin));
    decodes.push_back(decode(bench.steps));
  });
  bench.prefill = summarize(std::move(prefills), 1);
  bench.decode = summarize(std::move(decodes), kWarmUp);
  if (options.profile) {
    decoder.reset();  // its cache may be half of the memory
    decoder.emplace(model, tables, decoder_options, RecordOptions{.profile = true});
    decoder->start(tasks, kMaxTokens);
    decode(std::min<uint64_t>(bench.steps, 3));
    bench.profile.add(decoder->operations(), decoder->recording().operation_seconds());
  }
  return bench;
}

bool runs_on_gpu(const Device& device) {
  return device.info().kind != DeviceKind::cpu && device.info().kind != DeviceKind::software_gpu;
}

DeviceLimits measure_limits(Device& device, DType dtype) {
  const bool gpu = runs_on_gpu(device);
  const BenchOptions options{.seconds = 0.1, .min_repeats = 3};
  const CopyBench copy = bench_copy(device, gpu ? uint64_t(1) << 30 : uint64_t(128) << 20, options);
  const uint32_t side = !gpu ? 2048 : dtype == DType::f32 ? 4096 : 8192;
  const LinearShape product{.rows = side, .inputs = side, .outputs = side, .dtype = dtype};
  const LinearBench linear = bench_linear(device, product, options);
  return {copy.work().bytes / copy.device.fastest, linear.work.flops / linear.device.fastest};
}

}  // namespace turboesm
