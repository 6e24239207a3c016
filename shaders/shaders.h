#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace turboesm {

struct SpirvModule {
  std::string_view name;  // the .comp file's stem, with _VARIANT and _bf16 where there are such; see CMakeLists.txt
  std::span<const uint32_t> words;
};

// All modules that the program carries, sorted by name.
std::span<const SpirvModule> spirv_modules();

// Whether there is a module of that name: a compiler that lacks a language extension leaves some out.
bool has_spirv(std::string_view name);

// The module of that name. Error (device) when there is none.
std::span<const uint32_t> spirv(std::string_view name);

}  // namespace turboesm
