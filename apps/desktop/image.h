#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace turboesm::desktop {

// Pixels of 8 bits of red, green and blue, rows from the top.
struct Image {
  uint32_t width = 0, height = 0;
  std::vector<uint8_t> rgb;  // [height, width, 3]
};

// The image as a PNG file (https://www.w3.org/TR/png-3): written aside, then renamed. Error (input) naming the file.
void write_png(const Image& image, const std::filesystem::path& path);

}  // namespace turboesm::desktop
