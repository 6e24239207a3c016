#include "apps/desktop/script_runner.h"

#include "runtime/error.h"
#include "runtime/files.h"

namespace turboesm::desktop {
namespace {

constexpr auto kPatience = std::chrono::seconds(100);  // with one step
constexpr int kSettleFrames = 3;                       // until what was asked for is drawn

}  // namespace

void ScriptRunner::fail(const std::string& what) const {
  throw_error(ErrorKind::usage, "the script's step {}: {}", at_ + 1, what);
}

bool ScriptRunner::wants_pixels() const {
  return at_ < steps_.size() && std::holds_alternative<step::Screenshot>(steps_[at_]);
}

void ScriptRunner::after_frame(const std::optional<Image>& pixels) {
  pixels_ = &pixels;
  for (;;) {
    if (at_ == steps_.size()) return;
    if (frames_ == 0) begun_ = std::chrono::steady_clock::now();
    ++frames_;
    if (!std::visit([this](const auto& step) { return run(step); }, steps_[at_])) {
      if (std::chrono::steady_clock::now() - begun_ > kPatience)
        fail(controller_.state.messages.empty() ? "nothing happens" : controller_.state.messages.back().text);
      return;
    }
    ++at_;
    frames_ = 0;
  }
}

bool ScriptRunner::run(const step::ChooseDevice& s) {
  controller_.choose_device(s.device, s.dtype.value_or(controller_.choices.dtype));
  return true;
}

bool ScriptRunner::run(const step::ChoosePreset& s) {
  controller_.choose_preset(s.preset);
  return true;
}

bool ScriptRunner::run(const step::OpenModel& s) {
  controller_.open_model(s.folder);
  return true;
}

bool ScriptRunner::run(const step::Plan& s) {
  controller_.choices.plan = s.plan;
  return true;
}

bool ScriptRunner::run(const step::Generate& s) {
  apply_settings(s.settings, controller_.choices.generation);
  controller_.generate();
  return true;
}

bool ScriptRunner::run(const step::Stop&) {
  controller_.stop();
  return true;
}

bool ScriptRunner::run(const step::Drop& s) {
  controller_.drop(s.path);
  return true;
}

bool ScriptRunner::run(const step::Paste& s) {
  controller_.pasted = s.sequence;
  controller_.map({"pasted", s.sequence});
  return true;
}

bool ScriptRunner::run(const step::Compare& s) {
  const std::vector<Protein> proteins = controller_.proteins();
  if (proteins.empty()) fail("there is no protein to compare caches with");
  controller_.compare(proteins.front(), s.presets);
  return true;
}

bool ScriptRunner::run(const step::Save& s) {
  if (!controller_.state.map) fail("there is no map to save");
  controller_.save(s.path);
  return true;
}

bool ScriptRunner::run(const step::ShowTab& s) {
  if (frames_ == 1) controller_.tab_wanted = s.tab;
  return frames_ > kSettleFrames;
}

bool ScriptRunner::run(const step::Resize& s) {
  if (frames_ == 1) window_.resize(s.width, s.height);
  return frames_ > kSettleFrames && drawn_.values().value("width", 0) == s.width &&
         drawn_.values().value("height", 0) == s.height;
}

bool ScriptRunner::run(const step::Point& s) {
  constexpr int kPress = 3, kRelease = 6;
  const Drawn::Rectangle* place = drawn_.find(s.label);
  if (frames_ == 1) {
    if (!place) fail("nothing is drawn under \"" + s.label + "\"");
    window_.move_mouse({(place->left + place->right) / 2, (place->top + place->bottom) / 2});
  }
  if (s.click && frames_ == kPress) window_.press_mouse(true);
  if (s.click && frames_ == kRelease) window_.press_mouse(false);
  return frames_ > kRelease + kSettleFrames;
}

bool ScriptRunner::run(const step::Key& s) {
  if (frames_ == 1) window_.press_key(s.key, s.control, true);
  if (frames_ == 3) window_.press_key(s.key, s.control, false);
  return frames_ > 3 + kSettleFrames;
}

bool ScriptRunner::run(const step::Type& s) {
  if (frames_ == 1)
    for (const char c : s.text) window_.type(char32_t(c));
  return frames_ > kSettleFrames + int(s.text.size());  // ImGui may take a character a frame
}

bool ScriptRunner::run(const step::Wait& s) {
  if (s.residues) {
    const auto& generation = controller_.state.generation;
    if (generation && generation->drawn >= *s.residues) return true;
    if (controller_.idle()) fail("the generation ended before that many residues were there");
    return false;
  }
  return controller_.idle() && frames_ > kSettleFrames;
}

bool ScriptRunner::run(const step::Frames& s) { return frames_ > s.count; }

// The first frame that this step sees was drawn before it was asked for.
bool ScriptRunner::run(const step::Screenshot& s) {
  if (frames_ < kSettleFrames || !*pixels_) return false;
  write_png(**pixels_, s.path);
  return true;
}

bool ScriptRunner::run(const step::Report& s) {
  if (frames_ < kSettleFrames) return false;
  write_file(s.path, drawn_.values().dump(2) + "\n");
  return true;
}

bool ScriptRunner::run(const step::Expect& s) {
  if (frames_ < kSettleFrames) return false;
  if (const std::string problem = mismatch(s.values, drawn_.values()); !problem.empty()) fail(problem);
  return true;
}

bool ScriptRunner::run(const step::Close&) {
  controller_.closing = true;
  return false;  // nothing follows
}

}  // namespace turboesm::desktop
