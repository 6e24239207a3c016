#include "model/safetensors.h"

#include <random>
#include <string>

#include <catch2/catch_test_macros.hpp>

#include "tests/unit/files.h"

namespace turboesm {
namespace {

using test::check_error;
using test::safetensors_bytes;

const std::string kEightBytes = "\1\2\3\4\5\6\7\10";

SafetensorsContents parse(std::string_view header, std::string_view data) {
  return parse_safetensors(test::as_bytes(safetensors_bytes(header, data)), "w.safetensors");
}

// The header of one tensor "a", its fields as given, must be refused with a message that has `part`.
void refuses_tensor(std::string_view fields, std::string_view part) {
  const std::string header = fmt::format("{{\"a\":{{{}}}}}", fields);
  INFO(header);
  check_error(ErrorKind::input, {"w.safetensors", "\"a\"", part}, [&] { parse(header, kEightBytes); });
}

void refuses_header(std::string_view header, std::string_view part) {
  INFO(header);
  check_error(ErrorKind::input, {"w.safetensors", part}, [&] { parse(header, kEightBytes); });
}

TEST_CASE("tensors and metadata are read where they lie", "[unit][safetensors]") {
  const test::TemporaryFolder folder;
  const auto path = folder.write(
      "w.safetensors", safetensors_bytes("{\"__metadata__\":{\"format\":\"pt\",\"\":\"\"},"
                                         "\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[4,8]},"
                                         "\"a\":{\"dtype\":\"F16\",\"shape\":[2,1],\"data_offsets\":[0,4]},"
                                         "\"none\":{\"data_offsets\":[4,4],\"shape\":[0,7],\"dtype\":\"I64\"}}   ",
                                         kEightBytes));
  const SafetensorsFile opened = SafetensorsFile::open(path);
  const TensorEntry* a = opened.find("a");
  REQUIRE(a);
  CHECK(a->dtype == FileDType::f16);
  CHECK(a->shape == std::vector<uint64_t>{2, 1});
  CHECK(a->elements() == 2);
  CHECK(a->data[3] == std::byte(4));
  const TensorEntry* b = opened.find("b");
  REQUIRE(b);
  CHECK(b->shape.empty());
  CHECK(b->elements() == 1);
  CHECK(b->data[0] == std::byte(5));
  CHECK(opened.find("none")->elements() == 0);
  CHECK_FALSE(opened.find("c"));
  CHECK(opened.names() == std::vector<std::string_view>{"a", "b", "none"});
  CHECK(opened.metadata().at("format") == "pt");
  CHECK(opened.metadata().at("").empty());
}

TEST_CASE("a file of no tensors is a file", "[unit][safetensors]") {
  CHECK(parse("{}", "").tensors.empty());
  CHECK(parse("{\"__metadata__\":{}}", "").tensors.empty());
}

TEST_CASE("every dtype has its size", "[unit][safetensors]") {
  for (const auto& [name, size] : std::initializer_list<std::pair<const char*, uint64_t>>{{"BOOL", 1},
                                                                                          {"U8", 1},
                                                                                          {"I8", 1},
                                                                                          {"F8_E4M3", 1},
                                                                                          {"F8_E5M2", 1},
                                                                                          {"F8_E8M0", 1},
                                                                                          {"U16", 2},
                                                                                          {"I16", 2},
                                                                                          {"F16", 2},
                                                                                          {"BF16", 2},
                                                                                          {"U32", 4},
                                                                                          {"I32", 4},
                                                                                          {"F32", 4},
                                                                                          {"U64", 8},
                                                                                          {"I64", 8},
                                                                                          {"F64", 8}}) {
    const auto contents =
        parse(fmt::format("{{\"a\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[0,8]}}}}", name, 8 / size),
              kEightBytes);
    const TensorEntry& entry = contents.tensors.at("a");
    CHECK(name_of(entry.dtype) == name);
    CHECK(size_of(entry.dtype) == size);
  }
  CHECK(runtime_dtype(FileDType::bf16) == DType::bf16);
  CHECK_FALSE(runtime_dtype(FileDType::f64));
}

TEST_CASE("the header's length is checked before it is believed", "[unit][safetensors]") {
  const auto refuses = [](std::string bytes, std::string_view part) {
    check_error(ErrorKind::input, {"w.safetensors", part},
                [&] { parse_safetensors(test::as_bytes(bytes), "w.safetensors"); });
  };
  refuses("", "0 bytes are too few");
  refuses("1234567", "7 bytes are too few");
  std::string bytes = safetensors_bytes("{}", "");
  bytes[0] = 3;
  refuses(bytes, "take 3 bytes, but only 2 follow");
  bytes[3] = 6;
  refuses(bytes, "more than the 100000000");
  bytes.replace(0, 8, 8, '\xff');
  refuses(bytes, "18446744073709551615");
  bytes = safetensors_bytes("{}", "");
  bytes.replace(0, 8, 8, '\0');
  refuses(bytes, "does not start with '{'");
}

TEST_CASE("a header of the greatest length and depth is refused without being built", "[unit][safetensors]") {
  const auto refuses = [](const std::string& header, std::string_view part) {
    check_error(ErrorKind::input, {"w.safetensors", part}, [&] { parse(header, ""); });
  };
  refuses("{\"a\":" + std::string(2'000'000, '['), "\"a\"");
  refuses("{\"a\":{\"shape\":" + std::string(2'000'000, '['), "an array");
  std::string numbers = "{\"a\":{\"shape\":[1";
  for (int i = 0; i < 1'000'000; ++i) numbers += ",1";
  refuses(numbers + "]}}", "more than 64 numbers");
  refuses("{" + std::string(99'999'999, ' '), "not valid JSON");
}

TEST_CASE("headers that are not the format's JSON are refused", "[unit][safetensors]") {
  refuses_header(" {}", "does not start with '{'");
  refuses_header("\xEF\xBB\xBF{}", "does not start with '{'");
  refuses_header("{", "not valid JSON");
  refuses_header("{} x", "not valid JSON");
  refuses_header(std::string_view("{}\0x", 4), "NUL");
  refuses_header("{\"\xff\":{}}", "not valid JSON");
  refuses_header("{\"a\":1}", "\"a\"");
  refuses_header("{\"a\":null}", "\"a\"");
  refuses_header("{\"a\":\"F16\"}", "\"a\"");
  refuses_header("{\"a\":[]}", "\"a\"");
  refuses_header("{\"__metadata__\":[]}", "__metadata__");
  refuses_header("{\"__metadata__\":{\"k\":1}}", "\"k\"");
  refuses_header("{\"__metadata__\":{\"k\":{}}}", "\"k\"");
  refuses_header("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", "\"k\" twice");
  refuses_header("{\"__metadata__\":{},\"__metadata__\":{}}", "\"__metadata__\" twice");
  const std::string tensor = "\"a\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}";
  refuses_header("{" + tensor + "," + tensor + "}", "\"a\" twice");
}

TEST_CASE("tensors that are declared wrongly are refused", "[unit][safetensors]") {
  const std::string offsets = "\"data_offsets\":[0,8]";
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[1]", "no \"data_offsets\"");
  refuses_tensor("\"shape\":[1]," + offsets, "no \"dtype\"");
  refuses_tensor("\"dtype\":\"F64\"," + offsets, "no \"shape\"");
  refuses_tensor("\"dtype\":\"F65\",\"shape\":[1]," + offsets, "unknown dtype \"F65\"");
  refuses_tensor("\"dtype\":\"f64\",\"shape\":[1]," + offsets, "unknown dtype \"f64\"");
  refuses_tensor("\"dtype\":[1],\"shape\":[1]," + offsets, "\"dtype\"");
  refuses_tensor("\"dtype\":5,\"shape\":[1]," + offsets, "\"dtype\"");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":8," + offsets, "a number in \"shape\"");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":\"8\"," + offsets, "a string in \"shape\"");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[-1]," + offsets, "negative");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[1.0]," + offsets, "no 64-bit whole number");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[18446744073709551616]," + offsets, "no 64-bit whole number");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[null]," + offsets, "null");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[true]," + offsets, "true or false");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[[1]]," + offsets, "an array");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[1],\"extra\":1," + offsets, "\"extra\"");
  refuses_tensor("\"dtype\":\"F64\",\"dtype\":\"F64\",\"shape\":[1]," + offsets, "\"dtype\" twice");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[1],\"shape\":[1]," + offsets, "\"shape\" twice");
  refuses_tensor("\"dtype\":\"F64\",\"shape\":[1]," + offsets + "," + offsets, "\"data_offsets\" twice");
}

