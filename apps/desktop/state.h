#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "apps/desktop/worker.h"

namespace turboesm::desktop {

// A protein being generated, or generated.
struct GrowingProtein {
  std::string residues;
  uint32_t prompt = 0;   // of these, residues that were given
  bool stopped = false;  // the model chose <eos>
  // Of each residue that was drawn, the distribution that it came from (at temperature 1).
  std::vector<AminoAcidDistribution> drawn_from;
};

// The last generation, running or over.
struct Generation {
  std::string preset;
  uint32_t length = 0;  // residues at most
  std::vector<GrowingProtein> proteins;
  bool running = false;
  uint64_t cache_bytes = 0, cached_tokens = 0, cache_capacity = 0;
  double seconds = 0;
  uint64_t drawn = 0;                    // residues in all, without prompts
  std::optional<GenerateReport> report;  // once it is over and was not stopped

  double residues_per_second() const { return seconds > 0 ? double(drawn) / seconds : 0; }
};

struct MemorySample {
  double seconds = 0;
  std::array<uint64_t, kMemoryLabels> bytes{};
};

// Everything that the window shows of the worker, derived from its events alone.
struct State {
  static constexpr double kHistorySeconds = 60;
  static constexpr size_t kMessages = 50;

  struct Message {
    bool error = false;
    std::string text;
  };

  std::optional<DeviceList> devices;
  std::optional<event::Opened> opened;
  std::optional<MemoryReport> memory;
  std::deque<MemorySample> history;
  std::optional<event::Started> working;
  double progress = 0;
  std::optional<Generation> generation;
  std::optional<event::Records> records;
  std::optional<event::Map> map;
  // Of one protein, by preset; another protein's start anew.
  std::map<std::string, event::Compared, std::less<>> compared;
  Protein compared_protein;
  std::deque<Message> messages;  // the latest last
  uint64_t finished = 0;         // commands that are done

  void apply(const Event& event);
  void say(bool error, std::string text);
};

}  // namespace turboesm::desktop
