// What happens when something runs out: memory, the disk, the user's patience.
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/cli/embedding.h"

namespace turboesm {
namespace {

using namespace test;
using nlohmann::json;

TEST_CASE("a batch that does not fit in memory is halved, with equal results", "[cli]") {
  // A token takes 9 vectors of 64 floats: residual stream, its norm, q, k and v twice, last state. 608,000 take 1.4 GB.
  constexpr uint64_t kMemory = uint64_t(1) << 30;
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", random_fasta(std::vector<size_t>(4000, 150)));
  const Embedding expected = embed(folder, input, {"--json", "-"});
  CHECK(json::parse(expected.process.out).at("report").at("halved") == 0);

  const Embedding halved = embed(folder, input, {"--max-tokens", "1000000", "--threads", "2", "--json", "-"},
                                 {.memory_bytes = kMemory});  // each thread's stack and heap reserve addresses, too
  const json report = json::parse(halved.process.out).at("report");
  CHECK(report.at("halved") >= 1);
  CHECK(report.at("batches") >= 2);
  CHECK(report.at("records") == 4000);
  CHECK(halved.process.err.find("halved") != std::string::npos);
  CHECK(relative_error(halved.values("mean").data, expected.values("mean").data) <= 1e-6);
}

TEST_CASE("a record that does not fit in memory alone is named", "[cli]") {
  const TemporaryFolder folder, input;
  // Attention maps of 2 heads x 20,002^2 floats take 3.2 GB.
  const std::filesystem::path fasta = input.write("in.fasta", ">small\nMKT\n>huge\n" + std::string(20000, 'A') + "\n");
  for (const char* name : {"out.safetensors", "out.npz"}) {
    check_refusal(
        run(embed_arguments(fasta, folder / name) + Arguments{"--include", "contacts", "--threads", "2", "--quiet"},
            {.memory_bytes = uint64_t(2) << 30}),
        4, {"huge", "20000 residues", "memory"});
    CHECK(folder.list().empty());
  }
}

TEST_CASE("a full disk is an error that names the output and leaves nothing", "[cli]") {
  const TemporaryFolder folder, input;
  const std::filesystem::path fasta = input.write("in.fasta", random_fasta({500, 400}));  // 230 kB of residues
  for (const char* name : {"out.safetensors", "out.npz"})
    for (uint64_t limit : {1000, 100'000, 230'000}) {
      INFO(name << " with room for " << limit << " bytes");
      check_refusal(run(embed_arguments(fasta, folder / name) + Arguments{"--include", "residues", "--quiet"},
                        {.file_bytes = limit}),
                    3, {name, "cannot write", "File too large"});
      CHECK(folder.list().empty());
    }
}

TEST_CASE("Ctrl-C ends a run soon, with nothing written and an older result kept", "[cli]") {
  const TemporaryFolder folder, input;
  const std::filesystem::path fasta = input.write("in.fasta", random_fasta(std::vector<size_t>(1000, 300)));
  for (const char* name : {"out.safetensors", "out.npz"}) {
    INFO(name);
    folder.write(name, "older");
    // The default model takes ten seconds and more.
    Process process({"embed", fasta.string(), "-o", (folder / name).string(), "--device", "cpu"});
    REQUIRE(process.wait_for_message("took cpu"));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    CHECK(folder.list().size() > 1);  // it is writing aside
    process.interrupt();
    const ProcessResult result = process.finish();
    INFO(result.err);
    CHECK(result.exit_code == 130);
    CHECK(result.err.find("turboesm: interrupted") != std::string::npos);
    CHECK(result.out.empty());
    CHECK(folder.list() == std::vector<std::string>{name});
    CHECK(read_file(folder / name) == "older");
    std::filesystem::remove(folder / name);
  }
}

}  // namespace
}  // namespace turboesm
