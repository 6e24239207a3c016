#version 450
// kv_attention.comp for codes of 1 to 4 bits in segments of whole units (kv_layout.h), the shapes of every large model:
//   score = s_k (q . y^_k) + sqrt(pi / 2) / d x r (projected . sigma) + bias
//   out   = transform (sum_j p_j s_v y^_v / sum_j p_j) + mean,  p = softmax(score),  d = HEAD_DIM
// Operands are those of kv_attention.comp; TOKENS and PARTS are 4.
//
// Four neighbouring invocations, a quad, take four tokens of a block. Each has, of all four tokens, a quarter of every
// unit: elements 8 part .. 8 part + 7, which are the nibbles of one word of 4-bit codes, half a word of 2-bit codes, a
// byte of 1-bit codes; of 3-bit codes the nibbles of a word but for the last part, whose codes the other three parts'
// words hold the bits of. So a quarter of the query and of the sum is all that an invocation keeps, few registers and
// many subgroups on a compute unit; one load of 16 bytes brings a unit's share of all four tokens; and an invocation
// looks up 64 codes for a token's share of K and of V in a head of 64. The quad adds up the shares of a score in two
// steps, so that each invocation ends with the score of one token, whose softmax it computes.
//
// What bounds it: a code costs a lookup of its centroid in shared memory, 32 of which a multiprocessor does in a cycle
// at most, two integer operations that make its address, and one fma for each query. A table's entries lie in different
// banks, so that lookups never conflict. Codes of 1 or 2 bits are looked up in pairs. The loop has little besides: what
// it loads is found by 32-bit indices from one address, and is loaded in every round, since a condition would cost
// copies of registers; and nothing is computed from it before the next round, for that would wait for memory.
//
// The largest score is followed loosely: sums shrink only when a score is more than SLACK above what they are relative
// to, which is rare, for fp32 keeps its precision over such a range.
//
// variant: whole
// variant: split -DSPLIT
// variant: whole_rolled -DROLLED
// variant: split_rolled -DSPLIT -DROLLED
#extension GL_GOOGLE_include_directive : require
#include "kv_attention.glsl"

const uint kQuad = 4;  // TOKENS and PARTS
const uint kRow = 8;   // codes of a quarter of a unit
const uint kUnit = kQuad * kRow;
const uint kKUnits = K_N / kUnit;  // of a token and segment
const uint kVUnits = V_N / kUnit;
const uint kUnits = HEAD_DIM / kUnit;
const uint kHeldProjected = QJL != 0 ? QUERIES * kValues : 1;

shared vec2 pair_book[4][16];  // of two codes of 1 or 2 bits, the first in the low bits; as book

float held_q[QUERIES * kValues];  // [query][value], in units of log 2
float held_projected[kHeldProjected];
uint k_words[kQuad * kUnits];  // [segment][token][unit]
uint v_words[kQuad * kUnits];
uint signs[QJL != 0 ? kQuad * kUnits : 1];  // [token][unit]
uint k_numbers[2], v_numbers[2], norm_number;  // words with the own token's scales and norm
float biases[QUERIES];                         // of the own token, as they are in memory
float row[kRow];                               // centroids of the row in hand

uvec2 cached;                    // the address of the first block of this head of this sequence
uint fourth_shift, fourth_bits;  // of this part's words, for the fourth word of 3-bit codes

// The value in all that is number j of a part's.
uint summed_value(uint of_part, uint j) { return j / kRow * kUnit + of_part * kRow + j % kRow; }

void load_pairs(ReadWords codebook, bool of_head, uint segments, uint bits_0, uint bits_1, uint table) {
  const uint second = (2u << bits_0) - 1, size = second + (segments == 2 ? (2u << bits_1) - 1 : 0);
  const uint first = of_head ? head * size : 0;
  UNROLL for (uint base = 0; base < 16 * segments; base += THREADS) {
    const uint i = base + gl_LocalInvocationID.x, codes = i % 16, bits = i < 16 ? bits_0 : bits_1;
    if (i < 16 * segments && bits <= 2 && codes >> 2 * bits == 0) {
      const uint at = first + (i < 16 ? 0 : second);
      const uvec2 pair = uvec2(codebook.at[at + (codes & (1u << bits) - 1)], codebook.at[at + (codes >> bits)]);
      pair_book[table + i / 16][codes] = uintBitsToFloat(pair);
    }
  }
}

