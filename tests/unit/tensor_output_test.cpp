#include "model/tensor_output.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "model/safetensors.h"
#include "tests/unit/files.h"

#ifndef _WIN32
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#endif

namespace turboesm {
namespace {

using test::check_error;

using Names = std::vector<std::string>;

template <class T>
T little_endian(std::string_view bytes, size_t at) {
  T value;
  REQUIRE(at + sizeof(T) <= bytes.size());
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

// The members of a zip file by name, by its central directory; every one must be stored.
std::map<std::string, std::string> read_zip(const std::string& zip) {
  const size_t end = zip.rfind("PK\5\6");
  REQUIRE(end != std::string::npos);
  size_t count = little_endian<uint16_t>(zip, end + 10);
  size_t at = little_endian<uint32_t>(zip, end + 16);
  std::map<std::string, std::string> members;
  for (; count > 0; --count) {
    REQUIRE(zip.substr(at, 4) == "PK\1\2");
    CHECK(little_endian<uint16_t>(zip, at + 10) == 0);  // method: stored
    const size_t size = little_endian<uint32_t>(zip, at + 24);
    const size_t name = little_endian<uint16_t>(zip, at + 28);
    const size_t extra = little_endian<uint16_t>(zip, at + 30);
    const size_t local = little_endian<uint32_t>(zip, at + 42);
    const size_t data =
        local + 30 + little_endian<uint16_t>(zip, local + 26) + little_endian<uint16_t>(zip, local + 28);
    members[zip.substr(at + 46, name)] = zip.substr(data, size);
    at += 46 + name + extra;
  }
  return members;
}

// The bytes of an .npy file's array, whose header must say `header`.
std::string npy_data(const std::string& npy, std::string_view header) {
  CHECK(npy.substr(0, 8) == std::string_view("\x93NUMPY\1\0", 8));
  const size_t data = 10 + size_t(little_endian<uint16_t>(npy, 8));
  CHECK(data % 64 == 0);
  CHECK(npy[data - 1] == '\n');
  CHECK(npy.substr(10, header.size()) == header);
  CHECK(npy.substr(10 + header.size(), data - 11 - header.size()).find_first_not_of(' ') == std::string::npos);
  return npy.substr(data);
}

std::string bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

const std::vector<float> kSix = {1, 2, 3, 4, 5, -6.5f};

void write_example(const std::filesystem::path& path) {
  TensorOutput output = open_tensor_output(path);
  const std::array<uint64_t, 2> shape = {2, 3};
  output.append_rows("mean", 3, std::span(kSix).first(3));
  output.add("residues/sp|P1|\"q\"", shape, kSix);
  output.append_rows("mean", 3, std::span(kSix));
  const std::array<uint64_t, 2> none = {0, 3};
  output.add("residues/none", none, {});
  output.add("scalar", {}, std::span(kSix).last(1));
  output.append_rows("no rows", 5, {});
  output.finish({{"ids", "[\"P1\", \"\u00e9\"]"}, {"empty", ""}});
}

TEST_CASE("a safetensors output is read back", "[unit][tensor_output]") {
  const test::TemporaryFolder folder;
  write_example(folder / "out.safetensors");
  CHECK(folder.list() == Names{"out.safetensors"});
  const SafetensorsFile file = SafetensorsFile::open(folder / "out.safetensors");
  const auto data = [&](std::string_view name) {
    const TensorEntry* entry = file.find(name);
    REQUIRE(entry);
    CHECK(entry->dtype == FileDType::f32);
    return std::string(reinterpret_cast<const char*>(entry->data.data()), entry->data.size());
  };
  CHECK(file.names().size() == 5);
  CHECK(data("residues/sp|P1|\"q\"") == bytes_of(kSix));
  CHECK(data("mean") == bytes_of({1, 2, 3, 1, 2, 3, 4, 5, -6.5f}));
  CHECK(file.find("mean")->shape == std::vector<uint64_t>{3, 3});
  CHECK(file.find("no rows")->shape == std::vector<uint64_t>{0, 5});
  CHECK(file.find("residues/none")->shape == std::vector<uint64_t>{0, 3});
  CHECK(file.find("scalar")->shape.empty());
  CHECK(file.metadata().at("ids") == "[\"P1\", \"\u00e9\"]");
  CHECK(file.metadata().at("empty").empty());
  CHECK(little_endian<uint64_t>(test::read_file(folder / "out.safetensors"), 0) % 8 == 0);
}

TEST_CASE("an npz output holds the arrays as numpy writes them", "[unit][tensor_output]") {
  const test::TemporaryFolder folder;
  write_example(folder / "out.npz");
  CHECK(folder.list() == Names{"out.npz"});
  auto members = read_zip(test::read_file(folder / "out.npz"));
  CHECK(members.size() == 7);
  const auto header = [](std::string_view descr, std::string_view shape) {
    return fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", descr, shape);
  };
  CHECK(npy_data(members["residues/sp|P1|\"q\".npy"], header("<f4", "2, 3")) == bytes_of(kSix));
  CHECK(npy_data(members["mean.npy"], header("<f4", "3, 3")) == bytes_of({1, 2, 3, 1, 2, 3, 4, 5, -6.5f}));
  CHECK(npy_data(members["residues/none.npy"], header("<f4", "0, 3")).empty());
  CHECK(npy_data(members["no rows.npy"], header("<f4", "0, 5")).empty());
  CHECK(npy_data(members["scalar.npy"], header("<f4", "")) == bytes_of({-6.5f}));
  CHECK(npy_data(members["metadata/ids.npy"], header("<U11", "")).substr(0, 8) == std::string("[\0\0\0\"\0\0\0", 8));
  CHECK(npy_data(members["metadata/ids.npy"], header("<U11", "")).substr(32, 4) == std::string("\xe9\0\0\0", 4));
  CHECK(npy_data(members["metadata/empty.npy"], header("<U1", "")) == std::string(4, '\0'));
}

TEST_CASE("one dimension is written as Python's tuple of one", "[unit][tensor_output]") {
  const test::TemporaryFolder folder;
  TensorOutput output(folder / "out.npz");
  const uint64_t shape[] = {6};
  output.add("a", shape, kSix);
  output.finish({});
  auto members = read_zip(test::read_file(folder / "out.npz"));
  npy_data(members["a.npy"], "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }");
}

TEST_CASE("equal data makes equal files", "[unit][tensor_output]") {
  const test::TemporaryFolder folder;
  for (const char* name : {"a.npz", "b.npz", "a.safetensors", "b.safetensors"}) write_example(folder / name);
  CHECK(test::read_file(folder / "a.npz") == test::read_file(folder / "b.npz"));
  CHECK(test::read_file(folder / "a.safetensors") == test::read_file(folder / "b.safetensors"));
}

TEST_CASE("without finish() nothing is left and an older file stays", "[unit][tensor_output]") {
  for (std::string name : {"out.safetensors", "out.npz"}) {
    const test::TemporaryFolder folder;
    folder.write(name, "older");
    {
      TensorOutput output(folder / name);
      const uint64_t shape[] = {6};
      output.add("a", shape, kSix);
      output.append_rows("b", 3, kSix);
      CHECK(folder.list().size() > 1);
    }
    CHECK(folder.list() == Names{name});
    CHECK(test::read_file(folder / name) == "older");
    write_example(folder / name);
    CHECK(folder.list() == Names{name});
    CHECK(test::read_file(folder / name) != "older");
  }
}

TEST_CASE("outputs that cannot be are refused at once", "[unit][tensor_output]") {
  const test::TemporaryFolder folder;
  const auto refuses = [](ErrorKind kind, const std::filesystem::path& path,
                          std::initializer_list<std::string_view> parts) {
    check_error(kind, parts, [&] { TensorOutput output(path); });
  };
  refuses(ErrorKind::usage, "-", {"standard output"});
  refuses(ErrorKind::usage, folder / "out.h5", {"out.h5", ".safetensors or .npz"});
  refuses(ErrorKind::usage, folder / "npz", {".safetensors or .npz"});
  std::filesystem::create_directory(folder / "folder.npz");
  refuses(ErrorKind::input, folder / "folder.npz", {"folder.npz", "directory"});
  for (const char* name : {"no/such/out.npz", "no/such/out.safetensors"})
    refuses(ErrorKind::input, folder / name, {name, "cannot write", "No such file"});
  CHECK(folder.list() == Names{"folder.npz"});
}

TEST_CASE("names and shapes must make sense", "[unit][tensor_output]") {
  const test::TemporaryFolder folder;
  TensorOutput output(folder / "out.safetensors");
  const uint64_t six[] = {6};
  const uint64_t wrong[] = {2, 2};
  const uint64_t overflow[] = {uint64_t(1) << 63, 2, 6};
  const uint64_t zero[] = {0, 6};
  output.add("a", six, kSix);
  output.append_rows("rows", 3, kSix);
  check_error(ErrorKind::usage, {"two tensors", "\"a\""}, [&] { output.add("a", six, kSix); });
  check_error(ErrorKind::usage, {"two tensors", "\"a\""}, [&] { output.append_rows("a", 6, kSix); });
  check_error(ErrorKind::usage, {"two tensors", "\"rows\""}, [&] { output.add("rows", six, kSix); });
  check_error(ErrorKind::usage, {"\"b\"", "[2, 2]", "6 values"}, [&] { output.add("b", wrong, kSix); });
  CHECK_THROWS_AS(output.add("b", overflow, kSix), Error);
  CHECK_THROWS_AS(output.add("b", zero, kSix), Error);
  CHECK_THROWS_AS(output.add("b", six, {}), Error);
  CHECK_THROWS_AS(output.add("__metadata__", six, kSix), Error);
  check_error(ErrorKind::usage, {"\"c\"", "6 values", "4 columns"}, [&] { output.append_rows("c", 4, kSix); });
  check_error(ErrorKind::usage, {"\"rows\"", "3 columns", "rows of 2"}, [&] { output.append_rows("rows", 2, kSix); });
  CHECK_THROWS_AS(output.append_rows("d", 0, {}), Error);
  output.finish({});
  CHECK_THROWS_AS(output.add("late", six, kSix), Error);
  CHECK_THROWS_AS(output.finish({}), Error);
  CHECK(SafetensorsFile::open(folder / "out.safetensors").names() == std::vector<std::string_view>{"a", "rows"});
}

TEST_CASE("bytes that are not UTF-8 are replaced", "[unit][tensor_output]") {
  CHECK(valid_utf8("plain \u00e9 \u20ac \U0001F9EC") == "plain \u00e9 \u20ac \U0001F9EC");
  CHECK(valid_utf8("a\xff"
                   "b") == "a\uFFFDb");
  CHECK(valid_utf8("\xc3") == "\uFFFD");
  CHECK(valid_utf8("\xc3(") == "\uFFFD(");
  CHECK(valid_utf8("\xe2\x82") == "\uFFFD\uFFFD");
  CHECK(valid_utf8("\xc0\x80") == "\uFFFD\uFFFD");            // overlong
  CHECK(valid_utf8("\xe0\x80\x80") == "\uFFFD\uFFFD\uFFFD");  // overlong
  CHECK(valid_utf8("\xed\xa0\x80") == "\uFFFD\uFFFD\uFFFD");  // surrogate
  CHECK(valid_utf8("\xf4\x90\x80\x80").size() == 12);         // beyond U+10FFFF
  CHECK(valid_utf8(std::string_view("a\0b", 3)) == "a\uFFFDb");

  const test::TemporaryFolder folder;
  const uint64_t shape[] = {6};
  for (const char* name : {"out.safetensors", "out.npz"}) {
    TensorOutput output(folder / name);
    output.add("n\xe9", shape, kSix);
    output.finish({{"k\xff", "v\xff"}});
  }
  const SafetensorsFile file = SafetensorsFile::open(folder / "out.safetensors");
  CHECK(file.find("n\uFFFD"));
  CHECK(file.metadata().at("k\uFFFD") == "v\uFFFD");
  CHECK(read_zip(test::read_file(folder / "out.npz")).contains("n\uFFFD.npy"));
}

#ifndef _WIN32

// Runs `action` in a child process that may write no file beyond `limit` bytes, as on a full disk; the message of the
// Error that it ends with, nothing when it ends without one.
template <class Action>
std::optional<std::string> message_with_file_limit(uint64_t limit, const std::filesystem::path& result, Action action) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);  // the write fails with EFBIG instead
    const rlimit file_limit{limit, limit};
    setrlimit(RLIMIT_FSIZE, &file_limit);
    try {
      action();
    } catch (const Error& error) {
      std::ofstream(result) << error.what();
      _exit(exit_code(error.kind()));
    }
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 0) return std::nullopt;
  CHECK(WEXITSTATUS(status) == 3);
  return test::read_file(result);
}

