// Model folders that lie, are incomplete or damaged: one sentence that names file and tensor, exit code 3, no output.
#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/cli/embedding.h"

namespace turboesm {
namespace {

using namespace test;
using nlohmann::json;

constexpr const char* kQuery = "esm.encoder.layer.0.attention.self.query.weight";  // [64, 64]
constexpr const char* kKey = "esm.encoder.layer.0.attention.self.key.weight";      // [64, 64]
constexpr const char* kBias = "esm.encoder.layer.1.output.dense.bias";             // [64]

// A copy of tiny_hd32 for a test to break.
class Model {
 public:
  Model() {
    for (const char* name : {"config.json", "vocab.txt", "model.safetensors"})
      std::filesystem::copy_file(tiny_model() / name, folder_ / name);
  }

  const TemporaryFolder& folder() const { return folder_; }
  std::string read(const char* name) const { return read_file(folder_ / name); }
  void remove(const char* name) const { REQUIRE(std::filesystem::remove(folder_ / name)); }

  void edit_config(const std::function<void(json&)>& edit) const {
    json config = json::parse(read("config.json"));
    edit(config);
    folder_.write("config.json", config.dump());
  }

  // Rewrites the weights' header and leaves the data as it is.
  void edit_header(const std::function<void(json&)>& edit) const {
    const std::string file = read("model.safetensors");
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof(length));
    json header = json::parse(file.substr(sizeof(length), length));
    edit(header);
    folder_.write("model.safetensors", safetensors_bytes(header.dump(), file.substr(sizeof(length) + length)));
  }

  // Overwrites the length of the header.
  void claim_header(uint64_t length) const {
    std::string file = read("model.safetensors");
    std::memcpy(file.data(), &length, sizeof(length));
    folder_.write("model.safetensors", file);
  }

  // Replaces one tensor in a file that is otherwise right; none: leaves it out.
  struct Tensor {
    std::string dtype;
    json shape;
    std::string data;
  };
  void replace(const std::string& changed, const std::optional<Tensor>& tensor) const {
    const SafetensorsFile file = SafetensorsFile::open(tiny_model() / "model.safetensors");
    json header;
    std::string data;
    const auto add = [&](const std::string& name, std::string_view dtype, const json& shape, std::string_view bytes) {
      header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {data.size(), data.size() + bytes.size()}}};
      data += bytes;
    };
    REQUIRE(file.find(changed));
    for (const auto& [name, entry] : file.tensors())
      if (name != changed)
        add(name, name_of(entry.dtype), entry.shape,
            {reinterpret_cast<const char*>(entry.data.data()), entry.data.size()});
    if (tensor) add(changed, tensor->dtype, tensor->shape, tensor->data);
    folder_.write("model.safetensors", safetensors_bytes(header.dump(), data));
  }

  // Embedding with it fails; the sentence has all of `parts` in it.
  void check_refused(std::initializer_list<std::string_view> parts) const {
    const TemporaryFolder input;
    check_embed_refused(input.write("in.fasta", ">a\nMKT\n"), folder_.path(), 3, parts);
  }

 private:
  TemporaryFolder folder_;
};

TEST_CASE("a copied model works, so that what the other tests break is what breaks it", "[cli]") {
  const Model model;
  model.replace(kBias, Model::Tensor{"F32", {64}, std::string(64 * 4, '\0')});
  const TemporaryFolder folder;
  const ProcessResult result =
      run({"embed", folder.write("in.fasta", ">a\nMKT\n").string(), "-o", (folder / "out.npz").string(), "--device",
           "cpu", "--quiet", "--model", model.folder().path().string()});
  INFO(result.err);
  CHECK(result.exit_code == 0);
}

TEST_CASE("bad model: no such folder", "[cli]") {
  const TemporaryFolder folder;
  check_embed_refused(folder.write("in.fasta", ">a\nMKT\n"), folder / "missing", 3,
                      {"missing", "no such model folder"});
}

TEST_CASE("bad model: a folder without config.json", "[cli]") {
  const Model model;
  model.remove("config.json");
  model.check_refused({model.folder().path().string(), "config.json"});
}

