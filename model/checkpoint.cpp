#include "model/checkpoint.h"

#include <array>
#include <bit>
#include <cstring>
#include <fstream>
#include <optional>
#include <set>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kHowToGet = "hf download facebook/esm2_t33_650M_UR50D --local-dir DIR";

constexpr std::string_view kConfigFile = "config.json";
constexpr std::string_view kVocabFile = "vocab.txt";
constexpr std::string_view kWeightsFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr std::string_view kPickledFile = "pytorch_model.bin";

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// The published spelling of a tensor's name: transformers 5 calls a LayerNorm's weight gamma and its bias beta.
std::string published_name(const std::string& name) {
  constexpr std::string_view kGamma = "LayerNorm.gamma";
  constexpr std::string_view kBeta = "LayerNorm.beta";
  if (name.ends_with(kGamma)) return name.substr(0, name.size() - std::strlen("gamma")) + "weight";
  if (name.ends_with(kBeta)) return name.substr(0, name.size() - std::strlen("beta")) + "bias";
  return name;
}

nlohmann::json read_weight_map(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw_error(ErrorKind::input, "{}: cannot open", path.string());
  nlohmann::json index = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (index.is_discarded()) throw_error(ErrorKind::input, "{}: not valid JSON", path.string());
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    throw_error(ErrorKind::input, "{}: has no \"weight_map\" object", path.string());
  return std::move(index["weight_map"]);
}

// A shard must lie in the model's folder: a name that leads elsewhere would read files that nobody asked for.
void check_shard_name(const std::string& name, const fs::path& index) {
  const bool plain = !name.empty() && name != "." && name != ".." && name.find_first_of("/\\:") == std::string::npos &&
                     name.find('\0') == std::string::npos;
  if (!plain) throw_error(ErrorKind::input, "{}: the shard name \"{}\" is not a plain file name", index.string(), name);
}

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

}  // namespace

std::filesystem::path default_model_directory() {
  return executable_path().parent_path().parent_path() / "share" / "turboesm" / "models" / "swissprot_t8_14M";
}

Checkpoint Checkpoint::open(const fs::path& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error))
    throw_error(ErrorKind::input, "{}: there is no such model folder; get one with: {}", directory.string(), kHowToGet);
  for (std::string_view name : {kConfigFile, kVocabFile})
    if (!is_there(directory / name))
      throw_error(ErrorKind::input, "{}: has no {}, so it is not a model folder; get one with: {}", directory.string(),
                  name, kHowToGet);

  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  checkpoint.config_ = load_config(directory / kConfigFile);
  checkpoint.tokenizer_ = Tokenizer::load(directory / kVocabFile);
  if (is_there(directory / kWeightsFile)) {
    checkpoint.add_file(directory / kWeightsFile);
  } else if (is_there(directory / kIndexFile)) {
    checkpoint.open_shards(directory / kIndexFile);
  } else if (is_there(directory / kPickledFile)) {
    throw_error(ErrorKind::input,
                "{}: has its weights as {} only, which is not read because it can run code; get them "
                "as {} with: {}",
                directory.string(), kPickledFile, kWeightsFile, kHowToGet);
  } else {
    throw_error(ErrorKind::input, "{}: has neither {} nor {}; get a model with: {}", directory.string(), kWeightsFile,
                kIndexFile, kHowToGet);
  }
  return checkpoint;
}

void Checkpoint::add_file(const fs::path& path) {
  files_.push_back(SafetensorsFile::open(path));
  for (const auto& [name, entry] : files_.back().tensors()) {
    const bool added = tensors_.emplace(published_name(name), Location{&entry, files_.size() - 1}).second;
    if (!added)
      throw_error(ErrorKind::input, "{}: tensor \"{}\" is already there under this or its other name", path.string(),
                  name);
  }
}

void Checkpoint::open_shards(const fs::path& index) {
  const nlohmann::json weight_map = read_weight_map(index);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : weight_map.items()) {
    if (!shard.is_string())
      throw_error(ErrorKind::input, "{}: tensor \"{}\" is not mapped to a file name", index.string(), tensor);
    check_shard_name(shard.get<std::string>(), index);
    shards.insert(shard.get<std::string>());
  }
  // tensors_ points into the files' maps, which moving a SafetensorsFile leaves in place.
  for (const std::string& shard : shards) {
    if (!is_there(directory_ / shard))
      throw_error(ErrorKind::input, "{}: the shard {} is missing", index.string(), (directory_ / shard).string());
    add_file(directory_ / shard);
  }
  for (const auto& [tensor, shard] : weight_map.items()) {
    const auto found = tensors_.find(published_name(tensor));
    if (found == tensors_.end() || files_[found->second.file].path().filename() != shard.get<std::string>())
      throw_error(ErrorKind::input, "{}: tensor \"{}\" is not in {} as the index says", index.string(), tensor,
                  shard.get<std::string>());
  }
}

