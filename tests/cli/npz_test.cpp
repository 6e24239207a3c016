// The .npz output, taken apart with the reader of the zip library and a reader of .npy of our own.
#include <minizip/unzip.h>

#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <memory>
#include <set>

#include "tests/cli/embedding.h"

namespace turboesm {
namespace {

using namespace test;

// A zip file's members, each checked against its CRC when it is read to its end.
class Zip {
 public:
  explicit Zip(const std::filesystem::path& path) : file_(unzOpen64(path.c_str()), unzClose) { REQUIRE(file_); }

  std::set<std::string> names() const {
    std::set<std::string> names;
    for (int code = unzGoToFirstFile(file_.get()); code == UNZ_OK; code = unzGoToNextFile(file_.get()))
      names.insert(current().first);
    return names;
  }

  std::string read(const std::string& name) const {
    INFO(name);
    REQUIRE(unzLocateFile(file_.get(), name.c_str(), 1) == UNZ_OK);
    REQUIRE(unzOpenCurrentFile(file_.get()) == UNZ_OK);
    std::string bytes(current().second, '\0');
    CHECK(unzReadCurrentFile(file_.get(), bytes.data(), unsigned(bytes.size())) == int(bytes.size()));
    CHECK(unzCloseCurrentFile(file_.get()) == UNZ_OK);
    return bytes;
  }

 private:
  std::pair<std::string, size_t> current() const {
    unz_file_info64 info{};
    char name[256] = {};
    REQUIRE(unzGetCurrentFileInfo64(file_.get(), &info, name, sizeof(name), nullptr, 0, nullptr, 0) == UNZ_OK);
    return {name, size_t(info.uncompressed_size)};
  }

  std::unique_ptr<void, int (*)(unzFile)> file_;
};

// An .npy file: its header's text and its data.
std::pair<std::string, std::string> split_npy(const std::string& npy) {
  REQUIRE(npy.starts_with("\x93NUMPY\x01"));
  uint16_t length = 0;
  std::memcpy(&length, npy.data() + 8, sizeof(length));
  return {npy.substr(10, length), npy.substr(10 + size_t(length))};
}

TEST_CASE("npz holds the same arrays as safetensors", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path input = folder.write("in.fasta", random_fasta({12, 0, 33}));
  const Arguments include{"--include", "mean,residues,logits,bos,contacts"};
  const Embedding expected = embed(folder, input, include);
  const ProcessResult result = run(embed_arguments(input, folder / "out.npz") + include);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);

  const Zip zip(folder / "out.npz");
  std::set<std::string> names;
  for (const auto& [name, tensor] : expected.file.tensors()) {
    names.insert(name + ".npy");
    const auto [header, data] = split_npy(zip.read(name + ".npy"));
    CHECK(header.find("'descr': '<f4'") != std::string::npos);
    CHECK(header.find("'fortran_order': False") != std::string::npos);
    CHECK(header.find(fmt::format("'shape': ({}, {})", tensor.shape[0], tensor.shape[1])) != std::string::npos);
    CHECK(std::ranges::equal(as_bytes(data), tensor.data));
  }
  for (const auto& [key, text] : expected.file.metadata()) {
    names.insert("metadata/" + key + ".npy");
    const auto [header, data] = split_npy(zip.read("metadata/" + key + ".npy"));
    CHECK(header.find("'descr': '<U") != std::string::npos);
    std::string read;  // from UTF-32, of which these texts use ASCII only
    for (size_t i = 0; i < data.size(); i += 4) read += data[i];
    CHECK(read == text);
  }
  CHECK(zip.names() == names);
}

}  // namespace
}  // namespace turboesm
