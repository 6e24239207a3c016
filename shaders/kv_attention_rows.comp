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
// at most, two integer operations that make its address, and one fma for each query. Entries of a table lie in different
// banks, so that lookups never conflict. Codes of 1 or 2 bits are looked up in pairs.
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

shared vec2 pair_book[64];  // of two codes of 1 or 2 bits, the first in the low bits: 16 of each segment of K, then of V

float held_q[QUERIES * kValues];  // [query][value], in units of log 2
float held_projected[kHeldProjected];
uint k_words[kQuad * kUnits];  // [segment][token][unit]
uint v_words[kQuad * kUnits];
uint signs[QJL != 0 ? kQuad * kUnits : 1];  // [token][unit]
uint k_numbers[2], v_numbers[2], norm_number;  // words with the own token's scales and norm
float biases[QUERIES];                         // of the own token
float row[kRow];                               // centroids of the row in hand

// The value in all that is number j of a part's.
uint summed_value(uint of_part, uint j) { return j / kRow * kUnit + of_part * kRow + j % kRow; }

void load_pairs(Words codebook, bool of_head, uint segments, uint bits_0, uint bits_1, uint at) {
  const uint second = (2u << bits_0) - 1, size = second + (segments == 2 ? (2u << bits_1) - 1 : 0);
  const uint first = of_head ? head * size : 0;
  for (uint i = gl_LocalInvocationID.x; i < 16 * segments; i += THREADS) {
    const uint codes = i % 16, bits = i < 16 ? bits_0 : bits_1, base = first + (i < 16 ? 0 : second);
    if (bits > 2 || codes >> 2 * bits != 0) continue;
    const uvec2 pair = uvec2(codebook.at[base + (codes & (1u << bits) - 1)], codebook.at[base + (codes >> bits)]);
    pair_book[at + i] = uintBitsToFloat(pair);
  }
}

void prepare() {
  const uint within = gl_LocalInvocationID.x % kInvocations;
  part = within % kQuad;
  place = within / kQuad * kQuad;
  load_book(k_codebook, (FLAGS & K_CODEBOOK_OF_HEAD) != 0, K_SEGMENTS, K_BITS_0, K_BITS_1, 0);
  load_book(v_codebook, (FLAGS & V_CODEBOOK_OF_HEAD) != 0, V_SEGMENTS, V_BITS_0, V_BITS_1, 32);
  load_pairs(k_codebook, (FLAGS & K_CODEBOOK_OF_HEAD) != 0, K_SEGMENTS, K_BITS_0, K_BITS_1, 0);
  load_pairs(v_codebook, (FLAGS & V_CODEBOOK_OF_HEAD) != 0, V_SEGMENTS, V_BITS_0, V_BITS_1, 32);
  UNROLL for (uint i = 0; i < QUERIES * kValues; i += 4) {
    const uint at = row_of(i / kValues) * HEAD_DIM + summed_value(part, i % kValues);
    const vec4 values = load4(q, DTYPE_F32, at) * kLog2E;
    UNROLL for (uint c = 0; c < 4; ++c) held_q[i + c] = values[c];
    if (QJL == 0) continue;
    const vec4 others = load4(projected, DTYPE_F32, at) * kLog2E;
    UNROLL for (uint c = 0; c < 4; ++c) held_projected[i + c] = others[c];
  }
  UNROLL for (uint i = 0; i < kQuad * kUnits; ++i) k_words[i] = v_words[i] = 0;
}

// From memory to registers. `block` is the address of a block's first word.

uint own_token() { return place + part; }

// The word of a unit, and the first of its bits, that this part's codes begin with.
uint row_word(uint bits) { return bits == 4 ? part : bits == 3 ? min(part, 2) : bits == 2 ? part / 2 : 0; }
uint row_shift(uint bits) { return bits == 2 ? 16 * (part % 2) : bits == 1 ? kRow * part : 0; }

