#include "apps/desktop/choices.h"

#include <algorithm>
#include <fstream>

#include <nlohmann/json.hpp>

#include "model/config.h"
#include "runtime/dtype.h"
#include "runtime/files.h"

namespace turboesm::desktop {
namespace {

using Json = nlohmann::json;

void read(const Json& json, const char* key, std::string& value) {
  if (json.contains(key) && json[key].is_string()) value = json[key].get<std::string>();
}

template <class T>
void read(const Json& json, const char* key, T& value, T least, T most) {
  if (json.contains(key) && json[key].is_number())
    value = T(std::clamp(json[key].get<double>(), double(least), double(most)));
}

Json part(const Json& json, const char* key) {
  return json.contains(key) && json[key].is_object() ? json[key] : Json::object();
}

}  // namespace

Choices load_choices(const std::filesystem::path& file) {
  std::ifstream stream(file);
  const Json json = Json::parse(stream, nullptr, /*allow_exceptions=*/false);
  Choices choices;
  if (!json.is_object()) return choices;
  read(json, "device", choices.device);
  read(json, "dtype", choices.dtype);
  read(json, "model", choices.model);
  read(json, "preset", choices.preset);
  const Json plan = part(json, "plan"), generation = part(json, "generation");
  read(plan, "size", choices.plan.size);
  read(plan, "length", choices.plan.length, 2u, kLongestPlan);
  read(plan, "batch", choices.plan.batch, 1u, kLargestPlanBatch);
  read(generation, "prompt", choices.generation.prompt);
  read(generation, "length", choices.generation.length, 1u, kLongestGeneration);
  read(generation, "count", choices.generation.count, 1u, kLargestCount);
  read(generation, "seed", choices.generation.seed, 0u, ~0u);
  read(generation, "temperature", choices.generation.temperature, 0.0f, 4.0f);
  read(generation, "top_p", choices.generation.top_p, 0.01f, 1.0f);

  const Choices first;
  if (!parse_dtype(choices.dtype)) choices.dtype = first.dtype;
  const auto presets = kv_presets();
  if (std::ranges::find(presets, choices.preset, &KvPresetRow::name) == presets.end()) choices.preset = first.preset;
  const auto sizes = official_sizes();
  if (!choices.plan.size.empty() && std::ranges::find(sizes, choices.plan.size) == sizes.end())
    choices.plan.size = first.plan.size;
  return choices;
}

void save_choices(const Choices& choices, const std::filesystem::path& file) {
  std::error_code ignored;  // writing says what is wrong
  std::filesystem::create_directories(file.parent_path(), ignored);
  const Json json{
      {"device", choices.device},
      {"dtype", choices.dtype},
      {"model", choices.model},
      {"preset", choices.preset},
      {"plan", {{"size", choices.plan.size}, {"length", choices.plan.length}, {"batch", choices.plan.batch}}},
      {"generation",
       {{"prompt", choices.generation.prompt},
        {"length", choices.generation.length},
        {"count", choices.generation.count},
        {"seed", choices.generation.seed},
        {"temperature", choices.generation.temperature},
        {"top_p", choices.generation.top_p}}}};
  write_file(file, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace turboesm::desktop
