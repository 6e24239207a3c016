// Decoding on a KV cache against what it must equal.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "model/bench.h"
#include "model/decoder.h"
#include "model/generate.h"
#include "runtime/random.h"
#include "tests/golden/golden.h"

namespace turboesm {
namespace {

using namespace golden;

std::vector<int32_t> random_residues(uint32_t count, uint32_t seed) {
  std::vector<int32_t> ids(count);
  for (uint32_t i = 0; i < count; ++i) ids[i] = int32_t(4 + pcg_hash(seed * 7919 + i) % 20);
  return ids;
}

std::vector<int32_t> with_cls(std::vector<int32_t> residues) {
  residues.insert(residues.begin(), Tokenizer::kCls);
  return residues;
}

Esm2Config one_layer(uint32_t heads, uint32_t head_dim) {
  Esm2Config config = official_config("8M");
  config.layers = 1;
  config.heads = heads;
  config.hidden = heads * head_dim;
  config.intermediate = 4 * config.hidden;
  return config;
}

KvTables tables_of(std::string_view preset, const Esm2Config& config) {
  return random_kv_tables(parse_kv_preset(preset), config);
}

DecodeTask task_of(const std::vector<int32_t>& ids, uint32_t prompt) {
  DecodeTask task;
  task.prompt.assign(ids.begin(), ids.begin() + prompt);
  task.forced.assign(ids.begin() + prompt, ids.end());
  task.forced.push_back(Tokenizer::kEos);
  task.limit = uint32_t(ids.size()) + 1;
  return task;
}

// In a model of one layer K and V of a token depend on nothing but the token and its place, so that caching them is
// exact: the row of the last residue is that of a forward pass over the whole sequence.
TEST_CASE("decoding a model of one layer on an f32 cache is its forward pass", "[golden]") {
  const uint32_t head_dim = GENERATE(16u, 24u, 64u);
  INFO("head_dim " << head_dim);
  const Esm2Config config = one_layer(3, head_dim);
  Esm2 model(device(), Esm2Weights::random(device(), config, DType::f32, 11));
  const uint64_t H = config.hidden;

  std::vector<std::vector<int32_t>> sequences;
  std::vector<DecodeTask> tasks;
  uint32_t steps = 0;
  for (const uint32_t length : {2u, 33u, 40u}) {
    sequences.push_back(with_cls(random_residues(length - 1, length)));
    tasks.push_back(task_of(sequences.back(), length / 2));
    steps = std::max(steps, uint32_t(tasks.back().forced.size()));
  }
  Decoder decoder(model, tables_of("f32", config), {.sequences = 3, .capacity = 41, .hidden = true});
  decoder.start(tasks, 64);
  std::vector<float> hidden(6 * H);
  for (uint32_t step = 0; step < steps; ++step) {
    decoder.wait(decoder.submit());
    decoder.download_hidden(hidden);
    for (size_t b = 0; b < tasks.size(); ++b) {
      if (step + 1 != tasks[b].forced.size()) continue;  // the step in which the last residue has its row
      INFO("sequence " << b);
      const ForwardResult whole = model.forward(batch_of({sequences[b]}), {.layers = {1}, .hidden = true});
      const std::span<const float> want = std::span(whole.hidden[0]).last(H);
      CHECK(relative_error(std::span(hidden).subspan(2 * b * H, H), want) <= 2e-5);
    }
  }
  CHECK_FALSE(decoder.any_active());
  const std::vector<std::vector<int32_t>> tokens = decoder.tokens();
  for (size_t b = 0; b < sequences.size(); ++b) {
    std::vector<int32_t> expected = sequences[b];
    expected.push_back(Tokenizer::kEos);
    CHECK(tokens[b] == expected);
  }
}

GenerateReport generate_with(Device& on, std::string_view preset, const GenerateOptions& options) {
  Esm2 model(on, Esm2Weights::load(on, Checkpoint::open(model_directory("tiny_hd64")), DType::f32));
  return generate(model, tables_of(preset, model.config()), options, [](const GenerateProgress&) {});
}

TEST_CASE("one seed gives the same proteins on every back end", "[golden]") {
  const GenerateOptions options{.prompt = random_residues(5, 1), .count = 4, .length = 40, .top_p = 0.95f, .seed = 3};
  const GenerateReport here = generate_with(device(), "f32", options);
  const GenerateReport oracle = generate_with(*open_oracle(), "f32", options);
  REQUIRE(here.proteins.size() == 4);
  for (size_t i = 0; i < 4; ++i) {
    INFO("protein " << i);
    CHECK(here.proteins[i].residues == oracle.proteins[i].residues);
    CHECK(std::abs(here.proteins[i].mean_log_probability - oracle.proteins[i].mean_log_probability) <= 1e-4);
    CHECK(std::abs(here.proteins[i].pseudo_perplexity / oracle.proteins[i].pseudo_perplexity - 1) <= 1e-4);
    CHECK(std::equal(options.prompt.begin(), options.prompt.end(), here.proteins[i].residues.begin()));
  }
  CHECK(here.proteins[0].residues != here.proteins[1].residues);
}

// Keys that differ in their last bit can lie on either side of a threshold, so that draws may part in the end: the same
// residues are given to both.
TEST_CASE("a quantized cache says the same of a protein on every back end", "[golden]") {
  const DType dtype = GENERATE(DType::f32, DType::f16);
  constexpr uint32_t kCapacity = 64;  // so many outputs the bias must have to be one kernel with the query on CUDA
  INFO(name_of(dtype));
  const std::vector<int32_t> ids = with_cls(random_residues(50, 9));
  const auto log_probability = [&](Device& on) {
    Esm2 model(on, Esm2Weights::load(on, Checkpoint::open(model_directory("tiny_hd64")), dtype));
    Decoder decoder(model, tables_of("turbo", model.config()), {.sequences = 1, .capacity = kCapacity});
    decoder.start(std::vector<DecodeTask>{task_of(ids, 10)}, 64);
    for (size_t step = 0; step < 42; ++step) decoder.submit();
    return double(decoder.log_probability()[0]) / 42;
  };
  CHECK(std::abs(log_probability(device()) - log_probability(*open_oracle())) <= (dtype == DType::f32 ? 2e-3 : 1e-2));
}

TEST_CASE("a decoder's memory is what its plan says", "[golden]") {
  const Esm2Config config = one_layer(4, 32);
  const std::unique_ptr<Device> fresh = open_fresh_device();
  Esm2 model(*fresh, Esm2Weights::random(*fresh, config, DType::f32, 1));
  const KvTables tables = tables_of("turbo", config);
  const auto bytes = [&](MemoryLabel label) { return fresh->memory().by_label[uint32_t(label)].bytes; };
  const uint64_t weights = bytes(MemoryLabel::weights), activations = bytes(MemoryLabel::activations);
  const DecoderOptions options{.sequences = 3, .capacity = 100};
  const Decoder decoder(model, tables, options);
  CHECK(decoder.cache().capacity() == 128);
  CHECK(bytes(MemoryLabel::kv) == kv_cache_bytes(tables.preset.format(), config, 3, 100));
  CHECK(bytes(MemoryLabel::weights) - weights == KvCache::table_bytes(config, tables.preset));
  CHECK(bytes(MemoryLabel::activations) - activations == Decoder::bytes(config, DType::f32, tables.preset, options));
}

}  // namespace
}  // namespace turboesm
