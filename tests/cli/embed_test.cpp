// What `embed` writes, and that how the input is packed, compressed, spelled or batched does not change it.
#include <zlib.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/cli/embedding.h"

namespace turboesm {
namespace {

using namespace test;
using nlohmann::json;
using Shape = std::vector<uint64_t>;

constexpr uint64_t kHidden = 64;  // of tiny_hd32

// As random_fasta() names them.
std::vector<size_t> mixed_lengths() { return {33, 1, 200, 64, 0, 5, 150, 31, 32, 90}; }

TEST_CASE("embed writes every result in its documented shape", "[cli]") {
  const std::string model = GENERATE("tiny_hd24", "tiny_hd32", "tiny_hd64", "tiny_hd128");
  INFO(model);
  const TemporaryFolder folder;
  const std::filesystem::path output = folder / "out.safetensors";
  const ProcessResult result =
      run({"embed", folder.write("in.fasta", random_fasta({7, 40, 0})).string(), "-o", output.string(), "--device",
           "cpu", "--model", tiny_model(model).string(), "--include", "mean,residues,logits,bos,contacts"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(result.out.empty());

  const SafetensorsFile file = SafetensorsFile::open(output);
  const uint64_t hidden = load_config(tiny_model(model) / "config.json").hidden;
  const auto shape = [&](const std::string& name) {
    INFO(name);
    REQUIRE(file.find(name));
    CHECK(file.find(name)->dtype == FileDType::f32);
    CHECK(std::ranges::all_of(golden::read_floats(file, name).data, [](float value) { return std::isfinite(value); }));
    return file.find(name)->shape;
  };
  CHECK(shape("mean") == Shape{3, hidden});
  CHECK(shape("bos") == Shape{3, hidden});
  const uint64_t lengths[] = {7, 40, 0};
  for (size_t i = 0; i < 3; ++i) {
    const std::string id = fmt::format("r{}", i);
    CHECK(shape("residues/" + id) == Shape{lengths[i], hidden});
    CHECK(shape("logits/" + id) == Shape{lengths[i], 33});
    CHECK(shape("contacts/" + id) == Shape{lengths[i], lengths[i]});
  }
  CHECK(file.tensors().size() == 2 + 3 * 3);
}

TEST_CASE("means are the means of residues, and contacts are symmetric probabilities", "[cli]") {
  const TemporaryFolder folder;
  const Embedding result = embed_text(folder, random_fasta({21}), {"--include", "mean,residues,contacts"});
  const std::vector<float> mean = result.row("mean", 0);
  const golden::Values residues = result.values("residues/r0");
  std::vector<float> expected(kHidden);
  for (size_t i = 0; i < residues.data.size(); ++i) expected[i % kHidden] += residues.data[i] / 21;
  CHECK(relative_error(mean, expected) < 1e-5);

  const std::vector<float> contacts = result.values("contacts/r0").data;
  for (size_t i = 0; i < 21; ++i)
    for (size_t k = 0; k < 21; ++k) {
      CHECK(contacts[i * 21 + k] > 0);
      CHECK(contacts[i * 21 + k] < 1);
      CHECK(std::abs(contacts[i * 21 + k] - contacts[k * 21 + i]) < 1e-5f);
    }
}

TEST_CASE("records keep the input's order and do not depend on their batch", "[cli]") {
  const TemporaryFolder folder;
  const std::vector<size_t> lengths = mixed_lengths();
  const std::string fasta = random_fasta(lengths);
  const Embedding all = embed_text(folder, fasta, {"--include", "mean,residues"});
  CHECK(all.metadata("ids") == json{"r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9"});
  for (size_t i = 0, begin = 0; i < lengths.size(); ++i) {
    const size_t end = std::min(fasta.size(), fasta.find('>', begin + 1));
    const Embedding alone = embed_text(folder, fasta.substr(begin, end - begin), {"--include", "mean,residues"});
    begin = end;
    INFO("record " << i << " of " << lengths[i] << " residues");
    CHECK(relative_error(all.row("mean", i), alone.row("mean", 0)) <= 1e-6);
    const std::string residues = fmt::format("residues/r{}", i);
    CHECK(relative_error(all.values(residues).data, alone.values(residues).data) <= 1e-6);
  }
}

TEST_CASE("the batch budget changes the batches, not the results", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", random_fasta(mixed_lengths()));
  const Embedding once = embed(folder, input, {"--include", "mean,logits", "--json", "-"});
  CHECK(json::parse(once.process.out).at("report").at("batches") == 1);
  for (const auto& [max_tokens, batches] : {std::pair("1", 10), {"100", 6}, {"250", 3}}) {
    INFO("--max-tokens " << max_tokens);
    const Arguments arguments{"--include", "mean,logits", "--max-tokens", max_tokens, "--json", "-"};
    const Embedding split = embed(folder, input, arguments);
    CHECK(json::parse(split.process.out).at("report").at("batches") == batches);
    CHECK(split.file.names() == once.file.names());
    for (std::string_view name : once.file.names())
      CHECK(relative_error(split.values(std::string(name)).data, once.values(std::string(name)).data) <= 1e-6);
  }
}

TEST_CASE("the metadata says where the numbers come from", "[cli]") {
  const TemporaryFolder folder;
  const Embedding result = embed_text(folder, ">a b c\nMKT\n>d\nMK\n", {"--max-length", "100", "--overlong", "skip"});
  CHECK(result.metadata("ids") == json{"a", "d"});
  CHECK(result.metadata("include") == json{"mean"});
  CHECK(result.metadata("layers") == json{-1});
  CHECK(result.metadata("truncated") == json::array());
  CHECK(result.metadata("skipped") == json::array());
  const auto text = [&](const char* key) { return result.file.metadata().find(key)->second; };
  CHECK(text("model") == "tiny_hd32");
  CHECK(text("model_hash") == Checkpoint::open(tiny_model()).hash());
  CHECK(text("dtype") == "f32");
  CHECK(text("device").starts_with("cpu "));
  CHECK(text("max_length") == "100");
  CHECK(text("overlong") == "skip");
  CHECK(!text("turboesm_version").empty());
}

TEST_CASE("ids that occur twice are told apart, loudly", "[cli]") {
  const TemporaryFolder folder;
  const Embedding result =
      embed_text(folder, ">A\nMKT\n>B\nMKV\n>A\nMKL\n>A#2\nMKA\n>A\nMKG\n", {"--include", "mean,residues", "--quiet"});
  CHECK(result.metadata("ids") == json{"A", "B", "A#2", "A#2#2", "A#3"});
  for (const char* name : {"residues/A", "residues/B", "residues/A#2", "residues/A#2#2", "residues/A#3"})
    CHECK(result.file.find(name));
  CHECK(result.process.err.starts_with("warning: "));
  CHECK(result.process.err.find("A#2") != std::string::npos);
}

TEST_CASE("several layers are named by their numbers", "[cli]") {
  const TemporaryFolder folder;
  const std::string fasta = random_fasta({9, 12});
  const Embedding several = embed_text(folder, fasta, {"--layers", "0,1,-1", "--include", "mean,bos,residues"});
  for (const char* layer : {"0", "1", "2"}) {
    INFO("layer " << layer);
    const Embedding one = embed_text(folder, fasta, {"--layers", layer, "--include", "mean,bos,residues"});
    CHECK(several.values(fmt::format("mean.{}", layer)).data == one.values("mean").data);
    CHECK(several.values(fmt::format("bos.{}", layer)).data == one.values("bos").data);
    CHECK(several.values(fmt::format("residues.{}/r1", layer)).data == one.values("residues/r1").data);
  }
  CHECK(several.file.tensors().size() == 3 * 4);
  CHECK(several.metadata("layers") == json{0, 1, -1});
}

TEST_CASE("a layer that the model has not, or twice, is a usage error", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", ">a\nMKT\n");
  for (const char* layers : {"3", "-4", "2,-1"}) {
    const std::filesystem::path output = folder / "out.npz";
    check_refusal(run(embed_arguments(input, output) + Arguments{"--quiet", "--layers", layers}), 2, {"--layers"});
    CHECK(folder.list() == std::vector<std::string>{"in.fasta"});
  }
}

TEST_CASE("sequences over --max-length are cut, and this is said", "[cli]") {
  const TemporaryFolder folder;
  const Embedding cut = embed_text(folder, ">short\nMKTAY\n>long\nMKTAYIAKQR\n>edge\nMKTAYIA\n",
                                   {"--max-length", "7", "--include", "mean,residues", "--quiet"});
  const Embedding by_hand =
      embed_text(folder, ">short\nMKTAY\n>long\nMKTAYIA\n>edge\nMKTAYIA\n", {"--include", "mean,residues"});
  check_equal(cut.file, by_hand.file);
  CHECK(cut.metadata("truncated") == json{"long"});
  CHECK(cut.process.err.starts_with("warning: "));
  CHECK(cut.process.err.find("long") != std::string::npos);
  CHECK(cut.process.err.find("edge") == std::string::npos);
}

TEST_CASE("sequences over --max-length are left out with --overlong skip", "[cli]") {
  const TemporaryFolder folder;
  const Arguments skip{"--max-length", "5", "--overlong", "skip", "--quiet", "--json", "-"};
  const Embedding result = embed_text(folder, ">a\nMKTAY\n>long\nMKTAYI\n>b\nMK\n", skip);
  check_equal(result.file, embed_text(folder, ">a\nMKTAY\n>b\nMK\n").file);
  CHECK(result.metadata("ids") == json{"a", "b"});
  CHECK(result.metadata("skipped") == json{"long"});
  CHECK(result.process.err.find("long") != std::string::npos);
  CHECK(json::parse(result.process.out).at("report").at("skipped") == json{"long"});

  const Embedding nothing = embed_text(folder, ">long\nMKTAYI\n", skip);
  CHECK(nothing.values("mean").shape == Shape{0, kHidden});
}

TEST_CASE("a compressed FASTA gives what the plain one gives", "[cli]") {
  const TemporaryFolder folder;
  const std::string fasta = random_fasta(mixed_lengths());
  const std::filesystem::path packed = folder / "in.fasta.gz";
  const gzFile gzip = gzopen(packed.c_str(), "wb");
  REQUIRE(gzip);
  REQUIRE(gzwrite(gzip, fasta.data(), unsigned(fasta.size())) == int(fasta.size()));
  REQUIRE(gzclose(gzip) == Z_OK);
  check_equal(embed(folder, packed).file, embed_text(folder, fasta).file);
}

TEST_CASE("- is standard input", "[cli]") {
  const TemporaryFolder folder;
  const std::string fasta = random_fasta({30, 12});
  check_equal(embed(folder, "-", {}, {.input = fasta}).file, embed_text(folder, fasta).file);
}

TEST_CASE("spelling that means the same protein gives the same numbers", "[cli]") {
  const TemporaryFolder folder;
  const Embedding plain = embed_text(folder, ">a\nMKTAYIAKQRQISFVK\n>b\nMKV\n", {"--include", "mean,residues"});
  const char* spelling = GENERATE(">a\nmktayiakqrqisfvk\n>b\nmkv\n",                           // soft-masked
                                  ">a\nMKTAY IAKQR\tQISFVK \n>b\nM K V\n",                     // spaced
                                  ">a\nMKTAYI\nAKQRQI\nSFVK\n\n>b\nMK\nV\n",                   // wrapped
                                  ">a\nMKTAYIAKQRQISFVK*\n>b\nMKV*\n",                         // with stop codons
                                  ">a\r\nMKTAYIA\r\nKQRQISFVK\r\n>b\r\nMKV\r\n",               // from Windows
                                  "\xEF\xBB\xBF>a first\n;comment\nMKTAYIAKQRQISFVK\n>b\nMKV"  // no end of line
  );
  INFO(spelling);
  check_equal(embed_text(folder, spelling, {"--include", "mean,residues"}).file, plain.file);
}

TEST_CASE("stops are counted: at the end dropped, inside unknown", "[cli]") {
  const TemporaryFolder folder;
  const Embedding result = embed_text(folder, ">a\nMKT*\n>b\nMK*VA\n", {"--include", "residues", "--json", "-"});
  CHECK(result.values("residues/a").shape == Shape{3, kHidden});
  CHECK(result.values("residues/b").shape == Shape{5, kHidden});
  const json report = json::parse(result.process.out).at("report");
  CHECK(report.at("stops") == 1);
  CHECK(report.at("unknown") == 1);
  CHECK(result.process.err.find("warning: 1 residue unknown") != std::string::npos);
}

TEST_CASE("a record longer than the batch budget and one of no residues are embedded", "[cli]") {
  const TemporaryFolder folder;
  const std::string fasta = random_fasta({300, 0, 20});
  const Embedding result = embed_text(folder, fasta, {"--max-tokens", "64", "--include", "mean,residues"});
  CHECK(result.values("residues/r0").shape == Shape{300, kHidden});
  CHECK(result.values("residues/r1").shape == Shape{0, kHidden});
  CHECK(result.row("mean", 1) == std::vector<float>(kHidden, 0.0f));
  check_equal(result.file, embed_text(folder, fasta, {"--max-tokens", "100000", "--include", "mean,residues"}).file);
}

TEST_CASE("the report counts what was done", "[cli]") {
  const TemporaryFolder folder;
  const Embedding result = embed_text(folder, random_fasta({10, 20}), {"--json", "-"});
  const json all = json::parse(result.process.out);
  CHECK(std::filesystem::path(std::string(all.at("output"))) == result.file.path());
  CHECK(all.at("device").at("spec") == "cpu");
  CHECK(all.at("memory").at("weights").at("peak") > 0);
  CHECK(all.at("memory").at("activations").at("peak") > 0);
  const json& report = all.at("report");
  CHECK(report.at("records") == 2);
  CHECK(report.at("residues") == 30);
  CHECK(report.at("batches") == 1);
  CHECK(report.at("halved") == 0);
  CHECK(report.at("seconds") > 0);
  for (const char* list : {"truncated", "skipped", "renamed"}) CHECK(report.at(list) == json::array());
}

TEST_CASE("progress is drawn on a terminal and nowhere else; --quiet says nothing", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", random_fasta({10, 20}));
  const Embedding piped = embed(folder, input);
  CHECK(piped.process.err.find("took cpu") != std::string::npos);
  CHECK(piped.process.err.find('\r') == std::string::npos);

  const Embedding seen = embed(folder, input, {}, {.terminal = true});
  CHECK(seen.process.err.find("residues/s") != std::string::npos);
  CHECK(seen.process.err.find("\r[") != std::string::npos);

  CHECK(embed(folder, input, {"--quiet"}).process.err.empty());
  CHECK(embed(folder, input, {"--quiet"}, {.terminal = true}).process.err.empty());
}

TEST_CASE("f16 and bf16 come close to f32", "[cli]") {
  const TemporaryFolder folder;
  const std::string fasta = random_fasta({80, 33});
  const Embedding exact = embed_text(folder, fasta);
  CHECK(relative_error(embed_text(folder, fasta, {"--dtype", "f16"}).values("mean").data, exact.values("mean").data) <=
        5e-3);
  CHECK(relative_error(embed_text(folder, fasta, {"--dtype", "bf16"}).values("mean").data, exact.values("mean").data) <=
        2e-2);
}

TEST_CASE("without --model the one that ships is used", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path output = folder / "out.safetensors";
  const ProcessResult result =
      run({"embed", folder.write("in.fasta", random_fasta({10})).string(), "-o", output.string(), "--device", "cpu"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const SafetensorsFile file = SafetensorsFile::open(output);
  CHECK(file.find("mean")->shape == Shape{1, 384});
  CHECK(file.metadata().find("model")->second == "swissprot_t8_14M");
}

}  // namespace
}  // namespace turboesm
