#include "model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace turboesm {

static_assert(std::endian::native == std::endian::little, "tensor data is used as it lies in the file");

namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDimensions = 64;  // as many as NumPy and PyTorch know

struct DTypeRow {
  std::string_view name;
  FileDType dtype;
  uint64_t size;
};

// In the order of FileDType.
constexpr DTypeRow kDTypes[] = {
    {"BOOL", FileDType::boolean, 1},    {"U8", FileDType::u8, 1},           {"I8", FileDType::i8, 1},
    {"F8_E4M3", FileDType::f8_e4m3, 1}, {"F8_E5M2", FileDType::f8_e5m2, 1}, {"F8_E8M0", FileDType::f8_e8m0, 1},
    {"U16", FileDType::u16, 2},         {"I16", FileDType::i16, 2},         {"F16", FileDType::f16, 2},
    {"BF16", FileDType::bf16, 2},       {"U32", FileDType::u32, 4},         {"I32", FileDType::i32, 4},
    {"F32", FileDType::f32, 4},         {"U64", FileDType::u64, 8},         {"I64", FileDType::i64, 8},
    {"F64", FileDType::f64, 8}};

// A tensor's header entry while it is read; complete when all three fields are there.
struct Declaration {
  std::optional<FileDType> dtype;
  std::optional<std::vector<uint64_t>> shape;
  std::optional<std::vector<uint64_t>> data_offsets;
};

uint64_t checked_bytes(const Declaration& tensor, const std::string& name, const std::string& file_name) {
  uint64_t bytes = size_of(*tensor.dtype);
  bool overflow = false;
  for (uint64_t dimension : *tensor.shape) {
    overflow |= dimension != 0 && bytes > UINT64_MAX / dimension;
    bytes *= dimension;
  }
  if (overflow) throw_error(ErrorKind::input, "{}: tensor \"{}\" has a shape of more than 2^64 bytes", file_name, name);
  return bytes;
}

TensorEntry checked_entry(Declaration&& tensor, const std::string& name, std::span<const std::byte> data,
                          const std::string& file_name) {
  const auto missing = [&](std::string_view field) {
    throw_error(ErrorKind::input, "{}: tensor \"{}\" has no \"{}\" in the header", file_name, name, field);
  };
  if (!tensor.dtype) missing("dtype");
  if (!tensor.shape) missing("shape");
  if (!tensor.data_offsets) missing("data_offsets");
  if (tensor.data_offsets->size() != 2)
    throw_error(ErrorKind::input, "{}: tensor \"{}\" has {} data_offsets, not 2", file_name, name,
                tensor.data_offsets->size());

  const uint64_t begin = (*tensor.data_offsets)[0];
  const uint64_t end = (*tensor.data_offsets)[1];
  if (begin > end)
    throw_error(ErrorKind::input, "{}: tensor \"{}\" begins at {} and ends before, at {}", file_name, name, begin, end);
  if (end > data.size())
    throw_error(ErrorKind::input,
                "{}: tensor \"{}\" ends at byte {} of the data, but there are only {} (is the file "
                "cut off?)",
                file_name, name, end, data.size());
  const uint64_t wanted = checked_bytes(tensor, name, file_name);
  if (wanted != end - begin)
    throw_error(ErrorKind::input, "{}: tensor \"{}\" has {} bytes of data, but its dtype and shape need {}", file_name,
                name, end - begin, wanted);
  return {*tensor.dtype, std::move(*tensor.shape), data.subspan(begin, end - begin)};
}

// Takes the header apart event by event. Anything but the two levels of objects that the format has is refused at once,
// so that no hostile nesting is ever held in memory. Every event returns true (go on) or throws.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderHandler(const std::string& file_name, std::span<const std::byte> data, SafetensorsContents& contents)
      : file_name_(file_name), data_(data), contents_(contents) {}

  bool start_object(size_t) override {
    if (place_ == Place::start) {
      place_ = Place::header;
    } else if (place_ == Place::header) {
      place_ = name_ == "__metadata__" ? Place::metadata : Place::tensor;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& key) override {
    if (place_ == Place::header) {
      if (contents_.tensors.contains(key) || (key == "__metadata__" && metadata_seen_))
        throw_error(ErrorKind::input, "{}: the header names \"{}\" twice", file_name_, key);
      metadata_seen_ |= key == "__metadata__";
      name_ = key;
    } else {
      field_ = key;
      check_field();
    }
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::metadata) {
      contents_.metadata.emplace(field_, value);
    } else if (place_ == Place::tensor && field_ == "dtype") {
      const auto row = std::ranges::find(kDTypes, std::string_view(value), &DTypeRow::name);
      if (row == std::end(kDTypes))
        throw_error(ErrorKind::input, "{}: tensor \"{}\" has the unknown dtype \"{}\"", file_name_, name_,
                    value.substr(0, 40));
      tensor_.dtype = row->dtype;
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::tensor || field_ == "dtype") unexpected("an array");
    place_ = Place::numbers;
    numbers_ = field_ == "shape" ? &tensor_.shape.emplace() : &tensor_.data_offsets.emplace();
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (place_ != Place::numbers) unexpected("a number");
    if (numbers_->size() == kMaxDimensions)
      throw_error(ErrorKind::input, "{}: tensor \"{}\" has more than {} numbers in \"{}\"", file_name_, name_,
                  kMaxDimensions, field_);
    numbers_->push_back(value);
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor)
      contents_.tensors.emplace(name_, checked_entry(std::exchange(tensor_, {}), name_, data_, file_name_));
    place_ = place_ == Place::header ? Place::start : Place::header;
    return true;
  }

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("true or false"); }
  bool number_integer(int64_t) override { unexpected("a negative number"); }
  bool number_float(double, const std::string&) override { unexpected("a number that is no 64-bit whole number"); }
  bool binary(nlohmann::json::binary_t&) override { unexpected("binary data"); }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw_error(ErrorKind::input, "{}: the header is not valid JSON near byte {}", file_name_, position);
  }

 private:
  enum class Place { start, header, metadata, tensor, numbers };

  void check_field() const {
    const auto twice = [&] {
      throw_error(ErrorKind::input, "{}: \"{}\" has \"{}\" twice in the header", file_name_, name_, field_);
    };
    if (place_ == Place::metadata) {
      if (contents_.metadata.contains(field_)) twice();
    } else if (field_ == "dtype") {
      if (tensor_.dtype) twice();
    } else if (field_ == "shape") {
      if (tensor_.shape) twice();
    } else if (field_ == "data_offsets") {
      if (tensor_.data_offsets) twice();
    } else {
      throw_error(ErrorKind::input, "{}: tensor \"{}\" has the unknown header field \"{}\"", file_name_, name_, field_);
    }
  }

  [[noreturn]] void unexpected(std::string_view what) const {
    switch (place_) {
      case Place::start: throw_error(ErrorKind::input, "{}: the header is {}, not an object", file_name_, what);
      case Place::header:
        throw_error(ErrorKind::input, "{}: the header has {} for \"{}\", not an object", file_name_, what, name_);
      case Place::metadata:
        throw_error(ErrorKind::input, "{}: __metadata__ has {} for \"{}\", not a string", file_name_, what, field_);
      default: throw_error(ErrorKind::input, "{}: tensor \"{}\" has {} in \"{}\"", file_name_, name_, what, field_);
    }
  }

  const std::string& file_name_;
  std::span<const std::byte> data_;
  SafetensorsContents& contents_;
  Place place_ = Place::start;
  bool metadata_seen_ = false;
  std::string name_;   // key of the header
  std::string field_;  // key of the tensor or of the metadata
  Declaration tensor_;
  std::vector<uint64_t>* numbers_ = nullptr;
};

