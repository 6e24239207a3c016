#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/dtype.h"
#include "runtime/platform.h"

namespace turboesm {

// Every element type that a safetensors file may name.
enum class FileDType { boolean, u8, i8, f8_e4m3, f8_e5m2, f8_e8m0, u16, i16, f16, bf16, u32, i32, f32, u64, i64, f64 };

uint64_t size_of(FileDType dtype);          // bytes an element
std::string_view name_of(FileDType dtype);  // as in the file: "F16", "BOOL", ...

// The type that the runtime computes with, where there is one: f32, f16, bf16, i32.
std::optional<DType> runtime_dtype(FileDType dtype);

struct TensorEntry {
  FileDType dtype = FileDType::f32;
  std::vector<uint64_t> shape;      // outermost dimension first; empty for a scalar
  std::span<const std::byte> data;  // row-major, little-endian, not necessarily aligned; lives as long as its file

  uint64_t elements() const { return data.size() / size_of(dtype); }
};

struct SafetensorsContents {
  std::map<std::string, TensorEntry, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;  // "__metadata__"
};

// Reads the bytes of a safetensors file; the tensors point into `file`. The format:
//   u64 header length (little-endian, at most 100,000,000) | JSON header | data
//   {"__metadata__": {"key": "text"}, "tensor": {"dtype": "F16", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
// The offsets count from the start of the data, and the tensors cover it exactly: no hole, no overlap, nothing left.
// Errors (input) name `file_name`, the tensor where there is one, and what broke which rule. Memory use is bounded by a
// small multiple of the header's size, whatever the bytes are.
SafetensorsContents parse_safetensors(std::span<const std::byte> file, const std::string& file_name);

// A memory-mapped safetensors file.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::filesystem::path& path);

  // Nothing when the file has no tensor of this name. The entry lives as long as this object, moved or not.
  const TensorEntry* find(std::string_view name) const;

  const std::map<std::string, TensorEntry, std::less<>>& tensors() const { return contents_.tensors; }
  const std::map<std::string, std::string, std::less<>>& metadata() const { return contents_.metadata; }
  std::vector<std::string_view> names() const;  // in alphabetical order
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  MappedFile file_;
  SafetensorsContents contents_;
};

}  // namespace turboesm
