#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"

namespace turboesm {

// A model as a Hugging Face folder holds it: config.json, vocab.txt, and the weights as model.safetensors or as
// model.safetensors.index.json with its shards. The weights stay in their memory-mapped files.
class Checkpoint {
 public:
  // Errors (input): the folder or one of its files is missing (with how to get it), broken, or names a shard outside
  // the folder.
  static Checkpoint open(const std::filesystem::path& directory);

  // A tensor by its published name. "…LayerNorm.weight" and "….bias" are also found under "….gamma" and "….beta", the
  // spelling that transformers 5 writes. Nothing when there is no such tensor.
  const TensorEntry* find(std::string_view name) const;

  // A tensor that must be there in this shape, as f32, f16 or bf16. Errors (input) name the file and the tensor.
  const TensorEntry& require(std::string_view name, std::span<const uint64_t> shape) const;

  // 16 hex digits that tell models apart: XXH64 over the configuration's sizes and every tensor's published name,
  // dtype, shape and bytes, in order of name. The same weights in one file or in shards, and in either LayerNorm
  // spelling, hash alike. Reads all weights (several GB/s once they are in memory): call it once.
  std::string hash() const;

  uint64_t data_bytes() const;  // of all tensors, as stored

  const std::filesystem::path& directory() const { return directory_; }
  const Esm2Config& config() const { return config_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  struct Location {
    const TensorEntry* entry;
    size_t file;  // index into files_
  };

  void add_file(const std::filesystem::path& path);
  void open_shards(const std::filesystem::path& index);

  std::filesystem::path directory_;
  Esm2Config config_;
  Tokenizer tokenizer_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Location, std::less<>> tensors_;  // by published name
};

// The folder of the model that ships with the program: ../share/turboesm/models beside the program's own folder.
std::filesystem::path default_model_directory();

// The 64-bit xxHash of `data` (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md). Several pieces are hashed as
// one by passing each the previous result as its seed.
uint64_t xxh64(std::span<const std::byte> data, uint64_t seed = 0);

}  // namespace turboesm
