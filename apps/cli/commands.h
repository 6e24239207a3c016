#pragma once

#include <CLI/CLI.hpp>

namespace turboesm::cli {

// Each declares its command, options and action on `app`. An action throws turboesm::Error.
void add_devices(CLI::App& app);
void add_embed(CLI::App& app);
void add_generate(CLI::App& app);
void add_calibrate(CLI::App& app);
void add_compare(CLI::App& app);
void add_plan(CLI::App& app);
void add_bench(CLI::App& app);

}  // namespace turboesm::cli
