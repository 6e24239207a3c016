#include "tests/desktop/models.h"

#include <fstream>

#include <nlohmann/json.hpp>

#include "tests/options.h"
#include "tests/unit/files.h"

namespace turboesm::test {

void write_huge_model(const std::filesystem::path& folder) {
  using Json = nlohmann::json;
  constexpr uint64_t kHidden = 65536, kLayers = 2;
  const std::filesystem::path tiny = test_options().source_dir / "tests/fixtures/golden/tiny_hd64";
  std::filesystem::create_directory(folder);
  std::filesystem::copy(tiny / "vocab.txt", folder / "vocab.txt");
  Json config = Json::parse(read_file(tiny / "config.json"));
  const uint64_t hidden = config["hidden_size"], heads = config["num_attention_heads"],
                 layers = config["num_hidden_layers"], intermediate = config["intermediate_size"];
  config["hidden_size"] = kHidden;
  config["num_attention_heads"] = kHidden / (hidden / heads);
  config["num_hidden_layers"] = kLayers;
  config["intermediate_size"] = 4 * kHidden;
  std::ofstream(folder / "config.json") << config;

  // The tiny model's tensors in the new sizes, those of its first layer for every layer.
  const std::string file = read_file(tiny / "model.safetensors");
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | uint8_t(file[size_t(i)]);
  Json header;
  uint64_t offset = 0;
  const Json tensors = Json::parse(file.substr(8, length));
  const auto add = [&](const std::string& name, const Json& like) {
    uint64_t bytes = 4;
    Json shape = Json::array();
    for (const uint64_t size : like["shape"]) {
      const uint64_t larger = size == hidden           ? kHidden
                              : size == intermediate   ? 4 * kHidden
                              : size == layers * heads ? kLayers * config["num_attention_heads"].get<uint64_t>()
                                                       : size;
      shape.push_back(larger);
      bytes *= larger;
    }
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  };
  for (const auto& [name, tensor] : tensors.items()) {
    const std::string first = ".layer.0.";
    const size_t at = name.find(first);
    if (name == "__metadata__" || (at == name.npos && name.find(".layer.") != name.npos)) continue;
    if (at == name.npos) {
      add(name, tensor);
      continue;
    }
    for (uint64_t l = 0; l < kLayers; ++l) {
      std::string own = name;
      add(own.replace(at, first.size(), ".layer." + std::to_string(l) + "."), tensor);
    }
  }
  const std::string text = header.dump();
  std::string start;
  for (int i = 0; i < 8; ++i) start += char(text.size() >> 8 * i & 255);
  std::ofstream(folder / "model.safetensors", std::ios::binary) << start << text;
  std::filesystem::resize_file(folder / "model.safetensors", 8 + text.size() + offset);
}

}  // namespace turboesm::test
