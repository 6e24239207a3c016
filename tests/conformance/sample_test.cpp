#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "runtime/random.h"
#include "tests/conformance/harness.h"

namespace turboesm::conformance {
namespace {

struct Settings {
  uint32_t sequences = 1, candidate_count = 20, vocab = 33;
  float temperature = 1, top_p = 1;
  bool equal = false;  // all candidates' logits: the order among equals decides
};

// How far the draw is from turning out differently: the smallest distance of any number that is compared with another,
// in units of probability.
double margin(const std::vector<float>& scores, Settings s, double uniform) {
  std::vector<double> p(scores.begin(), scores.end());
  std::sort(p.begin(), p.end(), std::greater<>());
  if (s.temperature == 0) return s.equal || p.size() == 1 ? 1 : p[0] - p[1];
  double sum = 0, kept = 0, passed = 0, nearest = 1;
  for (double& value : p) value = std::exp((value - double(scores[0])) / double(s.temperature));
  sum = std::accumulate(p.begin(), p.end(), 0.0);
  size_t keep = 0;
  while (keep < p.size() && (keep == 0 || kept < double(s.top_p) * sum)) {
    kept += p[keep++];
    if (s.top_p < 1) nearest = std::min(nearest, std::abs(kept / sum - double(s.top_p)));
  }
  for (size_t k = 0; k + 1 < keep; ++k) {
    passed += p[k];
    nearest = std::min(nearest, std::abs(uniform - passed / kept));
  }
  return nearest;
}

void add_sample(Harness& harness, Settings s) {
  Rng& rng = harness.rng();
  const std::string what =
      fmt::format("{} sequences, {} candidates of {}, temperature {}, top_p {}{}", s.sequences, s.candidate_count,
                  s.vocab, s.temperature, s.top_p, s.equal ? ", equal logits" : "");
  harness.add(what, [&](Case& c) -> Operation {
    const uint32_t capacity = 8 + rng.below(60), n = s.sequences, seed = rng.next();
    const uint32_t first_stream = rng.pick({0u, 64u, 1000u});
    std::vector<int32_t> vocabulary(s.vocab);
    std::iota(vocabulary.begin(), vocabulary.end(), 0);
    for (uint32_t i = s.vocab; i > 1; --i) std::swap(vocabulary[i - 1], vocabulary[rng.below(i)]);
    const std::vector<int32_t> candidates(vocabulary.begin(), vocabulary.begin() + s.candidate_count);
    const int32_t stop_id = rng.pick({candidates[0], candidates[0], int32_t(s.vocab) + 1});

    std::vector<float> logits = rng.normals(2 * uint64_t(n) * s.vocab, 2);
    std::vector<int32_t> tokens = rng.integers(uint64_t(n) * capacity, 4, 24), positions, ids, appends, lengths, active;
    std::vector<int32_t> limits;
    for (uint32_t b = 0; b < n; ++b) {
      const int32_t position = 1 + int32_t(rng.below(capacity - 1));
      positions.insert(positions.end(), {position - 1, position});
      ids.insert(ids.end(), {int32_t(rng.below(24)), 32});
      lengths.push_back(position);
      active.push_back(rng.below(5) == 0 ? 0 : 1);
      appends.insert(appends.end(), {int32_t(2 * b), position - 1, active.back()});
      limits.push_back(rng.below(4) == 0 ? position + 1 : position + 1 + int32_t(rng.below(capacity - position)));
      int32_t& token = tokens[uint64_t(b) * capacity + uint32_t(position)];
      // Now and then a forced one: any residue, the stop token, or one that is no candidate.
      token = rng.below(4) != 0 ? -1 : rng.pick({5, stop_id < int32_t(s.vocab) ? stop_id : 6, vocabulary.back()});
      float* row = &logits[(2 * uint64_t(b) + 1) * s.vocab];
      for (int attempt = 0;; ++attempt) {
        std::vector<float> scores;
        for (const int32_t candidate : candidates) {
          if (s.equal) row[candidate] = row[candidates[0]];
          scores.push_back(row[candidate]);
        }
        if (margin(scores, s, double(random_uniform(seed, first_stream + b, uint32_t(position)))) > 1e-5) break;
        REQUIRE(attempt < 100);
        const std::vector<float> others = rng.normals(s.vocab, 2);
        std::copy(others.begin(), others.end(), row);
      }
    }
    return Sample{.logits = c.input(DType::f32, logits),
                  .candidates = c.input(candidates),
                  .limits = c.input(limits),
                  .tokens = c.in_out(tokens),
                  // A logarithm and a sum of exponentials: exp is right to some 2^-21 for these scores.
                  .log_probability = c.in_out(rng.normals(n, 10), {3e-6, 5}),
                  .ids = c.in_out(ids),
                  .positions = c.in_out(positions),
                  .appends = c.in_out(appends),
                  .lengths = c.in_out(lengths),
                  .active = c.in_out(active),
                  .sequences = n,
                  .vocab = s.vocab,
                  .candidate_count = s.candidate_count,
                  .capacity = capacity,
                  .seed = seed,
                  .first_stream = first_stream,
                  .temperature = s.temperature,
                  .top_p = s.top_p,
                  .stop_id = stop_id};
  });
}

}  // namespace

TEST_CASE("sample agrees with the oracle", "[conformance]") {
  conform(55, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    for (const uint32_t sequences : {1u, 2u, 3u, 31u, 64u, 65u, 300u})
      for (const float temperature : {0.0f, 0.3f, 1.0f, 2.5f})
        for (const float top_p : {1.0f, 0.9f, 0.5f, 0.01f})
          add_sample(harness, {.sequences = sequences, .temperature = temperature, .top_p = top_p});
    for (const uint32_t candidate_count : {1u, 2u, 3u, 21u, 31u, 32u, 33u, 63u, 64u})
      for (const float temperature : {0.0f, 0.7f})
        add_sample(harness, {.sequences = 9,
                             .candidate_count = candidate_count,
                             .vocab = candidate_count + 1 + rng.below(70),
                             .temperature = temperature,
                             .top_p = rng.pick({1.0f, 0.8f})});
    for (const float temperature : {0.0f, 1.0f})
      add_sample(harness, {.sequences = 50, .temperature = temperature, .top_p = 0.93f, .equal = true});
    add_sample(harness, {.sequences = 0});
  });
}

}  // namespace turboesm::conformance
