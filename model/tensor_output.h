#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace turboesm {

// A file of named f32 tensors that is written while they are computed. Memory use does not depend on the size of the
// data: it goes to temporary files beside the output, and finish() puts the output under its name in one step. An
// object destroyed without finish() leaves nothing behind and an older file of that name untouched.
//
// While finish() runs, a .safetensors output takes its size twice on disk (its header comes first and is known last).
//
// .safetensors  readable by the safetensors libraries; the metadata is its "__metadata__"
// .npz          readable by numpy.load; metadata KEY is the 0-d string array "metadata/KEY": str(f["metadata/KEY"])
//
// Names are UTF-8; bytes that are not are replaced (valid_utf8). Errors: two tensors of one name, or one whose shape
// is not that of its data, are usage; whatever the file system refuses (full disk included) is input and names the
// file.
class TensorOutput {
 public:
  // Fails here, before any work is done, when the folder is missing or cannot be written to (input), or when the
  // extension is neither of the two, or for "-" (usage).
  explicit TensorOutput(const std::filesystem::path& path);
  TensorOutput(TensorOutput&&) noexcept;
  TensorOutput& operator=(TensorOutput&&) noexcept;
  ~TensorOutput();

  // Writes a whole tensor; the product of `shape` is data.size().
  void add(std::string_view name, std::span<const uint64_t> shape, std::span<const float> data);

  // Appends rows [data.size() / columns, columns] to a tensor that grows over the run and is written by finish().
  // Calls with an empty `rows` are how a tensor of no rows comes to be.
  void append_rows(std::string_view name, uint64_t columns, std::span<const float> rows);

  // Completes the file and gives it its name. Nothing may be added afterwards.
  void finish(const std::map<std::string, std::string>& metadata);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

inline TensorOutput open_tensor_output(const std::filesystem::path& path) { return TensorOutput(path); }

// `text` with every byte that is not part of well-formed UTF-8, and every NUL, replaced by U+FFFD.
std::string valid_utf8(std::string_view text);

}  // namespace turboesm