TEST_CASE("a full disk is an error wherever it strikes and leaves nothing", "[unit][tensor_output]") {
  const test::TemporaryFolder folder;
  const test::TemporaryFolder results;
  const std::vector<float> values(5000, 1.5f);
  for (std::string name : {"out.safetensors", "out.npz"}) {
    size_t failures = 0;
    // Limits from the first byte to beyond the end: 20 kB of tensors, then 40 kB of rows, headers and a directory.
    std::vector<uint64_t> limits = {400, 20000, 40000, 60000, 60100, 60400, 60600, 60800, 61000, 200000};
    for (uint64_t limit : limits) {
      const auto message = message_with_file_limit(limit, results / "message", [&] {
        TensorOutput output(folder / name);
        const uint64_t shape[] = {50, 100};
        output.add("a", shape, values);
        output.append_rows("b", 100, values);
        output.append_rows("b", 100, values);
        output.finish({{"key", "value"}});
      });
      INFO("limit " << limit);
      if (message) {
        ++failures;
        INFO(*message);
        CHECK(message->find(name) != std::string::npos);
        CHECK(message->find("cannot write: File too large") != std::string::npos);
        CHECK(folder.list().empty());
      } else {
        CHECK(folder.list() == Names{name});
        std::filesystem::remove(folder / name);
      }
    }
    CHECK(failures >= 4);
    CHECK(failures < limits.size());
  }
}

TEST_CASE("a folder without write permission is refused at once", "[unit][tensor_output]") {
  const test::TemporaryFolder folder;
  const test::TemporaryFolder results;
  std::filesystem::permissions(folder.path(), std::filesystem::perms(0555));
  std::filesystem::permissions(results.path(), std::filesystem::perms(0777));
  const auto message = message_with_file_limit(1000, results / "message", [&] {
    if (getuid() == 0 && setuid(65534) != 0) _exit(99);  // root may write anywhere
    TensorOutput output(folder / "out.npz");
  });
  std::filesystem::permissions(folder.path(), std::filesystem::perms(0755));
  REQUIRE(message);
  CHECK(message->find("out.npz: cannot write in its folder: Permission denied") != std::string::npos);
}

#endif

}  // namespace
}  // namespace turboesm
