// The CUDA module is found, or told to be missing or wrong, in one sentence that says what to do.
#include <catch2/catch_test_macros.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/platform.h"
#include "tests/cli/embedding.h"
#include "tests/options.h"

namespace turboesm {
namespace {

using namespace test;
namespace fs = std::filesystem;

// The program and a module of one's own beside it, in a folder where there is no other.
class Installation {
 public:
  Installation() {
    fs::create_directories(folder_ / "bin");
    fs::copy_file(test_options().turboesm_binary, program());
  }
  fs::path program() const { return folder_ / "bin" / "turboesm"; }
  fs::path module() const { return folder_ / "bin" / shared_library_name("turboesm_cuda"); }

  ProcessResult run(const Arguments& arguments) const {
    ProcessOptions options;
    options.program = program().string();
    return test::run(arguments, options);
  }
  void check_cuda_refused(std::initializer_list<std::string_view> words) const {
    check_refusal(run({"plan", "--size", "8M", "--device", "cuda"}), 4, words);
    const nlohmann::json list = nlohmann::json::parse(run({"devices", "--json", "-"}).out);
    std::string problem;
    for (const std::string text : list.at("problems"))
      if (text.starts_with("CUDA: ")) problem = text;
    for (std::string_view word : words) CHECK(problem.find(word) != std::string::npos);
    CHECK(problem.find('\n') == std::string::npos);
  }

 private:
  TemporaryFolder folder_;
};

TEST_CASE("without its module CUDA is said to miss it, and what to do", "[cli]") {
  Installation().check_cuda_refused({"its module is missing", "CUDA toolkit"});
}

TEST_CASE("a module that cannot be loaded is named with the reason", "[cli]") {
  const Installation installation;
  std::ofstream(installation.module()) << "not a library";
  installation.check_cuda_refused({"its module cannot be loaded", installation.module().string()});
}

TEST_CASE("a module of another build is refused", "[cli]") {
  const Installation installation;
  fs::copy_file(TURBOESM_OTHER_MODULE, installation.module());
  installation.check_cuda_refused({"is of another build", "0000000000000001", installation.module().string()});
}

#ifdef TURBOESM_HAS_CUDA_MODULE
TEST_CASE("the module of this build is found; a machine without CUDA is told why it cannot be used", "[cli]") {
  const nlohmann::json list = nlohmann::json::parse(run({"devices", "--json", "-"}).out);
  bool has_cuda = false;
  for (const nlohmann::json& device : list.at("devices"))
    has_cuda |= device.at("spec").get<std::string>().starts_with("cuda:");
  std::string problem;
  for (const std::string text : list.at("problems"))
    if (text.starts_with("CUDA: ")) problem = text;
  INFO(problem);
  CHECK(has_cuda == problem.empty());
  if (has_cuda) return;
  CHECK(problem.find("module") == std::string::npos);
  CHECK(problem.find("NVIDIA") != std::string::npos);
  check_refusal(run({"plan", "--size", "8M", "--device", "cuda"}), 4, {"cuda:0 cannot be used", problem.substr(6)});
}
#endif

TEST_CASE("TF32 is refused where a device does not have it", "[cli]") {
  check_refusal(
      run({"bench", "linear", "--rows", "8", "--inputs", "8", "--outputs", "8", "--dtype", "tf32", "--device", "cpu"}),
      2, {"tf32", "cpu"});
}

}  // namespace
}  // namespace turboesm
