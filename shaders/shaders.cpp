#include "shaders/shaders.h"

#include <algorithm>

#include "runtime/error.h"

namespace turboesm {

namespace {

const SpirvModule* find(std::string_view name) {
  const auto modules = spirv_modules();
  const auto found = std::ranges::lower_bound(modules, name, {}, &SpirvModule::name);
  return found == modules.end() || found->name != name ? nullptr : &*found;
}

}  // namespace

bool has_spirv(std::string_view name) { return find(name) != nullptr; }

std::span<const uint32_t> spirv(std::string_view name) {
  const SpirvModule* module = find(name);
  if (!module) throw_error(ErrorKind::device, "this build carries no shader module named '{}'", name);
  return module->words;
}

}  // namespace turboesm
