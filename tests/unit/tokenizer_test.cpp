#include "model/tokenizer.h"

#include <string>

#include <catch2/catch_test_macros.hpp>

#include "tests/unit/files.h"

namespace turboesm {
namespace {

using test::check_error;
using Ids = std::vector<int32_t>;

Tokenizer::Encoded encode(std::string_view sequence) { return Tokenizer::esm2().encode(sequence, "P1"); }

std::string vocabulary(std::string_view line_end = "\n") {
  std::string text;
  for (int32_t id = 0; id < 33; ++id) text.append(Tokenizer::esm2().token(id)).append(line_end);
  return text;
}

TEST_CASE("the vocabulary is ESM-2's, in its order", "[unit][tokenizer]") {
  const std::string wanted =
      "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask> ";
  CHECK(vocabulary(" ") == wanted);
  CHECK(Tokenizer::esm2().letter(4) == 'L');
  CHECK(Tokenizer::esm2().letter(30) == '-');
  for (int32_t id : {0, 1, 2, 3, 31, 32}) CHECK(Tokenizer::esm2().letter(id) == '?');
  check_error(ErrorKind::usage, {"33"}, [] { Tokenizer::esm2().token(33); });
  check_error(ErrorKind::usage, {"-1"}, [] { Tokenizer::esm2().letter(-1); });
}

TEST_CASE("every letter is encoded as its token between <cls> and <eos>", "[unit][tokenizer]") {
  CHECK(encode("LAGVSERTIDPKQNFYMHWCXBUZO.-").ids == Ids{0,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17,
                                                         18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 2});
  CHECK(encode("").ids == Ids{0, 2});
}

TEST_CASE("lower case, white space, J, gaps and masks are handled as documented", "[unit][tokenizer]") {
  CHECK(encode("mkVx").ids == encode("MKVX").ids);
  CHECK(encode(" M\tK\r\nV\v\f").ids == encode("MKV").ids);
  CHECK(encode("MJj").ids == encode("MXX").ids);
  CHECK(encode("M-.K").ids == Ids{0, 20, 30, 29, 15, 2});
  CHECK(encode("M<mask>K<mask>").ids == Ids{0, 20, 32, 15, 32, 2});
  CHECK(encode("mJx-").unknown == 0);
}

TEST_CASE("one stop at the end is dropped, others are unknown", "[unit][tokenizer]") {
  const auto stopped = encode("MK*");
  CHECK(stopped.ids == encode("MK").ids);
  CHECK(stopped.stop_removed);
  CHECK(stopped.unknown == 0);

  CHECK(encode("MK* \n").ids == encode("MK").ids);
  CHECK(encode("MK* \n").stop_removed);

  const auto inside = encode("M*K**");
  CHECK(inside.ids == Ids{0, 20, 3, 15, 3, 2});
  CHECK(inside.unknown == 2);
  CHECK(inside.stop_removed);

  CHECK(encode("*").ids == Ids{0, 2});
  CHECK_FALSE(encode("MK").stop_removed);
}

TEST_CASE("other characters are refused by record, character and position", "[unit][tokenizer]") {
  check_error(ErrorKind::input, {"\"P1\"", "'?'", "position 3"}, [] { encode("MK?V"); });
  check_error(ErrorKind::input, {"'1'", "position 1 "}, [] { encode("1MK"); });
  check_error(ErrorKind::input, {"0xC3", "position 2 "}, [] { encode("M\xc3\xa9"); });
  check_error(ErrorKind::input, {"0x00", "position 2 "}, [] { encode(std::string_view("M\0K", 3)); });
  for (const char* text : {"M<", "M<mask", "M<cls>", "M<MASK>", "M>", "M,K", "M/K"})
    CHECK_THROWS_AS(encode(text), Error);
}

TEST_CASE("vocab.txt must be this vocabulary", "[unit][tokenizer]") {
  const test::TemporaryFolder folder;
  const auto load = [&](std::string_view text) { Tokenizer::load(folder.write("vocab.txt", text)); };
  load(vocabulary());
  load(vocabulary("\r\n"));
  std::string text = vocabulary();
  text.pop_back();
  load(text);  // no line end at the end, as Hugging Face writes it

  check_error(ErrorKind::input, {"vocab.txt", "line 34", "\"extra\""}, [&] { load(vocabulary() + "extra\n"); });
  check_error(ErrorKind::input, {"vocab.txt", "32 tokens"}, [&] { load(text.substr(0, text.rfind('\n'))); });
  check_error(ErrorKind::input, {"vocab.txt", "0 tokens"}, [&] { load(""); });
  text[text.find("\nL\n") + 1] = 'A';
  check_error(ErrorKind::input, {"vocab.txt", "line 5", "\"A\"", "\"L\""}, [&] { load(text); });
  check_error(ErrorKind::input, {"cannot open"}, [&] { Tokenizer::load(folder / "none.txt"); });
  check_error(ErrorKind::input, {"directory"}, [&] { Tokenizer::load(folder.path()); });
}

}  // namespace
}  // namespace turboesm
