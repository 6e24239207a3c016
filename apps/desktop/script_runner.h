#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "apps/desktop/drawn.h"
#include "apps/desktop/script.h"
#include "apps/desktop/window.h"

namespace turboesm::desktop {

// Takes a script's steps one after another between frames. Errors: usage when a step cannot be done or what it expects
// is not there.
class ScriptRunner {
 public:
  ScriptRunner(std::vector<Step> steps, Window& window, Controller& controller, const Drawn& drawn)
      : steps_(std::move(steps)), window_(window), controller_(controller), drawn_(drawn) {
    if (!steps_.empty()) window_.move_mouse({-1, -1});  // the pointer of whoever watches does not matter
  }

  bool done() const { return at_ == steps_.size(); }
  // Whether the frame that is about to be drawn is to be handed to after_frame().
  bool wants_pixels() const;
  void after_frame(const std::optional<Image>& pixels);

 private:
  // Whether a step is done; one that is not is asked again after the next frame.
  bool run(const step::ChooseDevice& s);
  bool run(const step::ChoosePreset& s);
  bool run(const step::OpenModel& s);
  bool run(const step::Plan& s);
  bool run(const step::Generate& s);
  bool run(const step::Stop& s);
  bool run(const step::Drop& s);
  bool run(const step::Paste& s);
  bool run(const step::Compare& s);
  bool run(const step::Save& s);
  bool run(const step::ShowTab& s);
  bool run(const step::Resize& s);
  bool run(const step::Point& s);
  bool run(const step::Key& s);
  bool run(const step::Type& s);
  bool run(const step::Wait& s);
  bool run(const step::Frames& s);
  bool run(const step::Screenshot& s);
  bool run(const step::Report& s);
  bool run(const step::Expect& s);
  bool run(const step::Close& s);
  [[noreturn]] void fail(const std::string& what) const;

  std::vector<Step> steps_;
  Window& window_;
  Controller& controller_;
  const Drawn& drawn_;
  size_t at_ = 0;
  int frames_ = 0;  // that the present step has seen
  std::chrono::steady_clock::time_point begun_{};
  const std::optional<Image>* pixels_ = nullptr;
};

}  // namespace turboesm::desktop
