#include "model/tensor_output.h"

#include <minizip/zip.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm {

static_assert(std::endian::native == std::endian::little, "both formats are written as the data lies in memory");

namespace fs = std::filesystem;

namespace {

using Bytes = std::span<const std::byte>;

constexpr size_t kCopyBytes = size_t(1) << 20;
constexpr char32_t kReplacement = 0xFFFD;

// Takes one code point off the front of `text`, which is not empty; kReplacement for a byte that is not UTF-8.
char32_t take_code_point(std::string_view& text) {
  const auto byte = [&](size_t i) { return uint32_t(uint8_t(text[i])); };
  const uint32_t lead = byte(0);
  const size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  char32_t code = length == 1 ? lead : lead & (0x7Fu >> length);
  bool valid = length > 0 && length <= text.size();
  for (size_t i = 1; valid && i < length; ++i) {
    valid = (byte(i) & 0xC0u) == 0x80u;
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  valid = valid && code != 0 && !overlong && !surrogate && code <= 0x10FFFF;
  text.remove_prefix(valid ? length : 1);
  return valid ? code : kReplacement;
}

// A file of a passing name beside the output, gone with the object unless it is given the output's name.
class TemporaryFile {
 public:
  explicit TemporaryFile(const fs::path& output) : output_(output), path_(unique_sibling(output)) {
    errno = 0;
    stream_.open(path_, std::ios::in | std::ios::out | std::ios::trunc | std::ios::binary);
    if (!stream_) throw_error(ErrorKind::input, "{}: cannot write in its folder: {}", output_.string(), reason());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    stream_.close();
    std::error_code ignored;
    if (!renamed_) fs::remove(path_, ignored);
  }

  std::fstream& stream() { return stream_; }

  void write(Bytes bytes) {
    errno = 0;
    stream_.write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
    if (!stream_) fail();
  }

  // Passes everything written so far to `sink(Bytes)` in pieces.
  template <class Sink>
  void read_back(Sink sink) {
    errno = 0;
    stream_.seekg(0);  // also writes out what is buffered
    if (!stream_) fail();
    std::vector<std::byte> buffer(kCopyBytes);
    while (stream_.read(reinterpret_cast<char*>(buffer.data()), std::streamsize(buffer.size())), stream_.gcount() > 0) {
      if (interrupted()) throw_error(ErrorKind::cancelled, "{}: interrupted, not written", output_.string());
      sink(Bytes(buffer).first(size_t(stream_.gcount())));
    }
    if (stream_.bad()) throw_error(ErrorKind::input, "{}: cannot read back: {}", output_.string(), reason());
  }

  void rename_to_output() {
    errno = 0;
    stream_.close();
    if (!stream_) fail();
    std::error_code error;
    fs::rename(path_, output_, error);
    if (error) throw_error(ErrorKind::input, "{}: cannot be replaced: {}", output_.string(), error.message());
    renamed_ = true;
  }

  [[noreturn]] void fail() const { throw_error(ErrorKind::input, "{}: cannot write: {}", output_.string(), reason()); }

 private:
  static std::string reason() { return errno != 0 ? std::strerror(errno) : "unknown error"; }

  fs::path output_;
  fs::path path_;
  std::fstream stream_;
  bool renamed_ = false;
};

// One of the two formats. Tensors are written one after the other: begin, write their bytes in order, end.
class Archive {
 public:
  virtual ~Archive() = default;
  virtual void begin(const std::string& name, std::span<const uint64_t> shape, uint64_t bytes) = 0;
  virtual void write(Bytes bytes) = 0;
  virtual void end() = 0;
  virtual void finish(const std::map<std::string, std::string>& metadata) = 0;
};

// The header comes first in the file and is known last, so the data waits in a spool file.
class SafetensorsArchive final : public Archive {
 public:
  explicit SafetensorsArchive(const fs::path& output) : output_(output), spool_(output) {}

  void begin(const std::string& name, std::span<const uint64_t> shape, uint64_t bytes) override {
    if (name == kMetadata) throw_error(ErrorKind::usage, "{}: no tensor can be named {}", output_.string(), kMetadata);
    entries_ += fmt::format(",{}:{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                            nlohmann::json(name).dump(), fmt::join(shape, ","), offset_, offset_ + bytes);
    offset_ += bytes;
    check_header_size(entries_.size());
  }

  void write(Bytes bytes) override { spool_.write(bytes); }
  void end() override {}

  void finish(const std::map<std::string, std::string>& metadata) override {
    nlohmann::json texts = nlohmann::json::object();
    for (const auto& [key, text] : metadata) texts[valid_utf8(key)] = valid_utf8(text);
    std::string header = fmt::format("{{\"{}\":{}{}}}", kMetadata, texts.dump(), entries_);
    header.resize((header.size() + 7) / 8 * 8, ' ');  // the data starts at a multiple of 8 bytes
    check_header_size(header.size());
    const uint64_t header_bytes = header.size();

    TemporaryFile file(output_);
    file.write(std::as_bytes(std::span(&header_bytes, 1)));
    file.write(std::as_bytes(std::span(header)));
    spool_.read_back([&file](Bytes bytes) { file.write(bytes); });
    file.rename_to_output();
  }

 private:
  static constexpr std::string_view kMetadata = "__metadata__";

  void check_header_size(size_t bytes) const {
    constexpr size_t kMaxHeaderBytes = 100'000'000;
    if (bytes > kMaxHeaderBytes)
      throw_error(ErrorKind::usage,
                  "{}: so many tensors do not fit the header of a safetensors file ({} bytes); write "
                  "an .npz file or split the input",
                  output_.string(), kMaxHeaderBytes);
  }

  fs::path output_;
  TemporaryFile spool_;
  std::string entries_;  // ,"name":{...} for each tensor
  uint64_t offset_ = 0;  // bytes in the spool
};

// A zip file of .npy files, stored: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
class NpzArchive final : public Archive {
 public:
  explicit NpzArchive(const fs::path& output) : output_(output), file_(output) {
    zlib_filefunc64_def callbacks{};
    callbacks.opaque = &file_.stream();
    callbacks.zopen64_file = [](voidpf opaque, const void*, int) -> voidpf { return opaque; };
    callbacks.zread_file = [](voidpf, voidpf, void*, uLong) -> uLong { return 0; };  // a new zip is only written
    callbacks.zwrite_file = [](voidpf, voidpf stream, const void* data, uLong size) -> uLong {
      errno = 0;
      return to_stream(stream).write(static_cast<const char*>(data), std::streamsize(size)) ? size : 0;
    };
    callbacks.ztell64_file = [](voidpf, voidpf stream) -> ZPOS64_T { return ZPOS64_T(to_stream(stream).tellp()); };
    callbacks.zseek64_file = [](voidpf, voidpf stream, ZPOS64_T offset, int origin) -> long {
      const auto from = origin == ZLIB_FILEFUNC_SEEK_SET   ? std::ios::beg
                        : origin == ZLIB_FILEFUNC_SEEK_CUR ? std::ios::cur
                                                           : std::ios::end;
      return to_stream(stream).seekp(std::streamoff(offset), from) ? 0 : -1;
    };
    callbacks.zclose_file = [](voidpf, voidpf) { return 0; };  // file_ closes it
    callbacks.zerror_file = [](voidpf, voidpf stream) { return to_stream(stream) ? 0 : 1; };
    zip_ = zipOpen2_64("", APPEND_STATUS_CREATE, nullptr, &callbacks);
    if (!zip_) throw_error(ErrorKind::out_of_memory, "{}: no memory for writing a zip file", output.string());
  }
  NpzArchive(const NpzArchive&) = delete;
  NpzArchive& operator=(const NpzArchive&) = delete;
  ~NpzArchive() override {
    if (zip_) zipClose(zip_, nullptr);
  }

  void begin(const std::string& name, std::span<const uint64_t> shape, uint64_t bytes) override {
    begin_array(name, "<f4", shape, bytes);
  }

  void write(Bytes bytes) override {
    constexpr size_t kMaxWrite = size_t(1) << 30;  // zipWriteInFileInZip takes 32 bits
    for (; !bytes.empty(); bytes = bytes.subspan(std::min(bytes.size(), kMaxWrite)))
      check(zipWriteInFileInZip(zip_, bytes.data(), unsigned(std::min(bytes.size(), kMaxWrite))));
  }

  void end() override { check(zipCloseFileInZip(zip_)); }

  void finish(const std::map<std::string, std::string>& metadata) override {
    for (const auto& [key, text] : metadata) add_text(valid_utf8("metadata/" + key), text);
    check(zipClose(std::exchange(zip_, nullptr), nullptr));
    file_.rename_to_output();
  }

 private:
  static std::fstream& to_stream(voidpf stream) { return *static_cast<std::fstream*>(stream); }

  void check(int code) const {
    if (code != ZIP_OK) file_.fail();
  }

  void begin_array(const std::string& name, std::string_view descr, std::span<const uint64_t> shape, uint64_t bytes) {
    const std::string header = npy_header(descr, shape);
    zip_fileinfo info{};
    info.dosDate = 0x00210000;  // 1980-01-01, so that equal data makes equal files
    constexpr uLong kNamesAreUtf8 = 1u << 11;
    // A margin below 4 GiB, for the 64-bit sizes are only needed from there on and older readers do without.
    const int zip64 = header.size() + bytes >= 0xFFFF0000u;
    const std::string file_name = name + ".npy";
    if (file_name.size() > std::numeric_limits<uint16_t>::max())
      throw_error(ErrorKind::usage, "{}: a tensor's name of {} bytes is too long for an .npz file", output_.string(),
                  name.size());
    check(zipOpenNewFileInZip4_64(zip_, file_name.c_str(), &info, nullptr, 0, nullptr, 0, nullptr, /*method=*/0,
                                  /*level=*/0, /*raw=*/0, -MAX_WBITS, DEF_MEM_LEVEL, Z_DEFAULT_STRATEGY,
                                  /*password=*/nullptr, /*crcForCrypting=*/0, /*versionMadeBy=*/0, kNamesAreUtf8,
                                  zip64));
    write(std::as_bytes(std::span(header)));
  }

  // Version 1.0 of the format: magic, u16 length of the text, the text padded so that the data is 64-byte aligned.
  static std::string npy_header(std::string_view descr, std::span<const uint64_t> shape) {
    constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);
    const std::string_view comma = shape.size() == 1 ? "," : "";  // Python's tuple of one
    std::string text = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr,
                                   fmt::join(shape, ", "), comma);
    const size_t total = (kMagic.size() + 2 + text.size() + 1 + 63) / 64 * 64;
    const size_t length = total - kMagic.size() - 2;
    if (length > std::numeric_limits<uint16_t>::max())
      throw_error(ErrorKind::usage, "[TensorOutput] a shape of {} dimensions is too long for numpy", shape.size());
    text.resize(length - 1, ' ');
    return fmt::format("{}{}{}{}\n", kMagic, char(length & 0xFF), char(length >> 8), text);
  }

  void add_text(const std::string& name, std::string_view text) {
    std::vector<char32_t> code_points;
    while (!text.empty()) code_points.push_back(take_code_point(text));
    if (code_points.empty()) code_points.push_back(0);  // numpy's own form of an empty string
    const auto bytes = std::as_bytes(std::span(code_points));
    begin_array(name, fmt::format("<U{}", code_points.size()), {}, bytes.size());
    write(bytes);
    end();
  }

  fs::path output_;
  TemporaryFile file_;
  zipFile zip_ = nullptr;
};

std::unique_ptr<Archive> open_archive(const fs::path& path) {
  if (path == "-") throw_error(ErrorKind::usage, "results cannot be written to standard output, name a file");
  const fs::path extension = path.extension();
  if (extension != ".safetensors" && extension != ".npz")
    throw_error(ErrorKind::usage, "{}: the name must end in .safetensors or .npz", path.string());
  std::error_code error;
  if (fs::is_directory(path, error)) throw_error(ErrorKind::input, "{}: is a directory", path.string());
  if (extension == ".npz") return std::make_unique<NpzArchive>(path);
  return std::make_unique<SafetensorsArchive>(path);
}

bool shape_holds(std::span<const uint64_t> shape, uint64_t elements) {
  if (std::ranges::find(shape, 0u) != shape.end()) return elements == 0;
  uint64_t left = elements;
  for (uint64_t dimension : shape) {
    if (left % dimension != 0) return false;
    left /= dimension;
  }
  return left == 1;
}

}  // namespace

