#include "model/checkpoint.h"

#include <string>

#include <catch2/catch_test_macros.hpp>

#include "tests/unit/files.h"

namespace turboesm {
namespace {

using test::check_error;
using test::safetensors_bytes;

constexpr std::string_view kConfig =
    "{\"model_type\":\"esm\",\"vocab_size\":33,\"hidden_size\":16,\"num_hidden_layers\":1,\"num_attention_heads\":2,"
    "\"intermediate_size\":32,\"position_embedding_type\":\"rotary\",\"layer_norm_eps\":1e-5,\"token_dropout\":true}";

struct FakeTensor {
  std::string name;
  std::string dtype;
  std::string shape;  // "2,2"
  std::string data;
};

std::string weights(const std::vector<FakeTensor>& tensors) {
  std::string header = "{";
  std::string data;
  for (const FakeTensor& tensor : tensors) {
    header += fmt::format("{}\"{}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                          header.size() > 1 ? "," : "", tensor.name, tensor.dtype, tensor.shape, data.size(),
                          data.size() + tensor.data.size());
    data += tensor.data;
  }
  return safetensors_bytes(header + "}", data);
}

const FakeTensor kDense = {"esm.dense.weight", "F16", "2,2", "abcdefgh"};
const FakeTensor kNormWeight = {"esm.LayerNorm.weight", "F32", "1", "wwww"};
const FakeTensor kNormBias = {"esm.LayerNorm.bias", "F32", "1", "bbbb"};

// A folder with configuration and vocabulary but no weights.
class ModelFolder : public test::TemporaryFolder {
 public:
  ModelFolder() {
    write("config.json", kConfig);
    std::string vocabulary;
    for (int32_t id = 0; id < 33; ++id) vocabulary.append(Tokenizer::esm2().token(id)).append("\n");
    write("vocab.txt", vocabulary);
  }

  explicit ModelFolder(const std::vector<FakeTensor>& tensors) : ModelFolder() {
    write("model.safetensors", weights(tensors));
  }

