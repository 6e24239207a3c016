#include <catch2/catch_test_macros.hpp>

#include "tests/cli/embedding.h"

namespace turboesm {
namespace {

using namespace test;

TEST_CASE("embed on a Vulkan device agrees with the CPU", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", random_fasta({70, 33}));
  const Arguments include{"--include", "mean,residues,logits"};
  const Embedding expected = embed(folder, input, include);

  const std::filesystem::path output = folder / "vulkan.safetensors";
  const ProcessResult result = run(Arguments{"embed", input.string(), "-o", output.string(), "--device", "vulkan:0",
                                             "--model", tiny_model().string()} +
                                   include);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(result.err.find("took vulkan:0") != std::string::npos);
  const SafetensorsFile file = SafetensorsFile::open(output);
  CHECK(file.metadata().find("device")->second.starts_with("vulkan:0 "));
  for (std::string_view name : expected.file.names()) {
    INFO(name);
    const golden::Values values = golden::read_floats(file, std::string(name));
    const golden::Values cpu = expected.values(std::string(name));
    CHECK(values.shape == cpu.shape);
    CHECK(relative_error(values.data, cpu.data) <= 5e-5);
  }
}

}  // namespace
}  // namespace turboesm
