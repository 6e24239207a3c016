#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <vector>

inline constexpr uint32_t kSpirvMagic = 0x07230203;
inline constexpr size_t kSpirvHeaderWords = 5;  // magic, version, generator, id bound, schema

// The words of a .spv file, in the host's byte order (glslang writes that order). Throws std::runtime_error.
inline std::vector<uint32_t> read_spirv(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const auto bytes = file ? static_cast<std::streamoff>(file.tellg()) : 0;
  std::vector<uint32_t> words(static_cast<size_t>(bytes) / sizeof(uint32_t));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(words.data()), static_cast<std::streamsize>(words.size() * sizeof(uint32_t)));
  if (!file || words.size() < kSpirvHeaderWords || words[0] != kSpirvMagic)
    throw std::runtime_error(path.string() + ": not a SPIR-V module");
  return words;
}