  Checkpoint open() const { return Checkpoint::open(path()); }
};

TEST_CASE("a checkpoint gives configuration, tokenizer and tensors", "[unit][checkpoint]") {
  const ModelFolder folder({kDense, kNormWeight, kNormBias});
  const Checkpoint checkpoint = folder.open();
  CHECK(checkpoint.config().hidden == 16);
  CHECK(checkpoint.tokenizer().letter(4) == 'L');
  const uint64_t shape[] = {2, 2};
  const TensorEntry& dense = checkpoint.require("esm.dense.weight", shape);
  CHECK(dense.dtype == FileDType::f16);
  CHECK(dense.data[7] == std::byte('h'));
  CHECK(checkpoint.find("esm.dense.weight") == &dense);
  CHECK_FALSE(checkpoint.find("esm.dense.bias"));
}

TEST_CASE("both spellings of LayerNorm tensors are found and hash alike", "[unit][checkpoint]") {
  FakeTensor gamma = kNormWeight;
  FakeTensor beta = kNormBias;
  gamma.name = "esm.LayerNorm.gamma";
  beta.name = "esm.LayerNorm.beta";
  const ModelFolder published({kDense, kNormWeight, kNormBias});
  const ModelFolder rewritten({beta, gamma, kDense});
  const uint64_t shape[] = {1};
  const Checkpoint checkpoint = rewritten.open();
  CHECK(checkpoint.require("esm.LayerNorm.weight", shape).data[0] == std::byte('w'));
  CHECK(checkpoint.require("esm.LayerNorm.bias", shape).data[0] == std::byte('b'));
  CHECK(checkpoint.hash() == published.open().hash());

  const ModelFolder both({kNormWeight, gamma});
  check_error(ErrorKind::input, {"model.safetensors", "esm.LayerNorm.", "already there"}, [&] { both.open(); });
}

TEST_CASE("a required tensor must be there in its shape as a float", "[unit][checkpoint]") {
  const ModelFolder folder({kDense, {"ids", "I64", "1", "12345678"}});
  const Checkpoint checkpoint = folder.open();
  const uint64_t square[] = {2, 2};
  const uint64_t other[] = {2, 3};
  const uint64_t flat[] = {4};
  const uint64_t one[] = {1};
  check_error(ErrorKind::input, {folder.path().string(), "no tensor \"esm.none\""},
              [&] { checkpoint.require("esm.none", square); });
  check_error(ErrorKind::input, {"model.safetensors", "esm.dense.weight", "[2, 2]", "config.json", "[2, 3]"},
              [&] { checkpoint.require("esm.dense.weight", other); });
  check_error(ErrorKind::input, {"[2, 2]", "[4]"}, [&] { checkpoint.require("esm.dense.weight", flat); });
  check_error(ErrorKind::input, {"\"ids\"", "I64", "F16"}, [&] { checkpoint.require("ids", one); });
}

TEST_CASE("the hash changes with every part of the model", "[unit][checkpoint]") {
  const std::string original = ModelFolder({kDense, kNormBias}).open().hash();
  CHECK(original.size() == 16);
  CHECK(ModelFolder({kDense, kNormBias}).open().hash() == original);
  CHECK(ModelFolder({kNormBias, kDense}).open().hash() == original);
  CHECK(ModelFolder({kDense}).open().hash() != original);
  const auto changed = [&](auto change) {
    FakeTensor tensor = kDense;
    change(tensor);
    return ModelFolder({tensor, kNormBias}).open().hash() != original;
  };
  CHECK(changed([](FakeTensor& tensor) { tensor.name = "esm.dense.weighu"; }));
  CHECK(changed([](FakeTensor& tensor) { tensor.dtype = "BF16"; }));
  CHECK(changed([](FakeTensor& tensor) { tensor.shape = "4,1"; }));
  CHECK(changed([](FakeTensor& tensor) { tensor.data = "abcdefgH"; }));
  const ModelFolder other({kDense, kNormBias});
  std::string config(kConfig);
  config.replace(config.find("\"intermediate_size\":32"), 22, "\"intermediate_size\":64");
  other.write("config.json", config);
  CHECK(other.open().hash() != original);
}

TEST_CASE("xxh64 gives the published values", "[unit][checkpoint]") {
  const auto hash = [](std::string_view text, uint64_t seed = 0) { return xxh64(test::as_bytes(text), seed); };
  CHECK(hash("") == 0xEF46DB3751D8E999u);
  CHECK(hash("a") == 0xD24EC4F1A98C6E5Bu);
  CHECK(hash("abc") == 0x44BC2CF5AD770999u);
  CHECK(hash("Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1u);
  CHECK(hash("xxhash", 20141025) == 0xB559B98D844E0635u);
}

constexpr std::string_view kTwoShards =
    "{\"metadata\":{\"total_size\":12},\"weight_map\":{\"esm.dense.weight\":\"one.safetensors\","
    "\"esm.LayerNorm.weight\":\"two.safetensors\"}}";

TEST_CASE("shards are one model", "[unit][checkpoint]") {
  const ModelFolder folder;
  folder.write("one.safetensors", weights({kDense}));
  folder.write("two.safetensors", weights({kNormWeight}));
  folder.write("model.safetensors.index.json", kTwoShards);
  const Checkpoint checkpoint = folder.open();
  REQUIRE(checkpoint.find("esm.dense.weight"));
  REQUIRE(checkpoint.find("esm.LayerNorm.weight"));
  CHECK(checkpoint.find("esm.dense.weight")->data[0] == std::byte('a'));
  CHECK(checkpoint.hash() == ModelFolder({kDense, kNormWeight}).open().hash());
}

TEST_CASE("an index that lies is refused", "[unit][checkpoint]") {
  const ModelFolder folder;
  folder.write("one.safetensors", weights({kDense}));
  const auto refuses = [&](std::string_view index, std::initializer_list<std::string_view> parts) {
    INFO(index);
    folder.write("model.safetensors.index.json", index);
    check_error(ErrorKind::input, parts, [&] { folder.open(); });
  };
  refuses(kTwoShards, {"model.safetensors.index.json", "two.safetensors", "missing"});
  refuses("", {"not valid JSON"});
  refuses("[]", {"weight_map"});
  refuses("{\"weight_map\":[]}", {"weight_map"});
  refuses("{\"weight_map\":{\"a\":1}}", {"\"a\"", "not mapped to a file name"});
  refuses("{\"weight_map\":{\"b\":\"one.safetensors\"}}", {"\"b\"", "not in one.safetensors"});
  for (const char* name : {"../one.safetensors", "/etc/passwd", "..", ".", "", "a\\\\b", "C:x", "sub/one.safetensors"})
    refuses(fmt::format("{{\"weight_map\":{{\"a\":\"{}\"}}}}", name), {"not a plain file name"});

  folder.write("two.safetensors", weights({kDense, kNormWeight}));
  refuses(kTwoShards, {"two.safetensors", "esm.dense.weight", "already there"});
}

TEST_CASE("folders that are no model say how to get one", "[unit][checkpoint]") {
  const test::TemporaryFolder empty;
  const std::string_view how = "hf download facebook/esm2_t33_650M_UR50D --local-dir DIR";
  check_error(ErrorKind::input, {"nowhere", "no such model folder", how}, [&] { Checkpoint::open(empty / "nowhere"); });
  check_error(ErrorKind::input, {"config.json", how}, [&] { Checkpoint::open(empty.path()); });
  const ModelFolder folder;
  check_error(ErrorKind::input, {"neither", "model.safetensors", how}, [&] { folder.open(); });
  folder.write("pytorch_model.bin", "pickle");
  check_error(ErrorKind::input, {"pytorch_model.bin only", how}, [&] { folder.open(); });
  folder.write("model.safetensors", "1234");
  check_error(ErrorKind::input, {"model.safetensors", "too few"}, [&] { folder.open(); });
  std::filesystem::remove(folder / "vocab.txt");
  check_error(ErrorKind::input, {"vocab.txt", how}, [&] { folder.open(); });
}

}  // namespace
}  // namespace turboesm
