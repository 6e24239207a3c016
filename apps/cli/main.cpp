#include <string>
#include <vector>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "apps/cli/commands.h"
#include "apps/program.h"
#include "version.h"

namespace {

// One line, as every other error is. What stands where no command or option can be says more than what is missing.
std::string usage_message(const CLI::App* app, const CLI::Error& error) {
  const auto code = CLI::ExitCodes(error.get_exit_code());
  const std::vector<std::string> unknown = app->remaining(/*recurse=*/true);
  const bool stray = !unknown.empty() && (code == CLI::ExitCodes::RequiredError || code == CLI::ExitCodes::ExtrasError);
  const std::string what = stray ? fmt::format("'{}' is no command or option here", unknown.front()) : error.what();
  return fmt::format("turboesm: {} (see turboesm --help and turboesm COMMAND --help)\n", what);
}

int run(int argc, char** argv) {
  CLI::App app{"ESM-2 protein language models on any GPU: Vulkan, CUDA, or the CPU", "turboesm"};
  app.set_version_flag("--version", fmt::format("turboesm {} ({})", TURBOESM_VERSION, TURBOESM_COMMIT));
  app.failure_message(usage_message);
  app.require_subcommand(1);
  turboesm::cli::add_devices(app);
  turboesm::cli::add_embed(app);
  turboesm::cli::add_generate(app);
  turboesm::cli::add_calibrate(app);
  turboesm::cli::add_compare(app);
  turboesm::cli::add_plan(app);
  turboesm::cli::add_bench(app);
  return turboesm::parse_command_line(app, argc, argv).value_or(0);  // commands run while they are parsed
}

}  // namespace

int main(int argc, char** argv) {
  return turboesm::run_program("turboesm", [&] { return run(argc, argv); });
}