void prepare() {
  const uint within = gl_LocalInvocationID.x % kInvocations;
  part = within % kQuad;
  place = within / kQuad * kQuad;
  fourth_shift = 3 - part;
  fourth_bits = part < 3 ? 0x11111111u << part : 0;
  load_book(k_codebook, (FLAGS & K_CODEBOOK_OF_HEAD) != 0, K_SEGMENTS, K_BITS_0, K_BITS_1, 0);
  load_book(v_codebook, (FLAGS & V_CODEBOOK_OF_HEAD) != 0, V_SEGMENTS, V_BITS_0, V_BITS_1, 2);
  load_pairs(k_codebook, (FLAGS & K_CODEBOOK_OF_HEAD) != 0, K_SEGMENTS, K_BITS_0, K_BITS_1, 0);
  load_pairs(v_codebook, (FLAGS & V_CODEBOOK_OF_HEAD) != 0, V_SEGMENTS, V_BITS_0, V_BITS_1, 2);
  UNROLL for (uint i = 0; i < QUERIES * kValues; i += 4) {
    const uint at = row_of(i / kValues) * HEAD_DIM + summed_value(part, i % kValues);
    const vec4 values = load4(q, DTYPE_F32, at) * kLog2E;
    UNROLL for (uint c = 0; c < 4; ++c) held_q[i + c] = values[c];
    if (QJL == 0) continue;
    const vec4 others = load4(projected, DTYPE_F32, at) * kLog2E;
    UNROLL for (uint c = 0; c < 4; ++c) held_projected[i + c] = others[c];
  }
}

// From memory to registers. `block` is the number of a block of this head of this sequence.

const uint kQuadWords = 4;  // words that one load brings

uint own_token() { return place + part; }

// A multiple of kQuadWords, as is what lies before each part of a block.
uint block_words() { return k_block_words() + v_block_words(); }

// The word of a unit, and the first of its bits, that this part's codes begin with.
uint row_word(uint bits) { return bits == 4 ? part : bits == 3 ? min(part, 2) : bits == 2 ? part / 2 : 0; }
uint row_shift(uint bits) { return bits == 2 ? 16 * (part % 2) : bits == 1 ? kRow * part : 0; }

// Where the words of this invocation's tokens begin in word `w` of the units of a segment, in fours of words.
uint tokens_at(uint block, uint segment_at, uint w, uint units) {
  return block * (block_words() / kQuadWords) + (segment_at + (w * KV_BLOCK + place) * units) / kQuadWords;
}

// The word at `at` of a block that holds the own token's number among those of `bits` bits that begin there.
uint number_at(uint block, uint at, uint bits) {
  return ReadWords(cached).at[block * block_words() + kv_scale_word(bits, own_token()) + at];
}

void load_k_segment(uint block, uint segment, uint bits) {
  const uint at = tokens_at(block, kv_codes_at(K_N, K_BITS_0, segment), row_word(bits), kKUnits);
  UNROLL for (uint i = 0; i < kKUnits; ++i) {
    const uvec4 four = ReadQuads(cached).at[at + i];
    UNROLL for (uint c = 0; c < 4; ++c) k_words[segment * kQuad * kKUnits + 4 * i + c] = four[c];
  }
}

void load_v_segment(uint block, uint segment, uint bits) {
  const uint at = tokens_at(block, k_block_words() + kv_codes_at(V_N, V_BITS_0, segment), row_word(bits), kVUnits);
  UNROLL for (uint i = 0; i < kVUnits; ++i) {
    const uvec4 four = ReadQuads(cached).at[at + i];
    UNROLL for (uint c = 0; c < 4; ++c) v_words[segment * kQuad * kVUnits + 4 * i + c] = four[c];
  }
}

void load_signs(uint block) {
  const uint at = tokens_at(block, signs_at(), 0, kUnits);
  UNROLL for (uint i = 0; i < kUnits; ++i) {
    const uvec4 four = ReadQuads(cached).at[at + i];
    UNROLL for (uint c = 0; c < 4; ++c) signs[4 * i + c] = four[c];
  }
}

void load_keys(uint block) {
  load_k_segment(block, 0, K_BITS_0);
  if (K_SEGMENTS == 2) load_k_segment(block, 1, K_BITS_1);
  UNROLL for (uint s = 0; s < K_SEGMENTS; ++s) {
    if (K_SCALE_BITS != 0) k_numbers[s] = number_at(block, k_scales_at() + s * K_SCALE_BITS, K_SCALE_BITS);
  }
  if (QJL != 0) {
    load_signs(block);
    norm_number = number_at(block, signs_at() + HEAD_DIM, 16);
  }
}

