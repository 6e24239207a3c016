#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/esm2.h"
#include "model/safetensors.h"

namespace turboesm::golden {

// The device under test; matrix cores as asked. One device is opened for each of the two and kept.
Device& device(bool matrix_cores = true);

// Another one of the same kind, nothing allocated yet; and the CPU back end, the oracle of the others.
std::unique_ptr<Device> open_fresh_device(bool matrix_cores = true);
std::unique_ptr<Device> open_oracle();

std::filesystem::path model_directory(const std::string& name);
std::filesystem::path fixtures();

// Reference values with their shape.
struct Values {
  std::vector<uint64_t> shape;
  std::vector<float> data;
};
Values read_floats(const SafetensorsFile& file, const std::string& name);
std::vector<int32_t> read_ids(const SafetensorsFile& file, const std::string& name);

// |a - b| / |b|; NaN or infinity anywhere gives infinity.
double relative_error(std::span<const float> actual, std::span<const float> expected);

// Rows of [rows, 33] logits whose largest entry is another one although the expected two largest differ by more than
// twice the largest deviation in that row.
int wrong_argmax(std::span<const float> actual, std::span<const float> expected, uint32_t width);

Batch batch_of(const std::vector<std::vector<int32_t>>& sequences);

}  // namespace turboesm::golden
