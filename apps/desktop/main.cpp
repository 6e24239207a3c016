#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "apps/desktop/app.h"
#include "apps/program.h"
#include "runtime/platform.h"
#include "version.h"

namespace {

int run(int argc, char** argv) {
  CLI::App cli{"See ESM-2 protein language models work on your own GPU, and where its memory goes", "turboesm-desktop"};
  cli.set_version_flag("--version", fmt::format("turboesm-desktop {} ({})", TURBOESM_VERSION, TURBOESM_COMMIT));
  cli.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("turboesm-desktop: {} (see turboesm-desktop --help)\n", error.what());
  });
  turboesm::desktop::AppOptions options;
  std::string script, settings, screenshot, report;
  bool forgetful = false;
  cli.add_option("--script", script, "Steps to take before the user's turn (docs/desktop.md)")->type_name("STEPS.json");
  cli.add_option("--screenshot", screenshot, "Write the last frame as a picture")->type_name("FILE.png");
  cli.add_option("--report", report, "Write every number on the last frame, by label")->type_name("FILE.json");
  cli.add_option("--width", options.window.width, "Of the window")
      ->capture_default_str()
      ->check(CLI::Range(640, 16384));
  cli.add_option("--height", options.window.height, "Of the window")
      ->capture_default_str()
      ->check(CLI::Range(400, 16384));
  cli.add_option("--scale", options.window.scale, "Of text and all sizes (default: the display's)")
      ->check(CLI::Range(0.5, 4.0));
  cli.add_option("--settings", settings, "File that remembers what was chosen (default: in the user's folder for such)")
      ->type_name("FILE");
  cli.add_flag("--no-settings", forgetful, "Start with the defaults, remember nothing");
  cli.add_flag("--validation", options.window.validation, "Vulkan's validation layers watch; a message is an error");
  if (const auto status = turboesm::parse_command_line(cli, argc, argv)) return *status;
  options.screenshot = screenshot;
  options.report = report;
  const std::filesystem::path folder = turboesm::user_config_dir();
  if (!forgetful)
    options.settings = !settings.empty() ? std::filesystem::path(settings)
                       : folder.empty()  ? folder
                                         : folder / "desktop.json";
  if (!script.empty()) options.script = turboesm::desktop::load_script(script);
  turboesm::desktop::run_app(options);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return turboesm::run_program("turboesm-desktop", [&] { return run(argc, argv); });
}
