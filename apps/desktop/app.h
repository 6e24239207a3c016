#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "apps/desktop/script.h"
#include "apps/desktop/window.h"

namespace turboesm::desktop {

struct AppOptions {
  WindowOptions window;
  std::filesystem::path settings;            // where choices are remembered; empty: nowhere
  std::vector<Step> script;                  // then the user's turn, unless it closes the window
  std::filesystem::path screenshot, report;  // of the last frame; empty: none
};

// Opens the window and runs until it is closed. Errors: device when there is no window to be had or, with validation,
// when the layers said anything; usage when the script expected something else than what it met.
void run_app(const AppOptions& options);

}  // namespace turboesm::desktop
