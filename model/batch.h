#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace turboesm {

// What a forward pass is sized by.
struct BatchShape {
  uint32_t tokens = 0;
  uint32_t sequences = 0;
  uint32_t max_length = 0;  // tokens of the longest sequence, <cls> and <eos> included
  double score_pairs = 0;   // sum of length^2: query-key pairs of one head

  // `sequences` equal ones of `length` tokens.
  static BatchShape uniform(uint32_t sequences, uint32_t length) {
    return {sequences * length, sequences, length, double(length) * length * sequences};
  }
};

// Sequences packed one behind the other, without padding.
struct Batch {
  std::vector<int32_t> ids;            // [tokens]
  std::vector<int32_t> positions;      // [tokens], from 0 in each sequence
  std::vector<int32_t> cu_seqlens{0};  // [sequences + 1]
  BatchShape shape;

  // Appends one sequence of token ids, <cls> and <eos> included.
  void add(std::span<const int32_t> sequence) {
    for (size_t i = 0; i < sequence.size(); ++i) positions.push_back(int32_t(i));
    ids.insert(ids.end(), sequence.begin(), sequence.end());
    cu_seqlens.push_back(int32_t(ids.size()));
    const uint32_t length = uint32_t(sequence.size());
    shape.tokens += length;
    shape.sequences += 1;
    shape.max_length = shape.max_length < length ? length : shape.max_length;
    shape.score_pairs += double(length) * length;
  }
  uint32_t length(uint32_t sequence) const { return uint32_t(cu_seqlens[sequence + 1] - cu_seqlens[sequence]); }
};

}  // namespace turboesm
