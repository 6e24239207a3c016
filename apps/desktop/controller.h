#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/desktop/choices.h"
#include "apps/desktop/plan_view.h"
#include "apps/desktop/state.h"
#include "apps/desktop/worker.h"

namespace turboesm::desktop {

enum class Tab { plan, generate, substitutions, quality };
inline constexpr std::string_view kTabNames[] = {"plan", "generate", "substitutions", "quality"};

// What the user, or a script, can do, and what is chosen. Knows no window.
class Controller {
 public:
  Controller(Choices choices, bool validation);

  // Takes in what the worker has to say; once a frame.
  void update();

  void choose_device(const std::string& spec, const std::string& dtype);
  void choose_preset(const std::string& preset);
  void open_model(const std::string& folder);  // empty: the one that ships
  void generate();                             // with choices.generation
  void stop() { worker_.stop(); }
  void drop(const std::filesystem::path& path);  // a model folder or a FASTA file
  void map(const Protein& protein);
  void compare(const Protein& protein, const std::vector<std::string>& presets);
  void save(const std::filesystem::path& path);  // the map: .png or .csv

  // save_as, or a name made from the protein's, with this extension.
  std::filesystem::path save_path(const std::string& extension) const;

  bool idle() const { return posted_ == state.finished; }
  std::filesystem::path model_directory() const;
  const PlanView* plan_view();  // null: no device is open

  // What is on the screen and can be compared: the mapped protein, generated ones, the file's.
  std::vector<Protein> proteins() const;

  Choices choices;
  State state;
  bool closing = false;  // the window, after this frame
  Tab tab = Tab::plan;
  std::optional<Tab> tab_wanted;           // for the next frame
  bool log_odds = true;                    // what the substitution map shows; else logits
  std::string pasted;                      // sequence
  std::string save_as;                     // file for the map, whatever its extension
  std::optional<Protein> subject;          // what is mapped
  std::optional<Protein> quality_subject;  // what is compared

 private:
  void post(Command command);
  void open();
  void show_opened();

  Worker worker_;
  uint64_t posted_ = 0;
  std::optional<PlanView> plan_view_;
};

}  // namespace turboesm::desktop