// Where the words of this invocation's tokens begin in word `w` of the units of a segment.
uvec2 tokens_at(uvec2 block, uint segment_at, uint w, uint units) {
  return advance(block, 4 * (segment_at + (w * KV_BLOCK + place) * units));
}

void load_k_segment(uvec2 block, uint segment, uint bits) {
  WordQuads source = WordQuads(tokens_at(block, kv_codes_at(K_N, K_BITS_0, segment), row_word(bits), kKUnits));
  UNROLL for (uint i = 0; i < kKUnits; ++i) {
    const uvec4 four = source.at[i];
    UNROLL for (uint c = 0; c < 4; ++c) k_words[segment * kQuad * kKUnits + 4 * i + c] = four[c];
  }
}

void load_v_segment(uvec2 block, uint segment, uint bits) {
  WordQuads source =
      WordQuads(tokens_at(block, k_block_words() + kv_codes_at(V_N, V_BITS_0, segment), row_word(bits), kVUnits));
  UNROLL for (uint i = 0; i < kVUnits; ++i) {
    const uvec4 four = source.at[i];
    UNROLL for (uint c = 0; c < 4; ++c) v_words[segment * kQuad * kVUnits + 4 * i + c] = four[c];
  }
}

void load_signs(uvec2 block) {
  WordQuads source = WordQuads(tokens_at(block, signs_at(), 0, kUnits));
  UNROLL for (uint i = 0; i < kUnits; ++i) {
    const uvec4 four = source.at[i];
    UNROLL for (uint c = 0; c < 4; ++c) signs[4 * i + c] = four[c];
  }
}

void load_keys(uvec2 block) {
  load_k_segment(block, 0, K_BITS_0);
  if (K_SEGMENTS == 2) load_k_segment(block, 1, K_BITS_1);
  CacheWords scales = words_at(block, kv_scale_word(K_SCALE_BITS, own_token()));
  UNROLL for (uint s = 0; s < K_SEGMENTS; ++s) {
    if (K_SCALE_BITS != 0) k_numbers[s] = scales.at[k_scales_at() + s * K_SCALE_BITS];
  }
  if (QJL != 0) {
    load_signs(block);
    norm_number = words_at(block, kv_scale_word(16, own_token())).at[signs_at() + HEAD_DIM];
  }
}

void load_values(uvec2 block) {
  load_v_segment(block, 0, V_BITS_0);
  if (V_SEGMENTS == 2) load_v_segment(block, 1, V_BITS_1);
  CacheWords scales = words_at(block, kv_scale_word(V_SCALE_BITS, own_token()));
  UNROLL for (uint s = 0; s < V_SEGMENTS; ++s) {
    if (V_SCALE_BITS != 0) v_numbers[s] = scales.at[v_scales_at() + s * V_SCALE_BITS];
  }
}

void load_biases(uint token) {
  if ((FLAGS & HAS_BIAS) == 0) return;
  UNROLL for (uint r = 0; r < QUERIES; ++r) {
    biases[r] = uintBitsToFloat(bias.at[row_of(r) * blocks * KV_BLOCK + token]) * kLog2E;
  }
}

// From registers to numbers.

float own_number(uint bits, uint word) {
  if (bits == 0) return 1.0;
  return kv_scale_value(bits, word >> kv_scale_shift(bits, own_token()) & (bits == 16 ? 0xffffu : 0xffu));
}

// The nibbles of the last part of a unit of 3-bit codes: bit w of each is the high bit of that of part w.
uint fourth_word(uint word) {
  uint bits = part < 3 ? word >> (3 - part) & 0x11111111u << part : 0;
  bits |= subgroupShuffleXor(bits, 1);
  bits |= subgroupShuffleXor(bits, 2);
  return part < 3 ? word : bits;
}

