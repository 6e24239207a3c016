#include "apps/desktop/controller.h"

#include <utility>

#include <fmt/format.h>

#include "model/checkpoint.h"

namespace turboesm::desktop {

Controller::Controller(Choices initial, bool validation) : choices(std::move(initial)), worker_(validation) {
  post(command::ListDevices{});
  open();
}

void Controller::update() {
  for (const Event& event : worker_.take_events()) {
    state.apply(event);
    if (const auto* records = std::get_if<event::Records>(&event)) {
      tab_wanted = Tab::substitutions;
      map(records->proteins.front());
    }
    if (std::holds_alternative<event::Finished>(event) && idle() && state.opened) show_opened();
  }
}

// After a choice that could not be opened, what is open is what is chosen.
void Controller::show_opened() {
  const command::Open& asked = state.opened->asked;
  choices.device = asked.device;
  choices.dtype = asked.dtype;
  choices.model = asked.model == default_model_directory() ? "" : asked.model.string();
}

void Controller::post(Command command) {
  ++posted_;
  worker_.post(std::move(command));
}

void Controller::open() {
  if (state.working && state.working->stoppable) stop();
  post(command::Open{choices.device, choices.dtype, model_directory()});
}

std::filesystem::path Controller::model_directory() const {
  return choices.model.empty() ? default_model_directory() : std::filesystem::path(choices.model);
}

void Controller::choose_device(const std::string& spec, const std::string& dtype) {
  choices.device = spec;
  choices.dtype = dtype;
  open();
}

void Controller::choose_preset(const std::string& preset) { choices.preset = preset; }

void Controller::open_model(const std::string& folder) {
  choices.model = folder;
  open();
}

void Controller::generate() {
  const Choices::Generation& g = choices.generation;
  post(command::Generate{choices.preset, g.prompt,
                         GenerateOptions{.prompt = {},
                                         .count = g.count,
                                         .length = g.length,
                                         .temperature = g.temperature,
                                         .top_p = g.top_p,
                                         .seed = g.seed,
                                         .pseudo_perplexity = false}});
}

void Controller::drop(const std::filesystem::path& path) {
  std::error_code ignored;  // what is not there is no folder, and reading it says so
  if (std::filesystem::is_directory(path, ignored))
    open_model(path.string());
  else
    post(command::ReadFasta{path});
}

void Controller::map(const Protein& protein) {
  subject = protein;
  post(command::MapSubstitutions{protein});
}

void Controller::compare(const Protein& protein, const std::vector<std::string>& presets) {
  quality_subject = protein;
  post(command::Compare{protein, presets});
}

void Controller::save(const std::filesystem::path& path) {
  if (state.map) post(command::SaveMap{state.map->map, log_odds, path});
}

std::vector<Protein> Controller::proteins() const {
  std::vector<Protein> all;
  if (subject) all.push_back(*subject);
  if (state.generation && !state.generation->running)
    for (size_t i = 0; i < state.generation->proteins.size(); ++i)
      all.push_back({fmt::format("generated {}", i + 1), state.generation->proteins[i].residues});
  if (state.records)
    for (const Protein& protein : state.records->proteins) all.push_back(protein);
  return all;
}

std::filesystem::path Controller::save_path(const std::string& extension) const {
  if (!save_as.empty()) return std::filesystem::path(save_as).replace_extension(extension);
  std::string name = state.map ? state.map->name : "map";
  for (char& c : name)
    if (std::string_view("/\\:|<>\"?*").find(c) != std::string_view::npos) c = '_';
  return name + extension;
}

const PlanView* Controller::plan_view() {
  if (!state.opened) return nullptr;
  const event::Opened& opened = *state.opened;
  PlanView::Key key{opened.device.spec, opened.dtype,        opened.budget,     choices.plan.size,
                    opened.config,      choices.plan.length, choices.plan.batch};
  if (!plan_view_ || plan_view_->key != key) plan_view_ = make_plan_view(key, opened.device);
  return &*plan_view_;
}

}  // namespace turboesm::desktop
