#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

namespace turboesm {

// ESM-2's vocabulary of 33 tokens, the same for every model:
//   <cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>
//
// What a character of a sequence becomes:
//   - a lower-case letter is its upper-case letter (soft masking marks a region, not another residue);
//   - X (any), B (Asx), Z (Glx), U (Sec) and O (Pyl) are tokens of their own, as in ESM-2's training data;
//   - J (Leu or Ile) has no token and becomes X;
//   - '-' and '.' (gaps of an alignment) are tokens of their own and keep their position;
//   - the literal "<mask>" is the mask token;
//   - white space is skipped;
//   - one '*' at the very end, the stop codon of a translation, is dropped; any other '*' is <unk>;
//   - anything else is an error: guessing would change the protein.
class Tokenizer {
 public:
  static constexpr uint32_t kVocab = 33;
  static constexpr int32_t kCls = 0;
  static constexpr int32_t kPad = 1;
  static constexpr int32_t kEos = 2;
  static constexpr int32_t kUnk = 3;
  static constexpr int32_t kMask = 32;

  struct Encoded {
    std::vector<int32_t> ids;   // <cls>, one id per residue, <eos>; an empty sequence gives <cls> <eos>
    uint32_t unknown = 0;       // residues that became <unk>
    bool stop_removed = false;  // the '*' at the end was dropped
  };

  // Every ESM-2 model has the one vocabulary, so a Tokenizer carries no state.
  static Tokenizer esm2() { return {}; }

  // The same after checking that vocab.txt lists exactly these tokens in this order, one a line.
  // Error (input) naming the file and the first line that differs.
  static Tokenizer load(const std::filesystem::path& vocab_txt);

  // Error (input) naming the record, the character and its 1-based position in `sequence`.
  Encoded encode(std::string_view sequence, std::string_view record_name) const;

  // "L", "<mask>", ... Error (usage) for an id outside 0..32.
  std::string_view token(int32_t id) const;

  // The token as one character of a sequence; '?' for those in angle brackets.
  char letter(int32_t id) const;
};

}  // namespace turboesm
