#pragma once

#include <filesystem>

namespace turboesm::test {

// Makes a folder with a well-formed model of 430 GB, which takes no space: its weights are a hole in their file. No device
// has room for even one layer.
void write_huge_model(const std::filesystem::path& folder);

}  // namespace turboesm::test
