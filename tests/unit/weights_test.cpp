#include "model/weights.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "tests/options.h"

namespace turboesm {
namespace {

class HostBuffer final : public Buffer {
 public:
  HostBuffer(uint64_t size, MemoryLabel label) : Buffer(size, label), bytes(size) {}
  std::vector<std::byte> bytes;
};

// Host memory, uploaded to in chunks of so many bytes.
class ChunksDevice final : public Device {
 public:
  explicit ChunksDevice(uint64_t chunk) : chunk_(chunk) {}
  const DeviceInfo& info() const override { return info_; }
  MemoryReport memory() const override { return {}; }
  std::unique_ptr<Buffer> allocate(uint64_t size, MemoryLabel label) override {
    return std::make_unique<HostBuffer>(size, label);
  }
  using Device::upload;
  void upload(Buffer& buffer, uint64_t offset, uint64_t size, const FillChunk& fill) override {
    const std::span<std::byte> bytes = std::span(static_cast<HostBuffer&>(buffer).bytes).subspan(offset, size);
    for (uint64_t done = 0; done < size; done += chunk_) fill(bytes.subspan(done, std::min(chunk_, size - done)), done);
  }
  void download(const Buffer&, uint64_t, std::span<std::byte>) override { unused(); }
  std::unique_ptr<Recording> record(std::span<const Operation>, const RecordOptions&) override { unused(); }
  Ticket submit(Recording&) override { unused(); }
  void wait(Ticket) override { unused(); }

 private:
  [[noreturn]] static void unused() { throw std::logic_error("loading weights does not compute"); }
  uint64_t chunk_;
  DeviceInfo info_;
};

std::vector<float> values_of(const Tensor& tensor) {
  std::vector<float> values(tensor.count);
  convert(tensor.dtype, static_cast<HostBuffer*>(tensor.buffer)->bytes.data() + tensor.offset, DType::f32,
          values.data(), values.size());
  return values;
}

// The published tensor, rounded to `dtype`.
std::vector<float> published(const Checkpoint& checkpoint, const std::string& name, DType dtype) {
  const TensorEntry* entry = checkpoint.find("esm.encoder.layer.1." + name);
  REQUIRE(entry);
  std::vector<std::byte> rounded(entry->elements() * size_of(dtype));
  convert(*runtime_dtype(entry->dtype), entry->data.data(), dtype, rounded.data(), entry->elements());
  std::vector<float> values(entry->elements());
  convert(dtype, rounded.data(), DType::f32, values.data(), values.size());
  return values;
}

// The published rows in QkvRope's order: value i of a head beside value i + head_dim / 2.
std::vector<float> interleaved(const std::vector<float>& rows, uint64_t width, uint64_t head_dim) {
  std::vector<float> result;
  for (uint64_t head = 0; head * head_dim * width < rows.size(); ++head)
    for (uint64_t i = 0; i < head_dim / 2; ++i)
      for (const uint64_t row : {head * head_dim + i, head * head_dim + i + head_dim / 2})
        result.insert(result.end(), rows.begin() + int64_t(row * width), rows.begin() + int64_t((row + 1) * width));
  return result;
}

}  // namespace

TEST_CASE("weights are loaded as published, but for the order of query's and key's rows", "[unit]") {
  // Small chunks, which begin and end inside a row, and whole tensors, which several threads fill: 65,536 elements
  // each, which are no whole rows of the second model.
  const auto [model, chunk] = GENERATE(table<const char*, uint64_t>(
      {{"tests/fixtures/golden/tiny_hd24", 20}, {"model/pretrained/swissprot_t8_14M", 16u << 20}}));
  const Checkpoint checkpoint = Checkpoint::open(test_options().source_dir / model);
  const uint64_t hidden = checkpoint.config().hidden, head_dim = checkpoint.config().head_dim();
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    ChunksDevice device(chunk);
    const Esm2Weights weights = Esm2Weights::load(device, checkpoint, dtype);
    const auto joint = [&](const std::string& what, uint64_t width, DType stored) {
      std::vector<float> all =
          interleaved(published(checkpoint, "attention.self.query." + what, stored), width, head_dim);
      const auto key = interleaved(published(checkpoint, "attention.self.key." + what, stored), width, head_dim);
      const auto value = published(checkpoint, "attention.self.value." + what, stored);
      all.insert(all.end(), key.begin(), key.end());
      all.insert(all.end(), value.begin(), value.end());
      return all;
    };
    CHECK((values_of(weights.layers[1].qkv_weight) == joint("weight", hidden, dtype)));
    CHECK((values_of(weights.layers[1].qkv_bias) == joint("bias", 1, DType::f32)));
    CHECK((values_of(weights.layers[1].up_weight) == published(checkpoint, "intermediate.dense.weight", dtype)));
  }
}

}  // namespace turboesm
