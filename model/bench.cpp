#include "model/bench.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "model/tokenizer.h"
#include "runtime/random.h"

namespace turboesm {
namespace {

using Clock = std::chrono::steady_clock;

Timing summarize(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back(), uint32_t(seconds.size())};
}

struct Timings {
  Timing device, host;
};

// Two runs to warm up (the first may still compile or page in), then repeats until the time is spent.
Timings repeat(Device& device, Recording& recording, const BenchOptions& options) {
  for (int i = 0; i < 2; ++i) device.wait(device.submit(recording));
  std::vector<double> device_seconds, host_seconds;
  const Clock::time_point start = Clock::now();
  Clock::time_point now = start;
  while (device_seconds.size() < options.max_repeats &&
         (device_seconds.size() < options.min_repeats ||
          std::chrono::duration<double>(now - start).count() < options.seconds)) {
    const Clock::time_point begin = Clock::now();
    device.wait(device.submit(recording));
    now = Clock::now();
    host_seconds.push_back(std::chrono::duration<double>(now - begin).count());
    device_seconds.push_back(recording.device_seconds());
  }
  const Timing host = summarize(std::move(host_seconds));
  const Timing on_device = summarize(std::move(device_seconds));
  return {on_device.median > 0 ? on_device : host, host};  // a device without timestamps says 0
}

// A batch of random residues, the same on every run.
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

bool is_product(const Operation& operation) {
  return std::holds_alternative<Linear>(operation) || std::holds_alternative<QkvRope>(operation) ||
         std::holds_alternative<Attention>(operation);
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

LinearBench bench_linear(Device& device, uint32_t rows, uint32_t inputs, uint32_t outputs, DType dtype, bool gelu,
                         const BenchOptions& options) {
  std::vector<std::unique_ptr<Buffer>> buffers;
  const auto tensor = [&](uint64_t count, DType type) {
    buffers.push_back(device.allocate(count * size_of(type), MemoryLabel::activations));
    return Tensor{buffers.back().get(), 0, count, type};
  };
  const Tensor x = tensor(uint64_t(rows) * inputs, dtype), weight = tensor(uint64_t(outputs) * inputs, dtype);
  const Tensor bias = tensor(outputs, DType::f32), y = tensor(uint64_t(rows) * outputs, dtype);
  device.run(std::array<Operation, 3>{RandomNormal{x, 1, 1.0f}, RandomNormal{weight, 2, 0.02f}, Fill{bias, 0.5f}});
  const auto recording =
      device.record(std::array<Operation, 1>{Linear{x, weight, bias, {}, y, rows, inputs, outputs, gelu}});
  return {rows, inputs, outputs, dtype, gelu, repeat(device, *recording, options).device};
}

PrefillBench bench_prefill(Esm2& model, uint32_t sequences, uint32_t length, const BenchOptions& options) {
  const Batch batch = random_batch(sequences, length);
  Forward forward = model.prepare(batch, {.logits = true});
  forward.upload(batch);
  const Timings timings = repeat(model.device(), forward.recording(), options);

  PrefillBench bench;
  bench.shape = batch.shape;
  bench.device = timings.device;
  bench.host = timings.host;
  for (const Operation& operation : forward.operations())
    if (is_product(operation)) bench.flops += flops(operation);
  bench.bytes = Esm2Weights::bytes(model.config(), model.weights().dtype()) +
                uint64_t(batch.shape.tokens) * model.config().vocab * 4;
  if (options.profile) {
    Forward profiled = model.prepare(batch, {.logits = true}, {.profile = true});
    profiled.upload(batch);
    for (int i = 0; i < 3; ++i) profiled.run();
    bench.profile.add(profiled.operations(), profiled.recording().operation_seconds());
  }
  return bench;
}

bool runs_on_gpu(const Device& device) {
  return device.info().kind != DeviceKind::cpu && device.info().kind != DeviceKind::software_gpu;
}

DeviceLimits measure_limits(Device& device, DType dtype) {
  const bool gpu = runs_on_gpu(device);
  const BenchOptions options{.seconds = 0.3, .min_repeats = 3};
  const CopyBench copy = bench_copy(device, gpu ? uint64_t(1) << 30 : uint64_t(128) << 20, options);
  const uint32_t scale = gpu && dtype != DType::f32 ? 1 : gpu ? 4 : 16;
  const LinearBench linear = bench_linear(device, 16384 / scale, 1280, 5120, dtype, false, options);
  return {copy.bytes_per_second(), linear.flops_per_second()};
}

}  // namespace turboesm
