#include "model/tokenizer.h"

#include <array>
#include <fstream>
#include <string>

#include "runtime/error.h"

namespace turboesm {

namespace {

constexpr std::array<std::string_view, Tokenizer::kVocab> kTokens = {
    "<cls>", "<pad>", "<eos>", "<unk>", "L", "A", "G", "V", "S", "E", "R", "T", "I", "D", "P",        "K",     "Q",
    "N",     "F",     "Y",     "M",     "H", "W", "C", "X", "B", "U", "Z", "O", ".", "-", "<null_1>", "<mask>"};

constexpr int16_t kSpace = -1;
constexpr int16_t kInvalid = -2;

// What a byte of a sequence stands for: a token id, kSpace or kInvalid.
constexpr std::array<int16_t, 256> make_byte_table() {
  std::array<int16_t, 256> table{};
  for (int16_t& entry : table) entry = kInvalid;
  for (size_t id = 0; id < kTokens.size(); ++id) {
    if (kTokens[id].size() != 1) continue;
    const char c = kTokens[id][0];
    table[uint8_t(c)] = int16_t(id);
    if (c >= 'A' && c <= 'Z') table[uint8_t(c - 'A' + 'a')] = int16_t(id);
  }
  table['J'] = table['j'] = table['X'];
  table['*'] = Tokenizer::kUnk;
  for (char c : {' ', '\t', '\r', '\n', '\v', '\f'}) table[uint8_t(c)] = kSpace;
  return table;
}

constexpr std::array<int16_t, 256> kByteTable = make_byte_table();

std::string describe(char c) {
  const bool printable = c > ' ' && c <= '~';
  return printable ? fmt::format("'{}'", c) : fmt::format("0x{:02X}", unsigned(uint8_t(c)));
}

// The sequence without a stop codon at its end, white space after which does not count.
std::string_view without_stop(std::string_view sequence) {
  size_t end = sequence.size();
  while (end > 0 && kByteTable[uint8_t(sequence[end - 1])] == kSpace) --end;
  return end > 0 && sequence[end - 1] == '*' ? sequence.substr(0, end - 1) : sequence;
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& vocab_txt) {
  const std::string name = vocab_txt.string();
  std::error_code error;
  if (std::filesystem::is_directory(vocab_txt, error))
    throw_error(ErrorKind::input, "{}: is a directory, not a file", name);
  std::ifstream file(vocab_txt, std::ios::binary);
  if (!file) throw_error(ErrorKind::input, "{}: cannot open the model's vocabulary", name);

  std::string line;
  size_t count = 0;
  for (; std::getline(file, line); ++count) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    const std::string_view wanted = count < kVocab ? kTokens[count] : std::string_view();
    if (line == wanted && count < kVocab) continue;
    const std::string_view shown = std::string_view(line).substr(0, 40);
    if (count >= kVocab)
      throw_error(ErrorKind::input, "{}: line {} has \"{}\", but ESM-2's vocabulary ends after {} tokens", name,
                  count + 1, shown, kVocab);
    throw_error(ErrorKind::input, "{}: line {} has \"{}\" where ESM-2's vocabulary has \"{}\"", name, count + 1, shown,
                wanted);
  }
  if (count != kVocab)
    throw_error(ErrorKind::input, "{}: has {} tokens, ESM-2's vocabulary has {}", name, count, kVocab);
  return {};
}

Tokenizer::Encoded Tokenizer::encode(std::string_view sequence, std::string_view record_name) const {
  const std::string_view residues = without_stop(sequence);
  Encoded result;
  result.stop_removed = residues.size() != sequence.size();
  result.ids.reserve(residues.size() + 2);
  result.ids.push_back(kCls);
  for (size_t i = 0; i < residues.size(); ++i) {
    const int16_t id = kByteTable[uint8_t(residues[i])];
    if (id == kSpace) continue;
    if (id >= 0) {
      result.ids.push_back(id);
      result.unknown += id == kUnk;
    } else if (residues.substr(i).starts_with(kTokens[kMask])) {
      result.ids.push_back(kMask);
      i += kTokens[kMask].size() - 1;
    } else {
      throw_error(ErrorKind::input, "record \"{}\": {} at position {} is not an amino acid", record_name,
                  describe(residues[i]), i + 1);
    }
  }
  result.ids.push_back(kEos);
  return result;
}

std::string_view Tokenizer::token(int32_t id) const {
  if (id < 0 || id >= int32_t(kVocab))
    throw_error(ErrorKind::usage, "[Tokenizer] there is no token {}, only 0 to {}", id, kVocab - 1);
  return kTokens[size_t(id)];
}

char Tokenizer::letter(int32_t id) const {
  const std::string_view text = token(id);
  return text.size() == 1 ? text[0] : '?';
}

}  // namespace turboesm
