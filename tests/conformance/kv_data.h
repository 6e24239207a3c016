#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/conformance/harness.h"

// Formats of a KV cache and operands for them.
namespace turboesm::conformance {

struct NamedFormat {
  std::string name;
  KvFormat format;
};

// Every shape that a preset has, and some that none has: bits 1 to 4, 8, 16 and 32, two segments, each kind of scale in
// 16 and 8 bits, QJL, K unlike V.
const std::vector<NamedFormat>& kv_formats();

const NamedFormat& kv_format(const std::string& name);

// Formats, each with head_dims to try it with. All with all where nothing has to be compiled. Else each format with one
// head_dim in turn, on a GPU proper with two; if not `encoding`, those that differ in how the scale was found count as
// one; and a software driver, which compiles slowly, gets every other one.
struct FormatCase {
  NamedFormat format;
  std::vector<uint32_t> head_dims;
};
std::vector<FormatCase> format_cases(const Harness& harness, bool encoding);

// [heads or 1, codebook_size]: centroids near those of a normal distribution, each head's its own, and the thresholds
// midway; those of absmax the integers from -2^(bits - 1) on.
std::vector<float> random_codebook(Rng& rng, const KvSide& side, uint32_t heads);

// A random [count, d, d] stack of matrices that keep lengths about as they are.
std::vector<float> random_matrices(Rng& rng, uint32_t count, uint32_t head_dim);

std::vector<int32_t> random_words(Rng& rng, uint64_t count);

// Operands of a test that records its operations itself, side by side in one buffer.
class DeviceOperands {
 public:
  DeviceOperands(Device& device, uint64_t bytes) : device_(device), buffer_(device.allocate(bytes, MemoryLabel::kv)) {}

  Tensor place(DType dtype, uint64_t count);     // fails the test when the buffer is full
  Tensor upload(std::span<const float> values);  // f32; an empty tensor for no values
  Tensor upload(std::span<const int32_t> values);
  Tensor upload_f16(std::span<const float> values);  // rounded

 private:
  Device& device_;
  std::unique_ptr<Buffer> buffer_;
  uint64_t end_ = 0;
};

}  // namespace turboesm::conformance
