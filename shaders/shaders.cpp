#include "shaders/shaders.h"

#include <algorithm>

#include "runtime/error.h"

namespace turboesm {

std::span<const uint32_t> spirv(std::string_view name) {
  const auto modules = spirv_modules();
  const auto found = std::ranges::lower_bound(modules, name, {}, &SpirvModule::name);
  if (found == modules.end() || found->name != name)
    throw_error(ErrorKind::device, "this build carries no shader module named '{}'", name);
  return found->words;
}

}  // namespace turboesm
