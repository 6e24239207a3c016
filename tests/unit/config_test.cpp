#include "model/config.h"

#include <string>

#include <catch2/catch_test_macros.hpp>
#include <nlohmann/json.hpp>

#include "tests/unit/files.h"

namespace turboesm {
namespace {

using nlohmann::json;
using test::check_error;

const json kGood = {{"model_type", "esm"},    {"vocab_size", 33},          {"hidden_size", 320},
                    {"num_hidden_layers", 6}, {"num_attention_heads", 20}, {"intermediate_size", 1280},
                    {"layer_norm_eps", 1e-5}, {"token_dropout", true},     {"position_embedding_type", "rotary"}};

Esm2Config load(const json& object) {
  const test::TemporaryFolder folder;
  return load_config(folder.write("config.json", object.dump()));
}

Esm2Config load_with(const char* key, const json& value) {
  json object = kGood;
  object[key] = value;
  return load(object);
}

Esm2Config load_without(const char* key) {
  json object = kGood;
  object.erase(key);
  return load(object);
}

TEST_CASE("a published config.json is read", "[unit][config]") {
  json object = kGood;
  object.update({{"emb_layer_norm_before", false},
                 {"is_folding_model", false},
                 {"mask_token_id", 32},
                 {"pad_token_id", 1},
                 {"eos_token_id", 2},
                 {"hidden_act", "gelu"},
                 {"vocab_list", nullptr},
                 {"rope_theta", 10000},
                 {"esmfold_config", nullptr}});
  CHECK(load(object) == official_config("8M"));
}

TEST_CASE("absent keys mean what transformers makes of them", "[unit][config]") {
  CHECK(load_without("layer_norm_eps").layer_norm_eps == 1e-12f);
  CHECK_FALSE(load_without("token_dropout").token_dropout);
  CHECK(load_with("emb_layer_norm_before", nullptr) == official_config("8M"));
  CHECK(load_with("mask_token_id", nullptr) == official_config("8M"));
}

TEST_CASE("what is not ESM-2 is refused by key and value", "[unit][config]") {
  const auto refuses = [](const char* key, const json& value, std::string_view part) {
    INFO(key << " = " << value.dump());
    check_error(ErrorKind::input, {"config.json", key, value.dump(), part}, [&] { load_with(key, value); });
  };
  refuses("model_type", "bert", "ESM-2");
  refuses("position_embedding_type", "absolute", "rotary");
  refuses("emb_layer_norm_before", true, "LayerNorm");
  refuses("is_folding_model", true, "ESMFold");
  refuses("is_decoder", true, "encoder");
  refuses("hidden_act", "relu", "GELU");
  refuses("rope_theta", 500000.0, "10000");
  refuses("vocab_size", 64, "33");
  refuses("pad_token_id", 0, "<pad>");
  refuses("mask_token_id", 4, "<mask>");
  refuses("eos_token_id", 1, "<eos>");
  refuses("token_dropout", "yes", "true or false");
  refuses("layer_norm_eps", 0, "between 0 and 1");
  refuses("layer_norm_eps", -1e-5, "between 0 and 1");
  refuses("layer_norm_eps", "small", "between 0 and 1");
}

TEST_CASE("a config that leaves out what decides is refused", "[unit][config]") {
  for (const char* key : {"model_type", "position_embedding_type", "vocab_size", "hidden_size", "num_hidden_layers",
                          "num_attention_heads", "intermediate_size"})
    check_error(ErrorKind::input, {"config.json", key, "not given"}, [&] { load_without(key); });
}

TEST_CASE("sizes outside sane bounds are refused before they are multiplied", "[unit][config]") {
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"})
    for (const json& value : {json(0), json(-20), json(20.5), json("20"), json(4294967296u * 20), json(UINT64_MAX),
                              json(1e300), json(json::array({20}))}) {
      INFO(key << " = " << value.dump());
      check_error(ErrorKind::input, {"config.json", key, "whole number"}, [&] { load_with(key, value); });
    }
}

TEST_CASE("heads must divide the width into sizes that attention can do", "[unit][config]") {
  check_error(ErrorKind::input, {"hidden_size", "320", "multiple of num_attention_heads (7)"},
              [] { load_with("num_attention_heads", 7); });
  check_error(ErrorKind::input, {"80 heads of 4", "multiple of 8"}, [] { load_with("num_attention_heads", 80); });
  check_error(ErrorKind::input, {"1 heads of 320", "more than the 256"}, [] { load_with("num_attention_heads", 1); });
  CHECK(load_with("num_attention_heads", 2).head_dim() == 160);
}

TEST_CASE("files that are no configuration are refused", "[unit][config]") {
  const test::TemporaryFolder folder;
  const auto refuses = [&](std::string_view content, std::string_view part) {
    check_error(ErrorKind::input, {"config.json", part}, [&] { load_config(folder.write("config.json", content)); });
  };
  refuses("", "not valid JSON");
  refuses("{\"model_type\": \"esm\"", "not valid JSON");
  refuses("\xff\xfe", "not valid JSON");
  refuses("[1, 2]", "not a JSON object");
  check_error(ErrorKind::input, {"none.json", "cannot open"}, [&] { load_config(folder / "none.json"); });
  check_error(ErrorKind::input, {"directory"}, [&] { load_config(folder.path()); });
}

TEST_CASE("the official sizes have their published parameter counts", "[unit][config]") {
  // transformers' num_parameters() of EsmForMaskedLM with its contact head, without the unused position embeddings.
  CHECK(official_config("8M").parameter_count() == 7512474);
  CHECK(official_config("650M").parameter_count() == 651043254);
  const uint64_t rough_millions[] = {8, 34, 148, 651, 2839, 15129};
  REQUIRE(official_sizes().size() == 6);
  for (size_t i = 0; i < 6; ++i) {
    const Esm2Config config = official_config(official_sizes()[i]);
    CHECK((config.parameter_count() + 500000) / 1000000 == rough_millions[i]);
    CHECK(config.head_dim() * config.heads == config.hidden);
    CHECK(config.head_dim() % 8 == 0);
  }
  CHECK(official_config("35M").head_dim() == 24);
  CHECK(official_config("15B").head_dim() == 128);
  check_error(ErrorKind::usage, {"\"1M\"", "650M"}, [] { official_config("1M"); });
}

}  // namespace
}  // namespace turboesm