// The file's two parts: JSON text and data.
std::pair<std::string_view, std::span<const std::byte>> split(std::span<const std::byte> file,
                                                              const std::string& file_name) {
  uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes))
    throw_error(ErrorKind::input, "{}: {} bytes are too few for a safetensors file", file_name, file.size());
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const auto rest = file.subspan(sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes)
    throw_error(ErrorKind::input, "{}: a header of {} bytes is more than the {} that safetensors allows", file_name,
                header_bytes, kMaxHeaderBytes);
  if (header_bytes > rest.size())
    throw_error(ErrorKind::input, "{}: the header is said to take {} bytes, but only {} follow", file_name,
                header_bytes, rest.size());
  const std::string_view header(reinterpret_cast<const char*>(rest.data()), header_bytes);
  if (!header.starts_with('{')) throw_error(ErrorKind::input, "{}: the header does not start with '{{'", file_name);
  // The JSON parser takes a NUL for the end of its input and would not see what follows.
  if (header.find('\0') != std::string_view::npos)
    throw_error(ErrorKind::input, "{}: the header contains a NUL byte", file_name);
  return {header, rest.subspan(header_bytes)};
}

void check_cover(const SafetensorsContents& contents, std::span<const std::byte> data, const std::string& file_name) {
  struct Range {
    uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Range> ranges;
  ranges.reserve(contents.tensors.size());
  for (const auto& [name, tensor] : contents.tensors) {
    const uint64_t begin = uint64_t(tensor.data.data() - data.data());
    ranges.push_back({begin, begin + tensor.data.size(), &name});
  }
  std::ranges::sort(
      ranges, [](const Range& a, const Range& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });

  uint64_t covered = 0;
  for (const Range& range : ranges) {
    if (range.begin < covered)
      throw_error(ErrorKind::input,
                  "{}: tensor \"{}\" begins at byte {} of the data, inside the one before it, which "
                  "ends at {}",
                  file_name, *range.name, range.begin, covered);
    if (range.begin > covered)
      throw_error(ErrorKind::input, "{}: no tensor covers bytes {} to {} of the data, before tensor \"{}\"", file_name,
                  covered, range.begin, *range.name);
    covered = range.end;
  }
  if (covered != data.size())
    throw_error(ErrorKind::input, "{}: {} bytes of data belong to no tensor, after byte {}", file_name,
                data.size() - covered, covered);
}

}  // namespace

uint64_t size_of(FileDType dtype) { return kDTypes[size_t(dtype)].size; }

std::string_view name_of(FileDType dtype) { return kDTypes[size_t(dtype)].name; }

std::optional<DType> runtime_dtype(FileDType dtype) {
  switch (dtype) {
    case FileDType::f32: return DType::f32;
    case FileDType::f16: return DType::f16;
    case FileDType::bf16: return DType::bf16;
    case FileDType::i32: return DType::i32;
    default: return std::nullopt;
  }
}

SafetensorsContents parse_safetensors(std::span<const std::byte> file, const std::string& file_name) {
  const auto [header, data] = split(file, file_name);
  SafetensorsContents contents;
  HeaderHandler handler(file_name, data, contents);
  nlohmann::json::sax_parse(header, &handler);
  check_cover(contents, data, file_name);
  return contents;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile result;
  result.path_ = path;
  result.file_ = MappedFile::open(path);
  result.contents_ = parse_safetensors(result.file_.bytes(), path.string());
  return result;
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = contents_.tensors.find(name);
  return found == contents_.tensors.end() ? nullptr : &found->second;
}

std::vector<std::string_view> SafetensorsFile::names() const {
  std::vector<std::string_view> names;
  names.reserve(contents_.tensors.size());
  for (const auto& [name, tensor] : contents_.tensors) names.push_back(name);
  return names;
}

}  // namespace turboesm
