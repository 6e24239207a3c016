#pragma once

#include <filesystem>
#include <string>

namespace turboesm {

// What the tests are run with, from the test program's own options (main.cpp).
struct TestOptions {
  std::string device = "cpu";        // --device SPEC: cpu, vulkan, vulkan:1, ...
  bool validation = true;            // --no-validation turns Vulkan's validation layers off
  bool large = true;                 // --no-large leaves out the shapes that only GPUs are asked for
  uint32_t every = 1;                // --every N: only every Nth conformance case, as for a sanitizer
  bool arbitrary_products = false;   // --arbitrary-products: DeviceOptions::arbitrary_products
  std::string turboesm_binary;       // --binary FILE: the program under test; default: beside the test program
  std::string desktop_binary;        // --desktop-binary FILE: turboesm-desktop; default: beside the test program
  std::filesystem::path source_dir;  // --source-dir DIR: the project's root; default: where it was configured
};

const TestOptions& test_options();

}  // namespace turboesm