TEST_CASE("offsets and shapes that do not fit are refused", "[unit][safetensors]") {
  const std::string type = "\"dtype\":\"F32\",\"shape\":[2],";
  refuses_tensor(type + "\"data_offsets\":[]", "0 data_offsets");
  refuses_tensor(type + "\"data_offsets\":[0]", "1 data_offsets");
  refuses_tensor(type + "\"data_offsets\":[0,4,8]", "3 data_offsets");
  refuses_tensor(type + "\"data_offsets\":[8,0]", "begins at 8 and ends before, at 0");
  refuses_tensor(type + "\"data_offsets\":[0,9]", "only 8");
  refuses_tensor(type + "\"data_offsets\":[18446744073709551608,18446744073709551615]", "only 8");
  refuses_tensor(type + "\"data_offsets\":[0,4]", "4 bytes of data, but its dtype and shape need 8");
  const std::string offsets = ",\"data_offsets\":[0,8]";
  refuses_tensor("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296]" + offsets, "more than 2^64 bytes");
  // 2^62 * 4 bytes wraps round to 0; 2^62 + 2 values to the right 8.
  refuses_tensor("\"dtype\":\"F32\",\"shape\":[4611686018427387906]" + offsets, "more than 2^64 bytes");
  refuses_tensor("\"dtype\":\"F32\",\"shape\":[0]" + offsets, "need 0");
}