void load_values(uint block) {
  load_v_segment(block, 0, V_BITS_0);
  if (V_SEGMENTS == 2) load_v_segment(block, 1, V_BITS_1);
  UNROLL for (uint s = 0; s < V_SEGMENTS; ++s) {
    if (V_SCALE_BITS != 0) v_numbers[s] = number_at(block, v_scales_at() + s * V_SCALE_BITS, V_SCALE_BITS);
  }
}

void load_biases(uint block) {
  if ((FLAGS & HAS_BIAS) == 0) return;
  UNROLL for (uint r = 0; r < QUERIES; ++r) {
    biases[r] = uintBitsToFloat(bias.at[(row_of(r) * blocks + block) * KV_BLOCK + own_token()]);
  }
}

// From registers to numbers.

float own_number(uint bits, uint word) {
  if (bits == 0) return 1.0;
  return kv_scale_value(bits, word >> kv_scale_shift(bits, own_token()) & (bits == 16 ? 0xffffu : 0xffu));
}

// The nibbles of the last part of a unit of 3-bit codes: bit w of each is the high bit of that of part w.
uint fourth_word(uint word) {
  uint bits = word >> fourth_shift & fourth_bits;
  bits |= subgroupShuffleXor(bits, 1);
  bits |= subgroupShuffleXor(bits, 2);
  return part < 3 ? word : bits;
}

// Centroids of the codes that begin with the lowest bits of `word`, to row.
//
// A shift moves a code, or two, not to bit 0 but to where the address of its entry has it, log2 of the entry's size up,
// and a mask makes that address: two operations. Where the compiler knows both, it turns them into a mask of the code
// itself and a second shift for the size, so shift and mask come from `shifts` and `ones`.
void unpack_row(uint bits, uint table, uint word) {
  if (bits >= 3) {
    const uint mask = ones[bits - 3] << 2;
    UNROLL for (uint k = 0; k < kRow; ++k) {
      const uint moved = k == 0 ? word << 2 : word >> shifts[max(k, 1) - 1];
      row[k] = book[table][(moved & mask) >> 2];
    }
  } else {
    const uint mask = ones[1] << 3, twice = word << 1;
    UNROLL for (uint k = 0; k < kRow / 2; ++k) {
      const uint moved = k == 0 ? word << 3 : twice >> shifts[max(k, 1) - 1];
      const uint pair = bits == 2 ? (moved & mask) >> 3 : bitfieldExtract(word, int(2 * k), 2);
      const vec2 values = pair_book[table][pair];
      row[2 * k] = values.x;
      row[2 * k + 1] = values.y;
    }
  }
}

// Scores, in units of log 2.

// The sum over the quad of dots[own part].
float sum_of_quad(float dots[kQuad]) {
  const bool upper = (part & 2) != 0, odd = (part & 1) != 0;
  const float a = (upper ? dots[2] : dots[0]) + subgroupShuffleXor(upper ? dots[0] : dots[2], 2);
  const float b = (upper ? dots[3] : dots[1]) + subgroupShuffleXor(upper ? dots[1] : dots[3], 2);
  return (odd ? b : a) + subgroupShuffleXor(odd ? a : b, 1);
}

void score_segment(uint segment, uint bits, inout float scores[QUERIES]) {
  float dots[QUERIES][kQuad];
  UNROLL for (uint r = 0; r < QUERIES; ++r) {
    UNROLL for (uint t = 0; t < kQuad; ++t) dots[r][t] = 0.0;
  }
  UNROLL for (uint t = 0; t < kQuad; ++t) {
    UNROLL for (uint u = 0; u < kKUnits; ++u) {
      uint word = k_words[(segment * kQuad + t) * kKUnits + u];
      if (bits == 3) word = fourth_word(word);
      unpack_row(bits, segment, word >> row_shift(bits));
      UNROLL for (uint i = 0; i < kRow; ++i) {
        const uint value = (segment * kKUnits + u) * kRow + i;
        UNROLL for (uint r = 0; r < QUERIES; ++r) dots[r][t] = fma(held_q[r * kValues + value], row[i], dots[r][t]);
      }
    }
  }
  const float scale = own_number(K_SCALE_BITS, k_numbers[segment]);
  UNROLL for (uint r = 0; r < QUERIES; ++r) scores[r] += scale * sum_of_quad(dots[r]);
}