struct TensorOutput::Impl {
  struct GrowingTensor {
    GrowingTensor(const fs::path& output, uint64_t width) : columns(width), spool(output) {}
    uint64_t columns;
    uint64_t rows = 0;
    TemporaryFile spool;
  };

  explicit Impl(const fs::path& output) : path(output), archive(open_archive(output)) {}

  void require_open() const {
    if (!archive) throw_error(ErrorKind::usage, "{}: is already finished", path.string());
  }

  void claim(const std::string& name) {
    if (!names.insert(name).second)
      throw_error(ErrorKind::usage, "{}: two tensors are named \"{}\"", path.string(), name);
  }

  fs::path path;
  std::unique_ptr<Archive> archive;  // null once finished
  std::set<std::string> names;
  std::map<std::string, GrowingTensor> growing;
};

TensorOutput::TensorOutput(const fs::path& path) : impl_(std::make_unique<Impl>(path)) {}
TensorOutput::TensorOutput(TensorOutput&&) noexcept = default;
TensorOutput& TensorOutput::operator=(TensorOutput&&) noexcept = default;
TensorOutput::~TensorOutput() = default;

void TensorOutput::add(std::string_view raw_name, std::span<const uint64_t> shape, std::span<const float> data) {
  impl_->require_open();
  const std::string name = valid_utf8(raw_name);
  if (!shape_holds(shape, data.size()))
    throw_error(ErrorKind::usage, "[TensorOutput] tensor \"{}\" of shape [{}] cannot hold {} values", name,
                fmt::join(shape, ", "), data.size());
  impl_->claim(name);
  impl_->archive->begin(name, shape, data.size_bytes());
  impl_->archive->write(std::as_bytes(data));
  impl_->archive->end();
}

