#include "model/fasta.h"

#include <zlib.h>

#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "tests/unit/files.h"

namespace turboesm {
namespace {

using test::check_error;

std::vector<FastaRecord> read_all(const std::filesystem::path& path) {
  FastaReader reader(path.string());
  std::vector<FastaRecord> records;
  for (FastaRecord record; reader.next(record);) records.push_back(record);
  return records;
}

std::vector<FastaRecord> read_text(std::string_view text) {
  const test::TemporaryFolder folder;
  return read_all(folder.write("in.fasta", text));
}

std::string gzip(std::string_view text) {
  z_stream stream{};
  REQUIRE(deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string out(deflateBound(&stream, uLong(text.size())), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = uInt(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = uInt(out.size());
  REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

// FASTA text of several read chunks, with its records.
std::string large_text(size_t records) {
  std::string text;
  uint32_t state = 1;
  for (size_t i = 0; i < records; ++i) {
    text += fmt::format(">r{} number {}\n", i, i);
    for (size_t j = 0; j < 7 * i % 900; ++j) {
      text += "LAGVSERTIDPKQNFY"[(state = state * 1664525 + 1013904223) >> 28];
      if (j % 60 == 59) text += '\n';
    }
    text += '\n';
  }
  return text;
}

void check_same(const std::vector<FastaRecord>& a, const std::vector<FastaRecord>& b) {
  REQUIRE(a.size() == b.size());
  size_t different = 0;
  for (size_t i = 0; i < a.size(); ++i) different += a[i].id != b[i].id || a[i].sequence != b[i].sequence;
  CHECK(different == 0);
}

TEST_CASE("records have id, description, sequence, index and line", "[unit][fasta]") {
  const auto records = read_text(">sp|P1|A first protein \nMK\nVL\n\n>b\nACD");
  REQUIRE(records.size() == 2);
  CHECK(records[0].id == "sp|P1|A");
  CHECK(records[0].description == "first protein");
  CHECK(records[0].sequence == "MKVL");
  CHECK(records[0].index == 0);
  CHECK(records[0].line == 1);
  CHECK(records[1].id == "b");
  CHECK(records[1].description.empty());
  CHECK(records[1].sequence == "ACD");
  CHECK(records[1].index == 1);
  CHECK(records[1].line == 5);
}

TEST_CASE("LF, CRLF and CR end lines alike", "[unit][fasta]") {
  for (std::string_view end : {"\n", "\r\n", "\r"}) {
    std::string text;
    for (std::string_view line : {">a x", "MK", "", "VL", ">b", "AC"}) text.append(line).append(end);
    const auto records = read_text(text);
    REQUIRE(records.size() == 2);
    CHECK(records[0].description == "x");
    CHECK(records[0].sequence == "MKVL");
    CHECK(records[1].line == 5);
    CHECK(records[1].sequence == "AC");
  }
}

TEST_CASE("marks, blank lines, comments and inner white space are skipped", "[unit][fasta]") {
  const auto records = read_text("\xEF\xBB\xBF\n \n;comment\n>a\nM K\tV\n;comment\n  L \n\n; end\n>b\n");
  REQUIRE(records.size() == 2);
  CHECK(records[0].sequence == "MKVL");
  CHECK(records[1].sequence.empty());
  CHECK(read_text("\xEF\xBB\xBF>a\nM")[0].id == "a");
}

TEST_CASE("records without a name are numbered", "[unit][fasta]") {
  const auto records = read_text(">\nM\n> \nK\n>  spaced name\nV");
  REQUIRE(records.size() == 3);
  CHECK(records[0].id == "seq1");
  CHECK(records[1].id == "seq2");
  CHECK(records[2].id == "spaced");
  CHECK(records[2].description == "name");
}

TEST_CASE("a record is reused without remains of the one before", "[unit][fasta]") {
  const auto records = read_text(">a long\nMKVL\n>b\n>c x\nA");
  REQUIRE(records.size() == 3);
  CHECK(records[1].description.empty());
  CHECK(records[1].sequence.empty());
  CHECK(records[2].sequence == "A");
}

TEST_CASE("gzip in one or more members reads like the plain file", "[unit][fasta]") {
  const test::TemporaryFolder folder;
  const std::string text = large_text(2000);
  REQUIRE(text.size() > 600'000);
  const auto plain = read_all(folder.write("plain", text));
  REQUIRE(plain.size() == 2000);
  check_same(plain, read_all(folder.write("one", gzip(text))));
  const size_t cut = text.size() / 3;
  const std::string members = gzip(text.substr(0, cut)) + gzip("") + gzip(text.substr(cut));
  check_same(plain, read_all(folder.write("three", members)));
  check_same(plain, read_all(folder.write("padded", members + std::string(300'000, '\0'))));
}

TEST_CASE("progress is measured in bytes of the file", "[unit][fasta]") {
  const test::TemporaryFolder folder;
  for (const std::string& bytes : {large_text(2000), gzip(large_text(2000))}) {
    FastaReader reader(folder.write("in", bytes).string());
    CHECK(reader.bytes_total() == bytes.size());
    CHECK(reader.bytes_read() <= bytes.size());
    FastaRecord record;
    while (reader.next(record)) {
    }
    CHECK(reader.bytes_read() == bytes.size());
    CHECK_FALSE(reader.next(record));
  }
}

TEST_CASE("line ends at the seams of the read buffer are seen once", "[unit][fasta]") {
  const std::string text = ">a\r\n" + std::string(131072 - 5, 'M') + "\r\n>b\r\nK\r\n";
  for (size_t shift = 0; shift < 4; ++shift) {
    const auto records = read_text(std::string(shift, '\n') + text);
    REQUIRE(records.size() == 2);
    CHECK(records[0].sequence.size() == 131072 - 5);
    CHECK(records[1].line == 3 + shift);
  }
}

TEST_CASE("damaged and cut-off gzip is never a short file", "[unit][fasta]") {
  const test::TemporaryFolder folder;
  const std::string good = gzip(large_text(300));
  const auto refuses = [&](const std::string& bytes, std::string_view part) {
    check_error(ErrorKind::input, {"in.gz", part}, [&] { read_all(folder.write("in.gz", bytes)); });
  };
  for (size_t length : {size_t(2), size_t(9), size_t(18), good.size() / 2, good.size() - 9, good.size() - 1})
    refuses(good.substr(0, length), "cut off");
  refuses(good + good.substr(0, good.size() - 1), "cut off");
  refuses(good + "trailing", "damaged");
  for (size_t at : {size_t(3), good.size() / 2, good.size() - 6, good.size() - 1}) {
    std::string bad = good;
    bad[at] = char(uint8_t(bad[at]) ^ 0xE5u);
    check_error(ErrorKind::input, {"in.gz"}, [&] { read_all(folder.write("in.gz", bad)); });
  }
}

TEST_CASE("what is no FASTA is refused by file and line", "[unit][fasta]") {
  const auto refuses = [](std::string_view text, std::initializer_list<std::string_view> parts) {
    check_error(ErrorKind::input, parts, [&] { read_text(text); });
  };
  refuses("", {"in.fasta", "is empty"});
  refuses(gzip(""), {"in.fasta", "is empty"});
  refuses("\n \n;only comments\n", {"in.fasta", "no FASTA record"});
  refuses("\n\nMKVL\n>a\nM", {"in.fasta: line 3", "sequence before the first '>' header"});
  refuses(" >a\nM", {"line 1", "before the first '>'"});
  refuses(std::string_view(">a\nMK\0L\n", 8), {"in.fasta: line 2", "0x00"});
  refuses(std::string_view(">a\0b\nMK\n", 8), {"in.fasta: line 1", "0x00"});
  refuses(
      "\x7f"
      "ELF\x02\x01",
      {"line 1", "0x7F"});
  refuses("BZh91AY&SY\x1b\x02", {"line 1", "0x1B"});
}

TEST_CASE("missing files and directories are named", "[unit][fasta]") {
  const test::TemporaryFolder folder;
  check_error(ErrorKind::input, {"none.fasta", "cannot open"},
              [&] { FastaReader reader((folder / "none.fasta").string()); });
  check_error(ErrorKind::input, {folder.path().string(), "directory"},
              [&] { FastaReader reader(folder.path().string()); });
}

}  // namespace
}  // namespace turboesm