void score_signs(inout float scores[QUERIES]) {
  const float norm = kRootOfHalfPi / float(HEAD_DIM) * own_number(16, norm_number);
  UNROLL for (uint r = 0; r < QUERIES; ++r) {
    float dots[kQuad];
    UNROLL for (uint t = 0; t < kQuad; ++t) {
      dots[t] = 0.0;
      UNROLL for (uint u = 0; u < kUnits; ++u) {
        const uint minus = ~signs[t * kUnits + u] >> row_shift(1);
        UNROLL for (uint i = 0; i < kRow; ++i) {
          const uint sign = minus << (31 - i) & 0x80000000u;
          dots[t] += uintBitsToFloat(floatBitsToUint(held_projected[r * kValues + u * kRow + i]) ^ sign);
        }
      }
    }
    scores[r] += norm * sum_of_quad(dots);
  }
}

// The own token's scores.
void score_tokens(out float scores[QUERIES]) {
  UNROLL for (uint r = 0; r < QUERIES; ++r) scores[r] = 0.0;
  score_segment(0, K_BITS_0, scores);
  if (K_SEGMENTS == 2) score_segment(1, K_BITS_1, scores);
  if (QJL != 0) score_signs(scores);
}

// The softmax and the sum.

// Scores become weights, relative to what is largest of the quad; those of tokens that do not count 0.
void weigh(bool counts, inout float scores[QUERIES]) {
  UNROLL for (uint r = 0; r < QUERIES; ++r) {
    if (!counts) scores[r] = 2.0 * kLowest;  // far below `largest` even before any token has counted
    float highest = scores[r];
    highest = max(highest, subgroupShuffleXor(highest, 1));
    highest = max(highest, subgroupShuffleXor(highest, 2));
    if (highest > largest[r] + SLACK) {
      const float shrink = exp2(largest[r] - highest);
      largest[r] = highest;
      total[r] *= shrink;
      UNROLL for (uint i = 0; i < kValues; ++i) sums[r * kValues + i] *= shrink;
    }
    scores[r] = exp2(scores[r] - largest[r]);
    total[r] += scores[r];
  }
}

// What a token that does not count has in its scale and codes may be anything, but is finite (kv_scale_value).
void add_segment(uint segment, uint bits, float weights[QUERIES]) {
  const float scale = own_number(V_SCALE_BITS, v_numbers[segment]);
  UNROLL for (uint t = 0; t < kQuad; ++t) {
    float of_token[QUERIES];
    UNROLL for (uint r = 0; r < QUERIES; ++r) {
      of_token[r] = subgroupShuffle(weights[r] * scale, (gl_SubgroupInvocationID & ~3u) + t);
    }
    UNROLL for (uint u = 0; u < kVUnits; ++u) {
      uint word = v_words[(segment * kQuad + t) * kVUnits + u];
      if (bits == 3) word = fourth_word(word);
      unpack_row(bits, 2 + segment, word >> row_shift(bits));
      UNROLL for (uint i = 0; i < kRow; ++i) {
        const uint value = (segment * kVUnits + u) * kRow + i;
        UNROLL for (uint r = 0; r < QUERIES; ++r) {
          sums[r * kValues + value] = fma(of_token[r], row[i], sums[r * kValues + value]);
        }
      }
    }
  }
}

// Blocks first .. end of the sequence, of which the tokens before `length` count. Invocations whose blocks are used up
// load the last one again, and nothing of it counts.
void attend(uint first, uint end, uint length) {
  if (first >= end) return;
  cached = advance(cache, (sequence * gl_NumWorkGroups.x + head) * blocks, 4 * block_words());
  const uint slot = gl_LocalInvocationID.x / kInvocations, last = end - 1, begin = min(first + slot, last);
  load_keys(begin);
  load_biases(begin);
  load_values(begin);
  for (uint round = first; round < end; round += kBlocksAtOnce) {
    float scores[QUERIES];
    score_tokens(scores);
    if ((FLAGS & HAS_BIAS) != 0) {
      UNROLL for (uint r = 0; r < QUERIES; ++r) scores[r] = fma(biases[r], kLog2E, scores[r]);
    }
    const uint next = min(round + slot + kBlocksAtOnce, last);
    load_keys(next);
    load_biases(next);
    weigh((round + slot) * KV_BLOCK + own_token() < length, scores);
    add_segment(0, V_BITS_0, scores);
    if (V_SEGMENTS == 2) add_segment(1, V_BITS_1, scores);
    load_values(next);
  }
}

const uint kMostRowLanes = 8;

#include "kv_attention_end.glsl"
