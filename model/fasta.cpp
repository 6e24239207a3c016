#include "model/fasta.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm {

namespace {

constexpr size_t kChunkBytes = size_t(1) << 17;

// A zlib decoder for one gzip member after the other.
class GzipDecoder {
 public:
  GzipDecoder() {
    constexpr int kGzipOnly = 16;
    if (inflateInit2(&stream_, MAX_WBITS + kGzipOnly) != Z_OK)
      throw_error(ErrorKind::out_of_memory, "no memory for reading gzip");
  }
  GzipDecoder(const GzipDecoder&) = delete;
  GzipDecoder& operator=(const GzipDecoder&) = delete;
  ~GzipDecoder() { inflateEnd(&stream_); }

  enum class Status { more, member_end, damaged };

  // Decodes from the front of `input`, which is advanced, to the front of `output`; returns the bytes produced.
  std::pair<Status, size_t> decode(std::span<const uint8_t>& input, std::span<char> output) {
    stream_.next_in = const_cast<Bytef*>(input.data());
    stream_.avail_in = uInt(input.size());
    stream_.next_out = reinterpret_cast<Bytef*>(output.data());
    stream_.avail_out = uInt(output.size());
    const int code = inflate(&stream_, Z_NO_FLUSH);
    input = input.last(stream_.avail_in);
    const size_t produced = output.size() - stream_.avail_out;
    if (code == Z_STREAM_END) {
      inflateReset(&stream_);
      return {Status::member_end, produced};
    }
    const bool fine = code == Z_OK || code == Z_BUF_ERROR;
    return {fine ? Status::more : Status::damaged, produced};
  }

 private:
  z_stream stream_{};
};

struct CloseFile {
  void operator()(std::FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};

// The bytes of a file or of standard input, gzip taken off.
class ByteSource {
 public:
  explicit ByteSource(const std::string& path_or_dash)
      : name_(path_or_dash == "-" ? "standard input" : path_or_dash), raw_(kChunkBytes) {
    open(path_or_dash);
    fill();
    if (input_.size() >= 2 && input_[0] == 0x1f && input_[1] == 0x8b) {
      decoder_ = std::make_unique<GzipDecoder>();
      decoded_.resize(4 * kChunkBytes);
    }
  }

  const std::string& name() const { return name_; }
  uint64_t bytes_read() const { return bytes_read_; }
  uint64_t bytes_total() const { return bytes_total_; }

  // The next piece, empty at the end of the file; valid until the next call.
  std::string_view next_chunk() {
    if (decoder_) return next_decoded();
    if (input_.empty()) fill();
    const std::string_view chunk(reinterpret_cast<const char*>(input_.data()), input_.size());
    input_ = {};
    return chunk;
  }

 private:
  void open(const std::string& path_or_dash) {
    if (path_or_dash == "-") {
      file_.reset(binary_stdin());
      return;
    }
    std::error_code error;
    if (std::filesystem::is_directory(path_or_dash, error))
      throw_error(ErrorKind::input, "{}: is a directory, not a FASTA file", name_);
    file_.reset(open_file(path_or_dash, "rb"));
    if (!file_) throw_error(ErrorKind::input, "{}: cannot open: {}", name_, std::strerror(errno));
    const auto size = std::filesystem::file_size(path_or_dash, error);
    if (!error) bytes_total_ = size;
  }

  void fill() {
    const size_t count = std::fread(raw_.data(), 1, raw_.size(), file_.get());
    if (interrupted()) throw_error(ErrorKind::cancelled, "interrupted: nothing was written");  // while it waited
    if (std::ferror(file_.get())) throw_error(ErrorKind::input, "{}: cannot read: {}", name_, std::strerror(errno));
    input_ = std::span(raw_).first(count);
    bytes_read_ += count;
  }

  std::string_view next_decoded() {
    for (;;) {
      if (input_.empty()) fill();
      if (!in_member_) skip_padding();
      if (input_.empty()) {
        if (in_member_) throw_error(ErrorKind::input, "{}: the gzip data is cut off", name_);
        return {};
      }
      const auto [status, produced] = decoder_->decode(input_, decoded_);
      if (status == GzipDecoder::Status::damaged) throw_error(ErrorKind::input, "{}: the gzip data is damaged", name_);
      in_member_ = status == GzipDecoder::Status::more;
      if (produced > 0) return {decoded_.data(), produced};
    }
  }

  // Between and after members, gzip files may be padded with zeros, as tapes and block devices do.
  void skip_padding() {
    while (!input_.empty()) {
      const auto data = std::ranges::find_if(input_, [](uint8_t byte) { return byte != 0; });
      input_ = {data, input_.end()};
      if (!input_.empty()) return;
      fill();
    }
  }