TEST_CASE("bad model: a folder without vocab.txt", "[cli]") {
  const Model model;
  model.remove("vocab.txt");
  model.check_refused({model.folder().path().string(), "vocab.txt"});
}

TEST_CASE("bad model: a folder without weights", "[cli]") {
  const Model model;
  model.remove("model.safetensors");
  model.check_refused({model.folder().path().string(), "model.safetensors"});
}

TEST_CASE("bad model: weights as a pickle only", "[cli]") {
  const Model model;
  model.remove("model.safetensors");
  model.folder().write("pytorch_model.bin", "PK");
  model.check_refused({"pytorch_model.bin", "model.safetensors"});
}

TEST_CASE("bad model: weights that are cut off", "[cli]") {
  const Model model;
  const std::string whole = model.read("model.safetensors");
  for (size_t length : {size_t(0), size_t(7), size_t(8), size_t(1000), whole.size() / 2, whole.size() - 1}) {
    INFO("cut to " << length << " of " << whole.size() << " bytes");
    model.folder().write("model.safetensors", whole.substr(0, length));
    model.check_refused({"model.safetensors"});
  }
  model.check_refused({"tensor \"", "cut off"});
}

TEST_CASE("bad model: weights with bytes that belong to nothing", "[cli]") {
  const Model model;
  model.folder().write("model.safetensors", model.read("model.safetensors") + "more");
  model.check_refused({"model.safetensors", "4 bytes"});
}

TEST_CASE("bad model: a header longer than its file", "[cli]") {
  const Model model;
  const uint64_t size = model.read("model.safetensors").size();
  model.claim_header(size);
  model.check_refused({"model.safetensors", "header", std::to_string(size)});
}

TEST_CASE("bad model: a header over 100 MB", "[cli]") {
  const Model model;
  for (uint64_t length : {uint64_t(100'000'001), uint64_t(1) << 63, UINT64_MAX}) {
    model.claim_header(length);
    model.check_refused({"model.safetensors", "header", std::to_string(length)});
  }
}

TEST_CASE("bad model: a header that is no JSON", "[cli]") {
  const Model model;
  model.folder().write("model.safetensors", safetensors_bytes("{\"a\": {\"dtype\"", ""));
  model.check_refused({"model.safetensors", "JSON"});
}

TEST_CASE("bad model: tensors that overlap", "[cli]") {
  const Model model;
  model.edit_header([](json& header) { header[kQuery]["data_offsets"] = header[kKey]["data_offsets"]; });
  model.check_refused({"model.safetensors", "self.", "inside the one before it"});
}

TEST_CASE("bad model: tensor offsets beyond the file, reversed or overflowing", "[cli]") {
  const Model model;
  model.edit_header([](json& header) { header[kQuery]["data_offsets"] = {UINT64_MAX - 16383, UINT64_MAX}; });
  model.check_refused({"model.safetensors", kQuery, std::to_string(UINT64_MAX)});
  model.edit_header([](json& header) { header[kQuery]["data_offsets"] = {16384, 0}; });
  model.check_refused({"model.safetensors", kQuery, "16384"});
}

TEST_CASE("bad model: a shape of more than 2^64 bytes", "[cli]") {
  const Model model;
  // 2^31 * 2^31 * 4 bytes wrap around to 0, the size of an empty tensor.
  model.edit_header([](json& header) {
    header[kQuery]["shape"] = {uint64_t(1) << 31, uint64_t(1) << 31};
    header[kQuery]["data_offsets"][1] = header[kQuery]["data_offsets"][0];
  });
  model.check_refused({"model.safetensors", kQuery, "2^64"});
}

TEST_CASE("bad model: a tensor of a type that weights cannot have", "[cli]") {
  const Model model;
  model.replace(kBias, Model::Tensor{"I64", {64}, std::string(64 * 8, '\0')});
  model.check_refused({"model.safetensors", kBias, "I64"});
  model.replace(kBias, Model::Tensor{"I32", {64}, std::string(64 * 4, '\0')});
  model.check_refused({"model.safetensors", kBias, "I32"});
}

