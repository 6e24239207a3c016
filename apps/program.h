#pragma once

#include <exception>
#include <new>
#include <optional>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "runtime/error.h"
#include "runtime/platform.h"

// What the programs' main functions share.
namespace turboesm {

// The exit status when the command line says all that is to be done (--help, --version) or is wrong, which has been
// printed by then; none when the program is to go on.
inline std::optional<int> parse_command_line(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool asked_for = error.get_exit_code() == 0;
    app.exit(error);
    return asked_for ? 0 : exit_code(ErrorKind::usage);
  }
  return std::nullopt;
}

// run()'s exit status; what it throws is printed as one line that begins with the program's name.
template <class Run>
int run_program(const char* name, Run&& run) {
  try {
    install_interrupt_handler();
    return run();
  } catch (const Error& error) {
    fmt::print(stderr, "{}: {}\n", name, error.what());
    return exit_code(error.kind());
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "{}: out of memory on the host\n", name);
    return exit_code(ErrorKind::out_of_memory);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: {}\n", name, error.what());
    return 1;
  }
}

}  // namespace turboesm
