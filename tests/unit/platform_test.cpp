#include "runtime/platform.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "tests/unit/files.h"

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#endif

namespace turboesm {
namespace {

using test::check_error;

TEST_CASE("a mapped file has the file's bytes, also after a move", "[unit][platform]") {
  const test::TemporaryFolder folder;
  const std::string content("bytes\0with a zero", 17);
  MappedFile first = MappedFile::open(folder.write("file", content));
  const MappedFile second = std::move(first);
  REQUIRE(second.bytes().size() == content.size());
  CHECK(std::memcmp(second.bytes().data(), content.data(), content.size()) == 0);
  CHECK(first.bytes().empty());
}

#ifdef __linux__
TEST_CASE("a process's memory is its own or that of files, and the peak stays", "[unit][platform]") {
  constexpr uint64_t kSize = 64 << 20, kSlack = 8 << 20;
  const test::TemporaryFolder folder;
  const ProcessMemory before = process_memory();
  {
    std::vector<char> own(kSize, 'x');
    const ProcessMemory with = process_memory();
    CHECK(with.own > before.own + kSize - kSlack);
    CHECK(with.mapped < before.mapped + kSlack);
    folder.write("file", std::string_view(own.data(), own.size()));
  }
  CHECK(process_memory().own < before.own + kSlack);
  CHECK(process_memory().peak > before.own + before.mapped + kSize - kSlack);
  const MappedFile file = MappedFile::open(folder / "file");
  CHECK(process_memory().mapped < before.mapped + kSlack);
  CHECK(std::ranges::count(file.bytes(), std::byte('x')) == kSize);
  CHECK(process_memory().mapped > before.mapped + kSize - kSlack);
}
#endif

TEST_CASE("what cannot be mapped is named", "[unit][platform]") {
  const test::TemporaryFolder folder;
  check_error(ErrorKind::input, {"missing.bin", "cannot open"}, [&] { MappedFile::open(folder / "missing.bin"); });
  check_error(ErrorKind::input, {folder.path().string(), "directory"}, [&] { MappedFile::open(folder.path()); });
  CHECK(MappedFile::open(folder.write("empty", "")).bytes().empty());
#ifndef _WIN32
  check_error(ErrorKind::input, {"/dev/null", "not a regular file"}, [] { MappedFile::open("/dev/null"); });
#endif
}

TEST_CASE("the program finds itself", "[unit][platform]") {
  CHECK(std::filesystem::is_regular_file(executable_path()));
  CHECK(executable_path().is_absolute());
}

TEST_CASE("what the user chose is kept apart from what can be made again", "[unit][platform]") {
  CHECK(user_config_dir() != user_cache_dir());
  CHECK(user_config_dir().is_absolute());
}

TEST_CASE("unique siblings lie beside the file and differ", "[unit][platform]") {
  const test::TemporaryFolder folder;
  const auto a = unique_sibling(folder / std::string(255, 'n'));
  const auto b = unique_sibling(folder / "n");
  CHECK(a.parent_path() == folder.path());
  CHECK(a != b);
  folder.write(a.filename().string(), "the name is short enough for the file system");
  CHECK(std::filesystem::exists(a));
  CHECK(unique_sibling("plain").parent_path().empty());
}

TEST_CASE("memory sizes are plausible", "[unit][platform]") {
  CHECK(total_memory_bytes() > (uint64_t(1) << 26));
  CHECK(available_memory_bytes() <= total_memory_bytes());
  CHECK(terminal_width() > 0);
  CHECK_FALSE(is_terminal(1000));
}

#ifndef _WIN32

TEST_CASE("the first interrupt is only noted, the second ends the process", "[unit][platform]") {
  for (int last_signal : {SIGINT, SIGTERM}) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      install_interrupt_handler();
      if (interrupted()) _exit(1);
      raise(SIGINT);
      if (!interrupted()) _exit(2);
      raise(last_signal);
      _exit(3);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == last_signal);
  }
}

#endif

}  // namespace
}  // namespace turboesm
