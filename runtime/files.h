#pragma once

#include <filesystem>
#include <string_view>

namespace turboesm {

// Writes a whole file: aside first, then under its name, so that what was there stays whole until what comes is. Bytes
// as they are. Error (input) naming the file.
void write_file(const std::filesystem::path& path, std::string_view content);

}  // namespace turboesm
