#include "apps/desktop/state.h"

#include <catch2/catch_test_macros.hpp>

#include "model/tokenizer.h"

namespace turboesm::desktop {
namespace {

event::Memory memory_at(double seconds, uint64_t weights) {
  event::Memory memory;
  memory.seconds = seconds;
  memory.report.by_label[size_t(MemoryLabel::weights)].bytes = weights;
  return memory;
}

std::vector<int32_t> tokens(const std::string& residues) {
  std::vector<int32_t> ids = Tokenizer::esm2().encode(residues, "test").ids;
  ids.pop_back();
  return ids;
}

GenerateStep step_of(std::vector<std::vector<int32_t>> sequences, uint32_t prompt, uint32_t first = 0) {
  GenerateStep step;
  step.first = first;
  step.prompt.assign(sequences.size(), prompt);
  step.last.resize(sequences.size());
  step.tokens = std::move(sequences);
  return step;
}

TEST_CASE("the history holds a minute", "[unit][desktop-state]") {
  State state;
  for (int i = 0; i <= 900; ++i) state.apply(memory_at(0.1 * i, uint64_t(i)));
  CHECK(state.history.back().bytes[0] == 900);
  CHECK(state.history.front().seconds >= 90 - State::kHistorySeconds - 1e-9);
  CHECK(state.history.size() <= 601);
  CHECK((*state.memory)[MemoryLabel::weights].bytes == 900);
}

TEST_CASE("residues appear as they are decoded, prompts apart from what was drawn", "[unit][desktop-state]") {
  State state;
  state.apply(event::GenerationStarted{{.prompt = {}, .count = 2, .length = 5}, "turbo"});
  CHECK(state.generation->running);
  GenerateStep step = step_of({tokens("MK"), tokens("MK")}, 3);
  state.apply(event::Step{step});
  CHECK(state.generation->drawn == 0);
  step.tokens = {tokens("MKT"), tokens("MKA")};
  step.last[0][2] = -0.5f;
  step.seconds = 0.5;
  state.apply(event::Step{step});
  step.tokens[0].push_back(Tokenizer::kEos);
  step.tokens[1] = tokens("MKAG");
  step.seconds = 1;
  state.apply(event::Step{step});
  const Generation& g = *state.generation;
  CHECK(g.proteins[0].residues == "MKT");
  CHECK(g.proteins[0].stopped);
  CHECK(g.proteins[0].drawn_from.size() == 1);
  CHECK(g.proteins[0].drawn_from[0][2] == -0.5f);
  CHECK(g.proteins[1].residues == "MKAG");
  CHECK_FALSE(g.proteins[1].stopped);
  CHECK(g.proteins[1].prompt == 2);
  CHECK(g.drawn == 3);
  CHECK(g.residues_per_second() == 3);
  state.apply(event::Finished{});
  CHECK_FALSE(state.generation->running);
  CHECK_FALSE(state.generation->report);
}

TEST_CASE("proteins that are begun again in a smaller batch are shown from their start", "[unit][desktop-state]") {
  State state;
  state.apply(event::GenerationStarted{{.prompt = {}, .count = 2, .length = 5}, "turbo"});
  state.apply(event::Step{step_of({tokens("MKTA"), tokens("MKTA")}, 1)});
  state.apply(event::Step{step_of({tokens("MK")}, 1)});
  CHECK(state.generation->proteins[0].residues == "MK");
  state.apply(event::Step{step_of({tokens("L")}, 1, 1)});
  CHECK(state.generation->proteins[1].residues == "L");
}

TEST_CASE("an error is a message, a stop is none", "[unit][desktop-state]") {
  State state;
  state.apply(event::Started{"generating", true});
  CHECK(state.working->stoppable);
  state.apply(event::Failed{ErrorKind::cancelled, "stopped"});
  CHECK_FALSE(state.messages.back().error);
  state.apply(event::Failed{ErrorKind::out_of_memory, "too large"});
  CHECK(state.messages.back().error);
  state.apply(event::Finished{});
  CHECK_FALSE(state.working);
  CHECK(state.finished == 1);
  for (int i = 0; i < 100; ++i) state.say(false, std::to_string(i));
  CHECK(state.messages.size() == State::kMessages);
  CHECK(state.messages.back().text == "99");
}

TEST_CASE("comparisons are kept by preset, for one protein", "[unit][desktop-state]") {
  State state;
  state.apply(event::Compared{{"a", "MKT"}, "turbo", 3.5, {}, {.kl_mean = 1}});
  state.apply(event::Compared{{"a", "MKT"}, "f16", 16, {}, {}});
  state.apply(event::Compared{{"a", "MKT"}, "turbo", 3.5, {}, {.kl_mean = 2}});
  CHECK(state.compared.size() == 2);
  CHECK(state.compared.at("turbo").summary.kl_mean == 2);
  state.apply(event::Compared{{"b", "MKTA"}, "turbo", 3.5, {}, {}});
  CHECK(state.compared.size() == 1);
}

TEST_CASE("when nothing is open any more, nothing of it is shown", "[unit][desktop-state]") {
  State state;
  state.apply(event::Opened{});
  state.apply(memory_at(1, 5));
  state.apply(event::Closed{});
  CHECK_FALSE(state.opened);
  CHECK_FALSE(state.memory);
  CHECK(state.history.empty());
}

}  // namespace
}  // namespace turboesm::desktop
