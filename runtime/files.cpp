#include "runtime/files.h"

#include <fstream>

#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm {

void write_file(const std::filesystem::path& path, std::string_view content) {
  const std::filesystem::path aside = unique_sibling(path);
  std::ofstream file(aside, std::ios::binary);
  file << content;
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(aside, path, error);
  if (!file || error) {
    std::error_code ignored;
    std::filesystem::remove(aside, ignored);
    throw_error(ErrorKind::input, "{}: cannot be written", path.string());
  }
}

}  // namespace turboesm
