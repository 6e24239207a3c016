// What can be watched of a run equals what the run returns.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <numeric>

#include "model/bench.h"
#include "model/compare.h"
#include "model/generate.h"
#include "model/substitutions.h"
#include "runtime/error.h"
#include "runtime/random.h"
#include "tests/golden/golden.h"

namespace turboesm {
namespace {

using namespace golden;

Esm2 tiny_model(Device& on) {
  return Esm2(on, Esm2Weights::load(on, Checkpoint::open(model_directory("tiny_hd64")), DType::f32));
}

KvTables tables_of(std::string_view preset, const Esm2Config& config) {
  return random_kv_tables(parse_kv_preset(preset), config);
}

std::vector<int32_t> residues(uint32_t count) {
  std::vector<int32_t> ids(count);
  for (uint32_t i = 0; i < count; ++i) ids[i] = kFirstAminoAcid + int32_t(pcg_hash(77 + i) % kAminoAcids);
  return ids;
}

TEST_CASE("the steps of a generation add up to its proteins", "[golden]") {
  Esm2 model = tiny_model(device());
  const KvTables tables = tables_of("f16", model.config());
  const GenerateOptions options{.prompt = residues(3), .count = 3, .length = 40, .seed = 5, .pseudo_perplexity = false};
  std::vector<GenerateStep> steps;
  const GenerateReport watched = generate(
      model, tables, options, [](const GenerateProgress&) {}, [&](const GenerateStep& s) { steps.push_back(s); });
  const GenerateReport unwatched = generate(model, tables, options, [](const GenerateProgress&) {});

  REQUIRE(steps.size() >= 2);
  CHECK(steps.front().tokens[0].size() == options.prompt.size() + 1);
  CHECK(steps.front().cached_tokens == 3 * (options.prompt.size() + 1));
  CHECK(steps.back().cache_bytes == watched.cache_bytes);
  for (size_t b = 0; b < 3; ++b) {
    INFO("protein " << b);
    CHECK(watched.proteins[b].residues == unwatched.proteins[b].residues);
    std::vector<int32_t> chosen(steps.back().tokens[b].begin() + 1, steps.back().tokens[b].end());
    if (watched.proteins[b].stopped) chosen.pop_back();
    CHECK(chosen == watched.proteins[b].residues);
  }
  for (size_t i = 1; i < steps.size(); ++i) {
    CHECK(steps[i].cached_tokens <= steps[i].cache_capacity);
    for (size_t b = 0; b < 3; ++b) {
      const size_t grown = steps[i].tokens[b].size() - steps[i - 1].tokens[b].size();
      CHECK(grown <= 1);
      double sum = 0;
      for (const float p : steps[i].last[b]) sum += std::exp(double(p));
      CHECK_THAT(sum, Catch::Matchers::WithinAbs(1, 1e-5));
    }
  }
}

// Decoding at temperature 0 takes the likeliest, so the distribution that is reported must have its peak there.
TEST_CASE("a step's distribution is the one that its residue was drawn from", "[golden]") {
  Esm2 model = tiny_model(device());
  uint32_t seen = 0;
  const GenerateOptions options{.prompt = {}, .count = 2, .length = 30, .temperature = 0, .pseudo_perplexity = false};
  std::vector<size_t> lengths(2, 1);
  generate(
      model, tables_of("f32", model.config()), options, [](const GenerateProgress&) {},
      [&](const GenerateStep& s) {
        for (size_t b = 0; b < 2; ++b) {
          if (s.tokens[b].size() == lengths[b]) continue;
          lengths[b] = s.tokens[b].size();
          if (s.tokens[b].back() == Tokenizer::kEos) continue;
          CHECK(s.tokens[b].back() == kFirstAminoAcid + int32_t(most_likely(s.last[b])));
          ++seen;
        }
      });
  CHECK(seen > 0);
}

TEST_CASE("what a watcher throws ends a generation and frees all that it took", "[golden]") {
  const std::unique_ptr<Device> fresh = open_fresh_device();
  Esm2 model = tiny_model(*fresh);
  const KvTables tables = tables_of("wht3", model.config());
  const auto stop_after = [&](int steps) {
    const auto watch = [&](const GenerateStep&) {
      if (steps-- == 0) throw_error(ErrorKind::cancelled, "stopped");
    };
    CHECK_THROWS_AS(generate(
                        model, tables, {.prompt = {}, .count = 2, .length = 50}, [](const GenerateProgress&) {}, watch),
                    Error);
  };
  stop_after(0);  // the model's own workspace and the staging area are there from now on
  const MemoryReport before = fresh->memory();
  for (const int steps : {0, 1, 7}) stop_after(steps);
  const MemoryReport after = fresh->memory();
  CHECK(after.total.bytes == before.total.bytes);
  CHECK(after.total.count == before.total.count);
}

TEST_CASE("position by position, caches compare as they do in all", "[golden]") {
  Esm2 model = tiny_model(device());
  std::vector<int32_t> ids = residues(31);
  ids.insert(ids.begin(), Tokenizer::kCls);
  const KvTables f32 = tables_of("f32", model.config());
  std::vector<CompareSubject> subjects{{"turbo", tables_of("turbo", model.config())}};
  const std::vector<PositionAgreement> positions =
      compare_positions(model, f32, subjects[0].tables, {"protein", ids}, [](double) {});
  const KvQuality whole = compare(model, f32, subjects, {{"protein", ids}}, {}, [](double) {}).front();

  REQUIRE(positions.size() == whole.positions);
  CHECK(positions.front().position == ids.size() / 2);  // the first after the prompt, <cls> not counted
  CHECK(positions.back().position == 31);
  const LogitAgreement agreement = summary(positions);
  CHECK(agreement.kl_mean == whole.residue.kl_mean);
  CHECK(agreement.kl_p99 == whole.residue.kl_p99);
  CHECK(agreement.top1 == whole.residue.top1);
  CHECK(agreement.kl_mean > 0);
}

TEST_CASE("a substitution map is the forward pass's logits, less the residue's own", "[golden]") {
  Esm2 model = tiny_model(device());
  std::vector<int32_t> ids = residues(20);
  ids[4] = 24;  // X, none of the 20
  const SubstitutionMap map = substitution_map(model, ids);
  std::vector<int32_t> whole = ids;
  whole.insert(whole.begin(), Tokenizer::kCls);
  whole.push_back(Tokenizer::kEos);
  const std::vector<float> logits = model.forward(batch_of({whole}), {.logits = true}).logits;
  REQUIRE(map.sequence.size() == 20);
  CHECK(map.sequence[4] == 'X');
  for (size_t i = 0; i < 20; ++i)
    for (uint32_t a = 0; a < kAminoAcids; ++a) {
      const float own = logits[(i + 1) * 33 + kFirstAminoAcid + a];
      CHECK(map.logits[i * kAminoAcids + a] == own);
      const size_t reference = i == 4 ? size_t(0) : size_t(ids[i]);
      if (i != 4)
        CHECK_THAT(map.log_odds[i * kAminoAcids + a],
                   Catch::Matchers::WithinAbs(own - logits[(i + 1) * 33 + reference], 1e-4));
    }
  const auto row = map.log_odds.begin() + 4 * kAminoAcids;
  CHECK(*std::max_element(row, row + kAminoAcids) == 0);
}

}  // namespace
}  // namespace turboesm