const TensorEntry* Checkpoint::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second.entry;
}

const TensorEntry& Checkpoint::require(std::string_view name, std::span<const uint64_t> shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end())
    throw_error(ErrorKind::input, "{}: the weights have no tensor \"{}\"", directory_.string(), name);
  const TensorEntry& entry = *found->second.entry;
  const std::string file = files_[found->second.file].path().string();
  if (!std::equal(shape.begin(), shape.end(), entry.shape.begin(), entry.shape.end()))
    throw_error(ErrorKind::input, "{}: tensor \"{}\" is [{}], but by {} it must be [{}]", file, name,
                fmt::join(entry.shape, ", "), kConfigFile, fmt::join(shape, ", "));
  const std::optional<DType> dtype = runtime_dtype(entry.dtype);
  if (!dtype || *dtype == DType::i32)
    throw_error(ErrorKind::input, "{}: tensor \"{}\" is {}, but weights must be F32, F16 or BF16", file, name,
                name_of(entry.dtype));
  return entry;
}

uint64_t Checkpoint::data_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, location] : tensors_) bytes += location.entry->data.size();
  return bytes;
}

std::string Checkpoint::hash() const {
  uint64_t hash = 0;
  const auto mix = [&hash](std::span<const std::byte> bytes) { hash = xxh64(bytes, hash); };
  const std::array<uint32_t, 6> sizes = {config_.layers,       config_.hidden, config_.heads,
                                         config_.intermediate, config_.vocab,  config_.token_dropout ? 1u : 0u};
  mix(std::as_bytes(std::span(sizes)));
  mix(bytes_of(config_.layer_norm_eps));
  for (const auto& [name, location] : tensors_) {
    const TensorEntry& entry = *location.entry;
    mix(std::as_bytes(std::span(name)));
    mix(std::as_bytes(std::span(name_of(entry.dtype))));
    mix(std::as_bytes(std::span(entry.shape)));
    mix(entry.data);
  }
  return fmt::format("{:016x}", hash);
}

namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Fu;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9u;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63u;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5u;

template <class T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

uint64_t round64(uint64_t lane, uint64_t input) { return std::rotl(lane + input * kPrime2, 31) * kPrime1; }

}  // namespace

uint64_t xxh64(std::span<const std::byte> data, uint64_t seed) {
  const std::byte* at = data.data();
  size_t left = data.size();
  uint64_t hash = seed + kPrime5;
  if (left >= 32) {
    // Four lanes that do not wait for each other, so that their multiplications overlap.
    uint64_t a = seed + kPrime1 + kPrime2;
    uint64_t b = seed + kPrime2;
    uint64_t c = seed;
    uint64_t d = seed - kPrime1;
    for (; left >= 32; at += 32, left -= 32) {
      a = round64(a, read<uint64_t>(at));
      b = round64(b, read<uint64_t>(at + 8));
      c = round64(c, read<uint64_t>(at + 16));
      d = round64(d, read<uint64_t>(at + 24));
    }
    hash = std::rotl(a, 1) + std::rotl(b, 7) + std::rotl(c, 12) + std::rotl(d, 18);
    for (uint64_t lane : {a, b, c, d}) hash = (hash ^ round64(0, lane)) * kPrime1 + kPrime4;
  }
  hash += data.size();
  for (; left >= 8; at += 8, left -= 8) hash = std::rotl(hash ^ round64(0, read<uint64_t>(at)), 27) * kPrime1 + kPrime4;
  if (left >= 4) {
    hash = std::rotl(hash ^ (read<uint32_t>(at) * kPrime1), 23) * kPrime2 + kPrime3;
    at += 4;
    left -= 4;
  }
  for (; left > 0; ++at, --left) hash = std::rotl(hash ^ (uint64_t(*at) * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

}  // namespace turboesm
