#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "apps/desktop/image.h"
#include "tests/cli/process.h"

// Runs turboesm-desktop as its users do, in a window on a display that nobody sees (Xvfb). POSIX only.
namespace turboesm::test {

// Starts the display when it is first called, for as long as the test program runs; DISPLAY names it from then on.
void require_display();

// A script's steps, and arguments beside those that every run has: no settings, a small window, the validation layers.
ProcessResult run_desktop(const nlohmann::json& steps, const std::vector<std::string>& arguments = {},
                          const std::string& program = {});

// The same where all must go well: exit code 0 and nothing on standard error.
void run_desktop_well(const nlohmann::json& steps, const std::vector<std::string>& arguments = {});

nlohmann::json read_json(const std::filesystem::path& file);

// Reads what write_png() writes.
desktop::Image read_png(const std::filesystem::path& file);

// Distinct colours; a blank picture has one.
size_t colours(const desktop::Image& image);

}  // namespace turboesm::test
