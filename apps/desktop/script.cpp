#include "apps/desktop/script.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <utility>

#include "runtime/dtype.h"
#include "runtime/error.h"

namespace turboesm::desktop {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostSteps = 100000;

// GLFW's numbers of keys that are no characters; those that are have their capital's.
constexpr std::pair<std::string_view, int> kKeys[] = {
    {"Space", 32}, {"Escape", 256}, {"Enter", 257}, {"Tab", 258},  {"Backspace", 259}, {"Right", 262},
    {"Left", 263}, {"Down", 264},   {"Up", 265},    {"Home", 268}, {"End", 269},
};

// One step, with what is known of where it stands for its errors.
class Reader {
 public:
  Reader(const Json& value, std::string where) : value_(value), where_(std::move(where)) {}

  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw_error(ErrorKind::usage, "{}: {}", where_, fmt::format(format, std::forward<Args>(args)...));
  }

  std::string text() const {
    if (!value_.is_string()) fail("a text is expected, not {}", value_.dump());
    return value_.get<std::string>();
  }
  uint64_t count(uint64_t least, uint64_t most) const {
    if (!value_.is_number_unsigned() || value_.get<uint64_t>() < least || value_.get<uint64_t>() > most)
      fail("a whole number from {} to {} is expected, not {}", least, most, value_.dump());
    return value_.get<uint64_t>();
  }
  const Json& object(std::initializer_list<std::string_view> keys) const {
    if (!value_.is_object()) fail("an object is expected, not {}", value_.dump());
    for (const auto& [key, ignored] : value_.items())
      if (keys.size() && std::ranges::find(keys, key) == keys.end()) fail("it has no \"{}\"", key);
    return value_;
  }
  Reader at(const std::string& key) const { return {value_.at(key), where_ + ", \"" + key + "\""}; }
  bool has(const char* key) const { return value_.is_object() && value_.contains(key); }
  const Json& value() const { return value_; }

 private:
  const Json& value_;
  std::string where_;
};

std::string preset_of(const Reader& r) {
  const std::string name = r.text();
  const auto presets = kv_presets();
  if (std::ranges::find(presets, name, &KvPresetRow::name) == presets.end()) r.fail("there is no preset {}", name);
  return name;
}

Step read_key(const Reader& r) {
  std::string name = r.text();
  const std::string_view control = "Ctrl+";
  step::Key key{0, name.starts_with(control)};
  if (key.control) name.erase(0, control.size());
  const auto* known = std::ranges::find(kKeys, name, &std::pair<std::string_view, int>::first);
  if (known != std::end(kKeys))
    key.key = known->second;
  else if (name.size() == 1 && ((name[0] >= 'A' && name[0] <= 'Z') || (name[0] >= '0' && name[0] <= '9')))
    key.key = name[0];
  else
    r.fail("there is no key {}; write A to Z, 0 to 9, Enter, Tab, Escape, Space, an arrow's name, with Ctrl+ before it",
           name);
  return key;
}

Step read_plan(const Reader& r) {
  r.object({"size", "length", "batch"});
  step::Plan plan;
  if (r.has("size")) plan.plan.size = r.at("size").text();
  const auto sizes = official_sizes();
  if (!plan.plan.size.empty() && std::ranges::find(sizes, plan.plan.size) == sizes.end())
    r.fail("there is no official size {}", plan.plan.size);
  if (r.has("length")) plan.plan.length = uint32_t(r.at("length").count(2, kLongestPlan));
  if (r.has("batch")) plan.plan.batch = uint32_t(r.at("batch").count(1, kLargestPlanBatch));
  return plan;
}

Step read_generate(const Reader& r) {
  r.object({"prompt", "length", "count", "temperature", "top_p", "seed"});
  if (r.has("prompt")) r.at("prompt").text();
  if (r.has("length")) r.at("length").count(1, kLongestGeneration);
  if (r.has("count")) r.at("count").count(1, kLargestCount);
  if (r.has("seed")) r.at("seed").count(0, ~0u);
  for (const char* key : {"temperature", "top_p"})
    if (r.has(key) && !r.at(key).value().is_number()) r.at(key).fail("a number is expected");
  return step::Generate{r.value()};
}

Step read_device(const Reader& r) {
  if (r.value().is_string()) return step::ChooseDevice{r.text(), std::nullopt};
  r.object({"device", "dtype"});
  step::ChooseDevice choice{r.has("device") ? r.at("device").text() : "auto", std::nullopt};
  if (r.has("dtype")) choice.dtype = r.at("dtype").text();
  if (choice.dtype && !parse_dtype(*choice.dtype)) r.fail("there is no dtype {}", *choice.dtype);
  return choice;
}

Step read_compare(const Reader& r) {
  if (r.value().is_string()) return step::Compare{{preset_of(r)}};
  if (!r.value().is_array()) r.fail("a preset or an array of presets is expected");
  step::Compare compare;
  for (const Json& item : r.value()) compare.presets.push_back(preset_of(Reader(item, "compare")));
  return compare;
}

Step read_save(const Reader& r) {
  const std::filesystem::path path = r.text();
  if (path.extension() != ".png" && path.extension() != ".csv") r.fail("a name that ends in .png or .csv is expected");
  return step::Save{path};
}

Step read_tab(const Reader& r) {
  const std::string name = r.text();
  const auto* found = std::ranges::find(kTabNames, name);
  if (found == std::end(kTabNames))
    r.fail("there is no tab {}; there are plan, generate, substitutions, quality", name);
  return step::ShowTab{Tab(found - std::begin(kTabNames))};
}

