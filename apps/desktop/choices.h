#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "model/kv_codec.h"

namespace turboesm::desktop {

// What the user chose, which the next start remembers.
struct Choices {
  std::string device = "auto";  // as --device takes it
  std::string dtype = "f32";
  std::string model;  // folder; empty: the one that ships
  std::string preset = "turbo";

  struct Plan {
    std::string size = "650M";  // an official size; empty: the open model
    uint32_t length = 1024, batch = 16;
    bool operator==(const Plan&) const = default;
  } plan;

  struct Generation {
    std::string prompt;
    uint32_t length = 256, count = 4, seed = 0;
    float temperature = 1, top_p = 0.95f;
    bool operator==(const Generation&) const = default;
  } generation;

  bool operator==(const Choices&) const = default;
};

// Largest values that the window offers.
inline constexpr uint32_t kLongestPlan = 65536, kLargestPlanBatch = 512;
inline constexpr uint32_t kLongestGeneration = 4096, kLargestCount = 256;

// From a file of an earlier run. What it lacks, or has in no sensible form, is as at a first start, so that a damaged
// file never keeps the program from starting.
Choices load_choices(const std::filesystem::path& file);

// Written aside, then renamed; makes the folder. Error (input) naming the file.
void save_choices(const Choices& choices, const std::filesystem::path& file);

}  // namespace turboesm::desktop
