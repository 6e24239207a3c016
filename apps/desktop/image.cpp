#include "apps/desktop/image.h"

#include <string>
#include <string_view>

#include <zlib.h>

#include "runtime/error.h"
#include "runtime/files.h"

namespace turboesm::desktop {
namespace {

void append_big_endian(std::string& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out += char(value >> shift & 255);
}

// Length, type, data, and the checksum of type and data.
void append_chunk(std::string& out, std::string_view type, std::string_view data) {
  append_big_endian(out, uint32_t(data.size()));
  const size_t begin = out.size();
  out.append(type).append(data);
  append_big_endian(out, uint32_t(crc32(0, reinterpret_cast<const Bytef*>(&out[begin]), uInt(out.size() - begin))));
}

}  // namespace

void write_png(const Image& image, const std::filesystem::path& path) {
  std::string header;
  append_big_endian(header, image.width);
  append_big_endian(header, image.height);
  header.append("\x08\x02\0\0\0", 5);  // 8 bits, RGB, deflate, filters by row, not interlaced

  // Each row is preceded by its filter; 2 (the difference from the row above) suits flat areas.
  const size_t stride = size_t(image.width) * 3;
  std::string rows;
  for (uint32_t y = 0; y < image.height; ++y) {
    const uint8_t* row = &image.rgb[y * stride];
    rows += char(2);
    for (size_t x = 0; x < stride; ++x) rows += char(row[x] - (y ? row[x - stride] : 0));
  }
  std::string packed(compressBound(uLong(rows.size())), '\0');
  uLongf size = uLongf(packed.size());
  if (compress2(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(rows.data()),
                uLong(rows.size()), Z_BEST_COMPRESSION) != Z_OK)
    throw_error(ErrorKind::out_of_memory, "{}: no memory to compress it", path.string());
  packed.resize(size);

  std::string png("\x89PNG\r\n\x1a\n");
  append_chunk(png, "IHDR", header);
  append_chunk(png, "IDAT", packed);
  append_chunk(png, "IEND", {});
  write_file(path, png);
}

}  // namespace turboesm::desktop
