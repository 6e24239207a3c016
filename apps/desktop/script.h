#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "apps/desktop/choices.h"
#include "apps/desktop/controller.h"

// What drives the window without a person. A script is a JSON array of steps, each an object with one key, the step's
// name (docs/desktop.md lists them).
namespace turboesm::desktop {

namespace step {

struct ChooseDevice {
  std::string device;
  std::optional<std::string> dtype;
};
struct ChoosePreset {
  std::string preset;
};
struct OpenModel {
  std::string folder;
};
struct Plan {
  Choices::Plan plan;
};
struct Generate {  // with these settings instead of the chosen ones
  nlohmann::json settings;
};
struct Stop {};
struct Drop {
  std::filesystem::path path;
};
struct Paste {
  std::string sequence;
};
struct Compare {
  std::vector<std::string> presets;
};
struct Save {
  std::filesystem::path path;  // .png or .csv
};
struct ShowTab {
  Tab tab;
};
struct Resize {
  int width, height;
};
struct Point {  // at what is drawn under this label; `click` presses there, too
  std::string label;
  bool click;
};
struct Key {
  int key;  // as GLFW numbers it
  bool control;
};
struct Type {
  std::string text;
};
struct Wait {  // until nothing is going on, or so many residues are drawn
  std::optional<uint64_t> residues;
};
struct Frames {  // lets so many pass
  int count;
};
struct Screenshot {
  std::filesystem::path path;
};
struct Report {
  std::filesystem::path path;
};
struct Expect {  // what the last frame drew
  nlohmann::json values;
};
struct Close {};

}  // namespace step

using Step = std::variant<step::ChooseDevice, step::ChoosePreset, step::OpenModel, step::Plan, step::Generate,
                          step::Stop, step::Drop, step::Paste, step::Compare, step::Save, step::ShowTab, step::Resize,
                          step::Point, step::Key, step::Type, step::Wait, step::Frames, step::Screenshot, step::Report,
                          step::Expect, step::Close>;

// Error (usage) naming the script, the step by its number, and what is wrong with it. "repeat" is unrolled.
std::vector<Step> parse_script(std::string_view json, const std::string& name);

// Reads a script's file. Errors as parse_script's; also when it cannot be read.
std::vector<Step> load_script(const std::filesystem::path& file);

// Sets the members of `settings` (prompt, length, count, temperature, top_p, seed) in `generation`.
void apply_settings(const nlohmann::json& settings, Choices::Generation& generation);

// The first of `expected` (an object) that `drawn` (likewise) has not, as a sentence; empty when all are there. A value
// is expected to be equal, numbers by value; "*" stands for any.
std::string mismatch(const nlohmann::json& expected, const nlohmann::json& drawn);

}  // namespace turboesm::desktop
