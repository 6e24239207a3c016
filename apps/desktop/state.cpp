#include "apps/desktop/state.h"

#include <fmt/format.h>

#include "model/tokenizer.h"

namespace turboesm::desktop {
namespace {

// Brings `protein` up to what the decoder has, whose tokens begin with <cls>.
void grow(GrowingProtein& protein, std::span<const int32_t> tokens, const AminoAcidDistribution& last) {
  while (!protein.stopped && protein.residues.size() + 1 < tokens.size()) {
    const int32_t token = tokens[protein.residues.size() + 1];
    if (token == Tokenizer::kEos) {
      protein.stopped = true;
    } else {
      const bool drawn = protein.residues.size() >= protein.prompt;
      protein.residues += Tokenizer::esm2().letter(token);
      if (drawn) protein.drawn_from.push_back(last);
    }
  }
}

struct Apply {
  State& s;

  void operator()(const event::Devices& e) const { s.devices = e.list; }
  void operator()(const event::Started& e) const {
    s.working = e;
    s.progress = 0;
  }
  void operator()(const event::Finished&) const {
    s.working.reset();
    ++s.finished;
    if (s.generation) s.generation->running = false;
  }
  void operator()(const event::Dropped& e) const { s.finished += e.commands; }
  void operator()(const event::Failed& e) const { s.say(e.kind != ErrorKind::cancelled, e.message); }
  void operator()(const event::Opened& e) const {
    s.opened = e;
    s.history.clear();
    s.say(false, e.explanation);
  }
  void operator()(const event::Closed&) const {
    s.opened.reset();
    s.memory.reset();
    s.history.clear();
  }
  void operator()(const event::Memory& e) const {
    s.memory = e.report;
    MemorySample sample{e.seconds, {}};
    for (uint32_t i = 0; i < kMemoryLabels; ++i) sample.bytes[i] = e.report.by_label[i].bytes;
    s.history.push_back(sample);
    while (s.history.front().seconds < e.seconds - State::kHistorySeconds) s.history.pop_front();
  }
  void operator()(const event::GenerationStarted& e) const {
    s.generation = Generation{};
    s.generation->preset = e.preset;
    s.generation->length = e.options.length;
    s.generation->proteins.resize(e.options.count);
    s.generation->running = true;
  }
  void operator()(const event::Step& e) const {
    Generation& g = *s.generation;
    const GenerateStep& step = e.step;
    for (size_t b = 0; b < step.tokens.size(); ++b) {
      GrowingProtein& protein = g.proteins[step.first + b];
      if (step.tokens[b].size() < protein.residues.size() + 1) protein = {};  // begun again, in a smaller batch
      protein.prompt = step.prompt[b] - 1;
      grow(protein, step.tokens[b], step.last[b]);
    }
    g.cache_bytes = step.cache_bytes;
    g.cached_tokens = step.cached_tokens;
    g.cache_capacity = step.cache_capacity;
    g.seconds = step.seconds;
    g.drawn = 0;
    for (size_t b = 0; b < step.tokens.size(); ++b) g.drawn += g.proteins[step.first + b].drawn_from.size();
  }
  void operator()(const event::Generated& e) const { s.generation->report = e.report; }
  void operator()(const event::Progress& e) const { s.progress = e.share; }
  void operator()(const event::Records& e) const {
    s.records = e;
    s.say(false, fmt::format("{}: {} {}{}", e.path.filename().string(), e.proteins.size(),
                             e.proteins.size() == 1 ? "protein" : "proteins", e.more ? ", the first of more" : ""));
  }
  void operator()(const event::Map& e) const { s.map = e; }
  void operator()(const event::Compared& e) const {
    if (e.protein.sequence != s.compared_protein.sequence) s.compared.clear();
    s.compared_protein = e.protein;
    s.compared.insert_or_assign(e.preset, e);
  }
  void operator()(const event::Saved& e) const { s.say(false, fmt::format("saved {}", e.path.string())); }
};

}  // namespace

void State::apply(const Event& event) { std::visit(Apply{*this}, event); }

void State::say(bool error, std::string text) {
  messages.push_back({error, std::move(text)});
  if (messages.size() > kMessages) messages.pop_front();
}

}  // namespace turboesm::desktop
