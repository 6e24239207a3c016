#include <algorithm>

#include <catch2/catch_session.hpp>

#include "runtime/platform.h"
#include "tests/options.h"

namespace turboesm {
namespace {

// Catch2 gives test cases no argument, so what the command line said has to be reachable from everywhere; it is set
// once, before the first test runs.
TestOptions& mutable_options() {
  static TestOptions options;
  return options;
}

}  // namespace

const TestOptions& test_options() { return mutable_options(); }

}  // namespace turboesm

int main(int argc, char** argv) {
  using namespace Catch::Clara;
  turboesm::TestOptions& options = turboesm::mutable_options();
  const auto test_program = turboesm::executable_path();
  options.source_dir = TURBOESM_SOURCE_DIR;
  const auto beside = [&](const char* name) {
    return (test_program.parent_path() / name).replace_extension(test_program.extension()).string();
  };
  options.turboesm_binary = beside("turboesm");
  options.desktop_binary = beside("turboesm-desktop");

  Catch::Session session;
  bool no_validation = false, no_large = false;
  std::string source_dir = options.source_dir.string();
  session.cli(session.cli() |
              Opt(options.device, "SPEC")["--device"]("device that conformance and golden tests run on") |
              Opt(no_validation)["--no-validation"]("without Vulkan's validation layers") |
              Opt(no_large)["--no-large"]("without the large shapes that only GPUs are asked for, as for a sanitizer") |
              Opt(options.every, "N")["--every"]("only every Nth conformance case, as for a sanitizer") |
              Opt(options.arbitrary_products)["--arbitrary-products"](
                  "CUDA: compute products in arbitrary ways rather than the fastest") |
              Opt(options.turboesm_binary, "FILE")["--binary"]("the turboesm program that the cli tests run") |
              Opt(options.desktop_binary, "FILE")["--desktop-binary"]("the turboesm-desktop that its tests run") |
              Opt(source_dir, "DIR")["--source-dir"]("the project's root, for fixtures and the default model"));
  if (const int status = session.applyCommandLine(argc, argv); status != 0) return status;
  options.every = std::max(options.every, 1u);
  options.validation = !no_validation;
  options.large = !no_large;
  options.source_dir = source_dir;
  return session.run();
}