Step read_resize(const Reader& r) {
  if (!r.value().is_array() || r.value().size() != 2 || !r.value()[0].is_number_unsigned() ||
      !r.value()[1].is_number_unsigned())
    r.fail("[width, height] is expected, not {}", r.value().dump());
  return step::Resize{r.value()[0].get<int>(), r.value()[1].get<int>()};
}

Step read_wait(const Reader& r) {
  if (r.value() == "idle") return step::Wait{};
  r.object({"residues"});
  if (!r.has("residues")) r.fail("\"idle\" or {{\"residues\": N}} is expected");
  return step::Wait{r.at("residues").count(1, 1u << 30)};
}

using ReadStep = Step (*)(const Reader&);
constexpr std::pair<std::string_view, ReadStep> kSteps[] = {
    {"choose_device", read_device},
    {"choose_preset", [](const Reader& r) -> Step { return step::ChoosePreset{preset_of(r)}; }},
    {"open_model", [](const Reader& r) -> Step { return step::OpenModel{r.text()}; }},
    {"plan", read_plan},
    {"generate", read_generate},
    {"stop", [](const Reader&) -> Step { return step::Stop{}; }},
    {"drop", [](const Reader& r) -> Step { return step::Drop{r.text()}; }},
    {"paste", [](const Reader& r) -> Step { return step::Paste{r.text()}; }},
    {"compare", read_compare},
    {"save", read_save},
    {"tab", read_tab},
    {"resize", read_resize},
    {"hover",
     [](const Reader& r) -> Step {
       return step::Point{r.text(), false};
     }},
    {"click",
     [](const Reader& r) -> Step {
       return step::Point{r.text(), true};
     }},
    {"key", read_key},
    {"type", [](const Reader& r) -> Step { return step::Type{r.text()}; }},
    {"wait", read_wait},
    {"frames", [](const Reader& r) -> Step { return step::Frames{int(r.count(1, 10000))}; }},
    {"screenshot", [](const Reader& r) -> Step { return step::Screenshot{r.text()}; }},
    {"report", [](const Reader& r) -> Step { return step::Report{r.text()}; }},
    {"expect", [](const Reader& r) -> Step { return step::Expect{r.object({})}; }},
    {"close", [](const Reader&) -> Step { return step::Close{}; }},
};

void read_steps(const Json& json, const std::string& where, std::vector<Step>& steps);

void read_repeat(const Reader& r, const std::string& where, std::vector<Step>& steps) {
  r.object({"times", "steps"});
  if (!r.has("times") || !r.has("steps")) r.fail("it needs \"times\" and \"steps\"");
  const uint64_t times = r.at("times").count(1, kMostSteps);
  for (uint64_t i = 0; i < times; ++i) {
    read_steps(r.value()["steps"], where, steps);
    if (steps.size() > kMostSteps) r.fail("more than {} steps", kMostSteps);
  }
}

void read_steps(const Json& json, const std::string& where, std::vector<Step>& steps) {
  if (!json.is_array()) throw_error(ErrorKind::usage, "{}: an array of steps is expected", where);
  for (size_t i = 0; i < json.size(); ++i) {
    const std::string step_name = fmt::format("{}: step {}", where, i + 1);
    if (!json[i].is_object() || json[i].size() != 1)
      throw_error(ErrorKind::usage, "{}: an object with one key, the step's name, is expected, not {}", step_name,
                  json[i].dump());
    const std::string name = json[i].begin().key();
    const Reader reader(json[i].begin().value(), fmt::format("{}, \"{}\"", step_name, name));
    if (name == "repeat") {
      read_repeat(reader, step_name, steps);
      continue;
    }
    const auto* found = std::ranges::find(kSteps, name, &std::pair<std::string_view, ReadStep>::first);
    if (found == std::end(kSteps)) throw_error(ErrorKind::usage, "{}: there is no step \"{}\"", step_name, name);
    steps.push_back(found->second(reader));
  }
}

}  // namespace

std::vector<Step> parse_script(std::string_view json, const std::string& name) {
  Json parsed;
  try {
    parsed = Json::parse(json);
  } catch (const Json::parse_error& error) {
    throw_error(ErrorKind::usage, "{}: not JSON: {}", name, error.what());
  }
  std::vector<Step> steps;
  read_steps(parsed, name, steps);
  return steps;
}

std::vector<Step> load_script(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw_error(ErrorKind::usage, "{}: the script cannot be read", file.string());
  return parse_script(std::string(std::istreambuf_iterator<char>(stream), {}), file.string());
}

void apply_settings(const Json& settings, Choices::Generation& g) {
  g.prompt = settings.value("prompt", g.prompt);
  g.length = settings.value("length", g.length);
  g.count = settings.value("count", g.count);
  g.seed = settings.value("seed", g.seed);
  g.temperature = settings.value("temperature", g.temperature);
  g.top_p = settings.value("top_p", g.top_p);
}

std::string mismatch(const Json& expected, const Json& drawn) {
  for (const auto& [label, value] : expected.items()) {
    if (!drawn.contains(label)) return fmt::format("\"{}\" is not drawn", label);
    if (value != "*" && drawn[label] != value)
      return fmt::format("\"{}\" is {}, not {}", label, drawn[label].dump(), value.dump());
  }
  return {};
}

}  // namespace turboesm::desktop