void TensorOutput::append_rows(std::string_view raw_name, uint64_t columns, std::span<const float> rows) {
  impl_->require_open();
  const std::string name = valid_utf8(raw_name);
  if (columns == 0 || rows.size() % columns != 0)
    throw_error(ErrorKind::usage, "[TensorOutput] {} values are no rows of {} columns for tensor \"{}\"", rows.size(),
                columns, name);
  auto found = impl_->growing.find(name);
  if (found == impl_->growing.end()) {
    impl_->claim(name);
    found = impl_->growing.try_emplace(name, impl_->path, columns).first;
  }
  Impl::GrowingTensor& tensor = found->second;
  if (tensor.columns != columns)
    throw_error(ErrorKind::usage, "[TensorOutput] tensor \"{}\" has {} columns, rows of {} cannot be appended", name,
                tensor.columns, columns);
  tensor.spool.write(std::as_bytes(rows));
  tensor.rows += rows.size() / columns;
}

void TensorOutput::finish(const std::map<std::string, std::string>& metadata) {
  impl_->require_open();
  Archive& archive = *impl_->archive;
  for (auto& [name, tensor] : impl_->growing) {
    const uint64_t shape[] = {tensor.rows, tensor.columns};
    archive.begin(name, shape, tensor.rows * tensor.columns * sizeof(float));
    tensor.spool.read_back([&archive](Bytes bytes) { archive.write(bytes); });
    archive.end();
  }
  archive.finish(metadata);
  impl_->growing.clear();
  impl_->archive.reset();
}

std::string valid_utf8(std::string_view text) {
  constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const std::string_view before = text;
    const char32_t code = take_code_point(text);
    const size_t length = before.size() - text.size();
    result += code == kReplacement ? kReplacementUtf8 : before.substr(0, length);
  }
  return result;
}

}  // namespace turboesm