  std::string name_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::vector<uint8_t> raw_;
  std::span<const uint8_t> input_;  // what is left of raw_
  std::unique_ptr<GzipDecoder> decoder_;
  std::vector<char> decoded_;
  bool in_member_ = false;
  uint64_t bytes_read_ = 0;
  uint64_t bytes_total_ = 0;
};

enum class ByteKind : uint8_t { text, space, line_end, binary };

constexpr std::array<ByteKind, 256> make_byte_kinds() {
  std::array<ByteKind, 256> kinds{};
  for (size_t byte = 0; byte < 32; ++byte) kinds[byte] = ByteKind::binary;
  kinds[127] = ByteKind::binary;
  for (char c : {' ', '\t', '\v', '\f'}) kinds[size_t(c)] = ByteKind::space;
  for (char c : {'\r', '\n'}) kinds[size_t(c)] = ByteKind::line_end;
  return kinds;
}

constexpr std::array<ByteKind, 256> kByteKinds = make_byte_kinds();

ByteKind kind_of(char c) { return kByteKinds[uint8_t(c)]; }
bool is_space(char c) { return kind_of(c) == ByteKind::space; }

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace

struct FastaReader::Impl {
  explicit Impl(const std::string& path_or_dash) : source(path_or_dash) { find_first_header(); }

  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw_error(ErrorKind::input, "{}: line {}: {}", source.name(), line_number,
                fmt::format(format, std::forward<Args>(args)...));
  }

  // Reads one line, without its end, into `line`; false at the end of the file.
  bool read_line();
  void find_first_header();
  void fill_header(FastaRecord& record) const;
  void append_sequence(std::string& sequence) const;

  ByteSource source;
  std::string_view chunk;  // what is left of the source's last piece
  std::string line;
  uint64_t line_number = 0;
  bool after_cr = false;    // the last line ended in CR: a LF that follows belongs to it
  bool has_header = false;  // `line` is the header of the next record
  uint64_t next_index = 0;
};

bool FastaReader::Impl::read_line() {
  line.clear();
  bool any = false;
  for (;;) {
    if (chunk.empty()) chunk = source.next_chunk();
    if (chunk.empty()) return any;
    if (std::exchange(after_cr, false) && chunk.front() == '\n') {
      chunk.remove_prefix(1);
      continue;
    }
    if (!std::exchange(any, true)) ++line_number;
    const auto stop = std::ranges::find_if(chunk, [](char c) { return kind_of(c) >= ByteKind::line_end; });
    const size_t length = size_t(stop - chunk.begin());
    if (line.size() + length > kMaxRecordBytes) fail("longer than {} characters", kMaxRecordBytes);
    line.append(chunk, 0, length);
    if (length == chunk.size()) {
      chunk = {};
      continue;
    }
    if (kind_of(*stop) == ByteKind::binary)
      fail("byte 0x{:02X} is not text: this is not a FASTA file, plain or gzip", unsigned(uint8_t(*stop)));
    after_cr = *stop == '\r';
    chunk.remove_prefix(length + 1);
    return true;
  }
}

void FastaReader::Impl::find_first_header() {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  while (read_line()) {
    if (line_number == 1 && line.starts_with(kByteOrderMark)) line.erase(0, kByteOrderMark.size());
    has_header = line.starts_with('>');
    if (has_header) return;
    if (!line.starts_with(';') && !trimmed(line).empty()) fail("sequence before the first '>' header");
  }
  if (line_number == 0) throw_error(ErrorKind::input, "{}: is empty", source.name());
  throw_error(ErrorKind::input, "{}: has no FASTA record, only blank lines and comments", source.name());
}

void FastaReader::Impl::fill_header(FastaRecord& record) const {
  const std::string_view text = trimmed(std::string_view(line).substr(1));
  const size_t id_end = size_t(std::ranges::find_if(text, is_space) - text.begin());
  record.id = text.substr(0, id_end);
  record.description = trimmed(text.substr(id_end));
  record.sequence.clear();
  record.index = next_index;
  record.line = line_number;
  if (record.id.empty()) record.id = fmt::format("seq{}", next_index + 1);
}

void FastaReader::Impl::append_sequence(std::string& sequence) const {
  if (sequence.size() + line.size() > kMaxRecordBytes)
    fail("the record's sequence is longer than {} characters", kMaxRecordBytes);
  std::ranges::copy_if(line, std::back_inserter(sequence), [](char c) { return !is_space(c); });
}

FastaReader::FastaReader(const std::string& path_or_dash) : impl_(std::make_unique<Impl>(path_or_dash)) {}
FastaReader::FastaReader(FastaReader&&) noexcept = default;
FastaReader& FastaReader::operator=(FastaReader&&) noexcept = default;
FastaReader::~FastaReader() = default;

bool FastaReader::next(FastaRecord& record) {
  Impl& in = *impl_;
  if (!std::exchange(in.has_header, false)) return false;
  in.fill_header(record);
  ++in.next_index;
  while (in.read_line()) {
    in.has_header = in.line.starts_with('>');
    if (in.has_header) break;
    if (!in.line.starts_with(';')) in.append_sequence(record.sequence);
  }
  return true;
}

uint64_t FastaReader::bytes_read() const { return impl_->source.bytes_read(); }
uint64_t FastaReader::bytes_total() const { return impl_->source.bytes_total(); }

}  // namespace turboesm
