// FASTA files and outputs that cannot be: one sentence, exit code 3, nothing left behind.
#include <zlib.h>

#include <catch2/catch_test_macros.hpp>

#include "tests/cli/embedding.h"

namespace turboesm {
namespace {

using namespace test;

// `embed` of a file of these bytes is refused; the sentence names the file and has all of `parts` in it.
void check_refused(std::string_view bytes, std::initializer_list<std::string_view> parts) {
  const TemporaryFolder folder;
  check_embed_refused(folder.write("proteins.fasta", bytes), tiny_model(), 3, parts);
}

std::string gzip(const std::string& text) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "x.gz";
  const gzFile file = gzopen(path.c_str(), "wb");
  REQUIRE(file);
  REQUIRE(gzwrite(file, text.data(), unsigned(text.size())) == int(text.size()));
  REQUIRE(gzclose(file) == Z_OK);
  return read_file(path);
}

TEST_CASE("bad input: an empty file", "[cli]") { check_refused("", {"proteins.fasta", "empty"}); }

TEST_CASE("bad input: sequence without a header", "[cli]") {
  check_refused("MKTAYIAKQR\n", {"proteins.fasta", "line 1", "'>'"});
  check_refused("\n\nMKT\n>a\nMKT\n", {"proteins.fasta", "line 3", "'>'"});
}

TEST_CASE("bad input: no sequences", "[cli]") {
  check_refused("\n  \n; a comment\n", {"proteins.fasta", "no FASTA record"});
}

TEST_CASE("bad input: a residue that is no letter names record and position", "[cli]") {
  check_refused(">fine\nMKT\n>broken\nMKT1AY\n", {"broken", "'1'", "position 4"});
  check_refused(">fine\nMKT\n>broken\nMKTAY\nIA@\n", {"broken", "'@'", "position 8"});
  check_refused(">accent\nMK\xC3\xA9\n", {"accent", "0xC3", "position 3"});
}

TEST_CASE("bad input: a bad residue far behind is found all the same", "[cli]") {
  check_refused(random_fasta(std::vector<size_t>(500, 30)) + ">last\nMK?\n", {"last", "'?'", "position 3"});
}

TEST_CASE("bad input: binary data", "[cli]") {
  check_refused(std::string("\177ELF\2\1\1\0\0\0", 10), {"proteins.fasta", "0x7F"});
  check_refused(std::string(">a\nMKT\0MKT\n", 11), {"proteins.fasta", "line 2", "0x00"});
  check_refused(read_file(tiny_model() / "model.safetensors"), {"proteins.fasta", "not text"});
}

TEST_CASE("bad input: gzip that is cut off", "[cli]") {
  const std::string whole = gzip(random_fasta({300, 400}));
  for (size_t length : {size_t(5), whole.size() / 2, whole.size() - 1}) {
    INFO("cut to " << length << " of " << whole.size() << " bytes");
    check_refused(whole.substr(0, length), {"proteins.fasta", "gzip", "cut off"});
  }
}

TEST_CASE("bad input: gzip that is damaged", "[cli]") {
  std::string checksum = gzip(random_fasta({300, 400}));
  checksum[checksum.size() - 6] ^= 1;
  check_refused(checksum, {"proteins.fasta", "gzip", "damaged"});
  std::string method = gzip(random_fasta({10}));
  method[2] = 7;
  check_refused(method, {"proteins.fasta", "gzip", "damaged"});
}

TEST_CASE("bad input: a file that is not there", "[cli]") {
  check_embed_refused("/nowhere/missing.fasta", tiny_model(), 3, {"/nowhere/missing.fasta", "No such file"});
}

TEST_CASE("bad input: a directory", "[cli]") {
  const TemporaryFolder folder;
  check_embed_refused(folder.path(), tiny_model(), 3, {folder.path().string(), "directory"});
}

TEST_CASE("bad input: nothing on standard input", "[cli]") {
  const TemporaryFolder folder;
  check_refusal(run(embed_arguments("-", folder / "out.npz")), 3, {"standard input", "empty"});
  CHECK(folder.list().empty());
}

TEST_CASE("bad output: a folder that is not there", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", ">a\nMKT\n");
  for (const char* name : {"missing/out.safetensors", "missing/out.npz"})
    check_refusal(run(embed_arguments(input, folder / name)), 3, {name});
  CHECK(folder.list() == std::vector<std::string>{"in.fasta"});
}

TEST_CASE("bad output: a directory", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", ">a\nMKT\n");
  for (const char* name : {"folder.safetensors", "folder.npz"}) {
    std::filesystem::create_directory(folder / name);
    check_refusal(run(embed_arguments(input, folder / name)), 3, {name, "directory"});
    CHECK(std::filesystem::is_empty(folder / name));
  }
  CHECK(folder.list().size() == 3);
}

TEST_CASE("bad output: a format that is not known", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", ">a\nMKT\n");
  check_refusal(run(embed_arguments(input, folder / "out.h5")), 2, {"out.h5", ".safetensors", ".npz"});
  check_refusal(run(embed_arguments(input, "-")), 2, {"standard output"});
  CHECK(folder.list() == std::vector<std::string>{"in.fasta"});
}

TEST_CASE("a failed run leaves an older result as it was", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", ">a\nMKT\n>b\nMK1\n");
  for (const char* name : {"out.safetensors", "out.npz"}) {
    folder.write(name, "older");
    CHECK(run(embed_arguments(input, folder / name)).exit_code == 3);
    CHECK(read_file(folder / name) == "older");
  }
  CHECK(folder.list().size() == 3);
}

}  // namespace
}  // namespace turboesm