TEST_CASE("bad model: a tensor of a type that does not exist", "[cli]") {
  const Model model;
  model.edit_header([](json& header) { header[kBias]["dtype"] = "F13"; });
  model.check_refused({"model.safetensors", kBias, "F13"});
}

TEST_CASE("bad model: a tensor of the wrong shape", "[cli]") {
  const Model model;
  model.replace(kQuery, Model::Tensor{"F32", {32, 128}, std::string(64 * 64 * 4, '\0')});
  model.check_refused({"model.safetensors", kQuery, "[32, 128]", "[64, 64]"});
}

TEST_CASE("bad model: a tensor is missing", "[cli]") {
  for (const char* name : {kBias, "lm_head.dense.weight", "esm.embeddings.word_embeddings.weight"}) {
    const Model model;
    model.replace(name, std::nullopt);
    model.check_refused({model.folder().path().string(), name});
  }
}

TEST_CASE("bad model: config.json contradicts the weights", "[cli]") {
  SECTION("in the hidden size") {
    const Model model;
    model.edit_config([](json& config) { config["hidden_size"] = 128; });
    model.check_refused({"model.safetensors", "config.json", "[33, 64]", "[33, 128]"});
  }
  SECTION("in the number of layers") {
    const Model model;
    model.edit_config([](json& config) { config["num_hidden_layers"] = 3; });
    model.check_refused({"tensor \"esm.contact_head", "[1, 4]", "[1, 6]"});
  }
  SECTION("in the feed-forward size") {
    const Model model;
    model.edit_config([](json& config) { config["intermediate_size"] = 512; });
    model.check_refused({"intermediate.dense", "[256, 64]", "[512, 64]"});
  }
}

TEST_CASE("bad model: config.json of what cannot be", "[cli]") {
  const Model model;
  const auto check_config = [&](const char* key, const json& value, std::initializer_list<std::string_view> parts) {
    const json before = json::parse(model.read("config.json"));
    model.edit_config([&](json& config) { config[key] = value; });
    INFO(key << " = " << value);
    model.check_refused({"config.json", key});
    model.check_refused(parts);
    model.folder().write("config.json", before.dump());
  };
  check_config("num_attention_heads", 3, {"num_attention_heads (3)"});
  check_config("num_attention_heads", 0, {"whole number"});
  check_config("hidden_size", -64, {"-64"});
  check_config("num_hidden_layers", 4'000'000'000u, {"4000000000"});
  check_config("num_hidden_layers", "two", {"\"two\""});
  check_config("model_type", "bert", {"bert", "ESM-2"});
  check_config("position_embedding_type", "absolute", {"rotary"});
}

TEST_CASE("bad model: config.json that is no JSON", "[cli]") {
  const Model model;
  for (const char* text : {"", "{\"hidden_size\": 64,", "[1, 2]"}) {
    model.folder().write("config.json", text);
    model.check_refused({"config.json", "JSON"});
  }
}

TEST_CASE("bad model: another vocabulary", "[cli]") {
  const Model model;
  std::string vocab = model.read("vocab.txt");
  vocab[vocab.find("\nL\n") + 1] = 'A';
  model.folder().write("vocab.txt", vocab);
  model.check_refused({"vocab.txt", "line 5", "\"A\"", "\"L\""});
  model.folder().write("vocab.txt", "<cls>\n<pad>\n");
  model.check_refused({"vocab.txt", "has 2 tokens"});
}

TEST_CASE("bad model: contacts of a model without a contact head", "[cli]") {
  const Model model;
  model.replace("esm.contact_head.regression.weight", std::nullopt);
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", ">a\nMKT\n");
  check_refusal(run({"embed", input.string(), "-o", (folder / "out.npz").string(), "--device", "cpu", "--quiet",
                     "--model", model.folder().path().string(), "--include", "contacts"}),
                2, {"contact head"});
  CHECK(folder.list() == std::vector<std::string>{"in.fasta"});
}

}  // namespace
}  // namespace turboesm