// Centroids of the codes that begin with the lowest bits of `word`, to row.
void unpack_row(uint bits, uint segment_book, uint word) {
  if (bits >= 3) {
    const uint all = ((1u << bits) - 1) * 0x01010101u;
    UNROLL for (uint k = 0; k < 2; ++k) {
      const uint plane = word >> (4 * k) & all;
      UNROLL for (uint j = 0; j < 4; ++j) row[2 * j + k] = book[segment_book + (plane >> (8 * j) & 0xffu)];
    }
  } else {
    UNROLL for (uint k = 0; k < 4; ++k) {
      const vec2 pair = pair_book[segment_book + bitfieldExtract(word, int(2 * bits * k), int(2 * bits))];
      row[2 * k] = pair.x;
      row[2 * k + 1] = pair.y;
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
      unpack_row(bits, 16 * segment, word >> row_shift(bits));
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
    float highest = counts ? scores[r] : kLowest;
    UNROLL for (uint step = 1; step < kQuad; step *= 2) highest = max(highest, subgroupShuffleXor(highest, step));
    if (highest > largest[r] + SLACK) {
      const float shrink = exp2(largest[r] - highest);
      largest[r] = highest;
      total[r] *= shrink;
      UNROLL for (uint i = 0; i < kValues; ++i) sums[r * kValues + i] *= shrink;
    }
    scores[r] = counts ? exp2(scores[r] - largest[r]) : 0.0;
    total[r] += scores[r];
  }
}

void add_segment(uint segment, uint bits, bool counts, float weights[QUERIES]) {
  // The scale of a token that does not count may be anything.
  const float scale = counts ? own_number(V_SCALE_BITS, v_numbers[segment]) : 0.0;
  UNROLL for (uint t = 0; t < kQuad; ++t) {
    float of_token[QUERIES];
    UNROLL for (uint r = 0; r < QUERIES; ++r) {
      of_token[r] = subgroupShuffle(weights[r] * scale, (gl_SubgroupInvocationID & ~3u) + t);
    }
    UNROLL for (uint u = 0; u < kVUnits; ++u) {
      uint word = v_words[(segment * kQuad + t) * kVUnits + u];
      if (bits == 3) word = fourth_word(word);
      unpack_row(bits, 32 + 16 * segment, word >> row_shift(bits));
      UNROLL for (uint i = 0; i < kRow; ++i) {
        const uint value = (segment * kVUnits + u) * kRow + i;
        UNROLL for (uint r = 0; r < QUERIES; ++r) {
          sums[r * kValues + value] = fma(of_token[r], row[i], sums[r * kValues + value]);
        }
      }
    }
  }
}

// Blocks first .. end of the sequence, of which the tokens before `length` count.
void attend(uint first, uint end, uint length) {
  const uint block_words = k_block_words() + v_block_words();
  const uint slot = gl_LocalInvocationID.x / kInvocations;
  uint high, low;
  umulExtended((sequence * gl_NumWorkGroups.x + head) * blocks + first + slot, 4 * block_words, high, low);
  uvec2 block = advance(cache, low) + uvec2(0, high);
  uint index = first + slot, token = index * KV_BLOCK + own_token();
  if (index < end) {
    load_keys(block);
    load_biases(token);
    load_values(block);
  }
  for (uint round = first; round < end; round += kBlocksAtOnce) {
    float scores[QUERIES];
    score_tokens(scores);
    if ((FLAGS & HAS_BIAS) != 0) {
      UNROLL for (uint r = 0; r < QUERIES; ++r) scores[r] += biases[r];
    }
    block = advance(block, 4 * kBlocksAtOnce * block_words);
    index += kBlocksAtOnce;
    const bool counts = token < length;
    token += kBlocksAtOnce * KV_BLOCK;
    if (index < end) {
      load_keys(block);
      load_biases(token);
    }
    weigh(counts, scores);
    add_segment(0, V_BITS_0, counts, scores);
    if (V_SEGMENTS == 2) add_segment(1, V_BITS_1, counts, scores);
    if (index < end) load_values(block);
  }
}

#include "kv_attention_end.glsl"
