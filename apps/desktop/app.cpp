#include "apps/desktop/app.h"

#include <fmt/format.h>

#define GLFW_INCLUDE_NONE
#include <GLFW/glfw3.h>

#include "apps/desktop/script_runner.h"
#include "apps/desktop/ui.h"
#include "runtime/error.h"
#include "runtime/files.h"
#include "runtime/platform.h"

namespace turboesm::desktop {
namespace {

void handle_shortcuts(Window& window, Controller& controller) {
  for (const auto& [key, control] : window.take_keys()) {
    if (key == GLFW_KEY_ESCAPE) controller.stop();
    if (!control) continue;
    if (key >= GLFW_KEY_1 && key <= GLFW_KEY_4) controller.tab_wanted = Tab(key - GLFW_KEY_1);
    if (key == GLFW_KEY_ENTER && controller.state.opened && !controller.state.working) {
      controller.tab_wanted = Tab::generate;
      controller.generate();
    }
    if (key == GLFW_KEY_S) controller.save(controller.save_path(".png"));
    if (key == GLFW_KEY_Q) controller.closing = true;
  }
}

void check_messages(Window& window) {
  const std::vector<std::string> messages = window.take_messages();
  if (!messages.empty())
    throw_error(ErrorKind::device, "Vulkan validation of the window: {} messages, the first: {}", messages.size(),
                messages.front());
}

// What was chosen is worth keeping, but no reason not to end in order.
void remember(const Choices& choices, const Choices& before, const std::filesystem::path& file) {
  if (file.empty() || choices == before) return;
  try {
    save_choices(choices, file);
  } catch (const Error& error) {
    fmt::print(stderr, "turboesm-desktop: {}\n", error.what());
  }
}

}  // namespace

void run_app(const AppOptions& options) {
  const Choices remembered = options.settings.empty() ? Choices{} : load_choices(options.settings);
  Window window(options.window);
  Controller controller(remembered, options.window.validation);
  Drawn drawn;
  Ui ui{controller, drawn, window.scale()};
  ScriptRunner script(options.script, window, controller, drawn);
  for (;;) {
    const bool last = window.close_requested() || interrupted() || controller.closing;
    controller.update();
    drawn.recorded = !script.done() || !options.report.empty();
    window.begin_frame(controller.state.working.has_value() || !script.done());
    for (const std::filesystem::path& path : window.take_dropped()) controller.drop(path);
    handle_shortcuts(window, controller);
    draw_interface(ui);
    const bool capture = script.wants_pixels() || (last && !options.screenshot.empty());
    const std::optional<Image> pixels = window.end_frame(capture);
    check_messages(window);
    if (last && (!capture || pixels)) {
      if (pixels && !options.screenshot.empty()) write_png(*pixels, options.screenshot);
      if (!options.report.empty()) write_file(options.report, drawn.values().dump(2) + "\n");
      break;
    }
    if (!last) script.after_frame(pixels);
  }
  remember(controller.choices, remembered, options.settings);
}

}  // namespace turboesm::desktop
