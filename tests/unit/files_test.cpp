#include "runtime/files.h"

#include <catch2/catch_test_macros.hpp>

#include "runtime/format.h"
#include "tests/unit/files.h"

namespace turboesm {
namespace {

TEST_CASE("a file is written whole, or what was there stays", "[unit][files]") {
  const test::TemporaryFolder folder;
  const std::string bytes("with a zero\0 and \r\n", 19);
  write_file(folder / "file", "before");
  write_file(folder / "file", bytes);
  CHECK(test::read_file(folder / "file") == bytes);
  test::check_error(ErrorKind::input, {"missing", "cannot be written"},
                    [&] { write_file(folder / "missing" / "file", "x"); });
  std::filesystem::create_directory(folder / "taken");
  folder.write("taken/inside", "x");
  test::check_error(ErrorKind::input, {"taken", "cannot be written"}, [&] { write_file(folder / "taken", "x"); });
  CHECK(folder.list().size() == 2);  // nothing is left beside them
}

TEST_CASE("sizes, counts and times are written for people", "[unit][files]") {
  CHECK(format_bytes(1023) == "1023 B");
  CHECK(format_bytes(1536) == "1.5 KiB");
  CHECK(format_bytes(3ull << 40) == "3.0 TiB");
  CHECK(format_count(1234) == "1.23 k");
  CHECK(format_duration(200) == "3 min 20 s");
}

}  // namespace
}  // namespace turboesm