TEST_CASE("the data must be covered exactly", "[unit][safetensors]") {
  const auto two = [](const char* a, const char* b) {
    return fmt::format("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}}},\"b\":{{\"dtype\":\"U8\",\"shape\":[{}}}}}", a, b);
  };
  CHECK(parse(two("4],\"data_offsets\":[4,8]", "4],\"data_offsets\":[0,4]"), kEightBytes).tensors.size() == 2);
  refuses_header(two("4],\"data_offsets\":[0,4]", "5],\"data_offsets\":[3,8]"), "\"b\" begins at byte 3");
  refuses_header(two("8],\"data_offsets\":[0,8]", "8],\"data_offsets\":[0,8]"), "inside the one before");
  refuses_header(two("8],\"data_offsets\":[0,8]", "0],\"data_offsets\":[4,4]"), "inside the one before");
  refuses_header(two("3],\"data_offsets\":[0,3]", "4],\"data_offsets\":[4,8]"), "covers bytes 3 to 4");
  refuses_header(two("3],\"data_offsets\":[0,3]", "4],\"data_offsets\":[3,7]"), "1 bytes of data belong to no tensor");
  refuses_header("{}", "8 bytes of data belong to no tensor");
  check_error(ErrorKind::input, {"cut off"}, [&] {
    parse("{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}", kEightBytes.substr(0, 7));
  });
}

// What the format promises of any file that is accepted.
void check_consistent(const SafetensorsContents& contents, std::span<const std::byte> file) {
  uint64_t total = 0;
  for (const auto& [name, entry] : contents.tensors) {
    uint64_t bytes = size_of(entry.dtype);
    for (uint64_t dimension : entry.shape) bytes *= dimension;
    REQUIRE(bytes == entry.data.size());
    REQUIRE(entry.data.data() >= file.data());
    REQUIRE(entry.data.data() + entry.data.size() <= file.data() + file.size());
    total += bytes;
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  REQUIRE(total == file.size() - 8 - header_bytes);
}

TEST_CASE("mutated files are consistent or refused", "[unit][safetensors]") {
  const std::string good = safetensors_bytes(
      "{\"__metadata__\":{\"k\":\"v\"},\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[0,8]},"
      "\"b\":{\"dtype\":\"I32\",\"shape\":[1,0],\"data_offsets\":[8,8]},"
      "\"c\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[8,16]}}  ",
      kEightBytes + kEightBytes);
  const std::string_view alphabet("{}[]\":,0123456789-.eabnullFU \\\0\xff", 33);
  std::mt19937 random(1);
  const auto below = [&random](size_t limit) { return size_t(random() % limit); };
  size_t accepted = 0;
  size_t refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      const size_t at = below(bytes.size());
      switch (below(5)) {
        case 0: bytes[at] = alphabet[below(alphabet.size())]; break;
        case 1: bytes[at] = char(uint8_t(bytes[at]) ^ (1u << below(8))); break;
        case 2: bytes.erase(at, 1 + below(4)); break;
        case 3: bytes.insert(at, 1 + below(3), alphabet[below(alphabet.size())]); break;
        default: bytes.insert(at, bytes.substr(below(bytes.size()), below(40))); break;
      }
      if (bytes.size() < 9) break;
    }
    // An edit of the header's text would else nearly always be caught by its length alone.
    const size_t header_end = bytes.size() - std::min(bytes.size(), 2 * kEightBytes.size());
    if (below(4) != 0 && header_end > 8) {
      const uint64_t header_bytes = header_end - 8;
      std::memcpy(bytes.data(), &header_bytes, sizeof(header_bytes));
    }
    // A copy of its exact size on the heap lets a sanitizer see the first byte read beyond.
    const std::vector<std::byte> exact(test::as_bytes(bytes).begin(), test::as_bytes(bytes).end());
    try {
      check_consistent(parse_safetensors(exact, "w.safetensors"), exact);
      ++accepted;
    } catch (const Error& error) {
      REQUIRE(error.kind() == ErrorKind::input);
      ++refused;
    }
  }
  CHECK(accepted > 100);
  CHECK(refused > 1000);
}

TEST_CASE("missing and empty files are named", "[unit][safetensors]") {
  const test::TemporaryFolder folder;
  check_error(ErrorKind::input, {"none.safetensors"}, [&] { SafetensorsFile::open(folder / "none.safetensors"); });
  check_error(ErrorKind::input, {"e.safetensors", "0 bytes"},
              [&] { SafetensorsFile::open(folder.write("e.safetensors", "")); });
}

}  // namespace
}  // namespace turboesm
