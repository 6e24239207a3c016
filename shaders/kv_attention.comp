#version 450
// Attention of a few queries over the quantized cache of their sequence, in one pass (runtime/kv_operations.h):
//   score = s_k (q . y^_k) + sqrt(pi / 2) / d x r (projected . sigma) + bias
//   out   = transform (sum_j p_j s_v y^_v / sum_j p_j) + mean,  p = softmax(score),  d = HEAD_DIM
//
//   q, projected [sequences x QUERIES, heads, d] f32, bias [sequences x QUERIES, heads, capacity] f32
//   cache [sequences, heads, blocks, block words] (kv_layout.h), lengths [sequences] i32
//   transform [heads or 1, d, d], mean [heads, d] f32 -> out [sequences x QUERIES, heads, d] any
//
// A workgroup takes one head of one sequence, and with SPLIT a run of its blocks (grid: heads, sequences, splits).
// An invocation owns TOKENS tokens of a block, one of PARTS parts of their values: whole units of 32 codes of K and V,
// nearly always one of each. It keeps its share of q and of the sum in registers and has an online softmax of its own
// (Milakov & Gimelshein 2018), so that nothing passes between invocations but the parts' shares of a score, by
// shuffles, until all is merged at the end. Neighbouring invocations read neighbouring words. Each has its next words
// of K on the way while it adds up values, and those of V while it scores.
//
// Codes in whole units, for as many queries as registers have room for, are kv_attention_rows.comp's.
//
// What bounds it is unpacking. A code costs two or three integer operations (compilers mask it out of its word by
// itself, though the source masks bytes of four codes at once), one lookup of its centroid in shared memory, and one
// fma for each query. A table has at most 16 entries, which lie in different banks, so that lookups never conflict: the
// same entry is broadcast. Lookups are the limit where a subgroup's takes a cycle of a multiprocessor and 4 others are
// issued meanwhile. Tables of pairs of codes would halve the integer operations, but read as many bytes and must be
// copied for each bank; choosing among 8 or 16 registers takes 7 or 15 instructions; a polynomial through the centroids
// as many.
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

// Units, words and values of an invocation. "Values" counts both segments.
const uint kKValues = K_N / PARTS;  // of one segment
const uint kVValues = V_N / PARTS;
const uint kKUnits = kKValues * TOKENS / 32;  // of one segment
const uint kVUnits = kVValues * TOKENS / 32;
const uint kSignUnits = kValues * TOKENS / 32;
const uint kKWords = kKUnits * (K_BITS_0 + (K_SEGMENTS == 2 ? K_BITS_1 : 0));
const uint kVWords = kVUnits * (V_BITS_0 + (V_SEGMENTS == 2 ? V_BITS_1 : 0));
const uint kSignsAt = kKWords + kVWords;
const uint kWords = kSignsAt + (QJL != 0 ? kSignUnits : 0);
const uint kMostNumberWords = TOKENS * 16 / 32 > 1 ? TOKENS * 16 / 32 : 1;  // of scales of one segment, of norms
const uint kScores = QUERIES * TOKENS;
const bool kHoldsQueries = QUERIES * kValues <= 64;  // in registers; else they are in shared memory
const uint kHeld = kHoldsQueries ? QUERIES * kValues : 1;
const uint kHeldProjected = QJL != 0 ? kHeld : 1;
const uint kSharedPart = QUERIES * kValues + 1;  // of a part's queries in shared memory; odd, so that banks differ
const uint kShared = kHoldsQueries ? 1 : PARTS * kSharedPart;
const uint kSharedProjected = QJL != 0 ? kShared : 1;

shared float shared_q[kShared];
shared float shared_projected[kSharedProjected];

float held_q[kHeld];  // [query][value], in units of log 2
float held_projected[kHeldProjected];
uint words[kWords];                    // of K's units, V's, and signs
uint k_numbers[2 * kMostNumberWords];  // scales, by segment
uint v_numbers[2 * kMostNumberWords];
uint norm_numbers[kMostNumberWords];
float biases[kScores];                 // [query][token]
float unit_values[32];                 // of the unit in hand

// The value in a segment of n, and in all, that is number i of this invocation's.
uint value_of(uint n, uint i) { return i / (n / PARTS) * n + part * (n / PARTS) + i % (n / PARTS); }

// Tables and queries.

void load_queries() {
  UNROLL for (uint i = 0; i < QUERIES * kValues; i += 4) {
    const uint row = row_of(i / kValues) * HEAD_DIM, j = i % kValues;
    if (kHoldsQueries) {
      const vec4 values = load4(q, DTYPE_F32, row + value_of(K_N, j)) * kLog2E;
      UNROLL for (uint c = 0; c < 4; ++c) held_q[i + c] = values[c];
      if (QJL == 0) continue;
      const vec4 others = load4(projected, DTYPE_F32, row + value_of(HEAD_DIM, j)) * kLog2E;
      UNROLL for (uint c = 0; c < 4; ++c) held_projected[i + c] = others[c];
    }
  }
}

void share_queries() {
  for (uint i = gl_LocalInvocationID.x; i < QUERIES * HEAD_DIM; i += THREADS) {
    const uint query = i / HEAD_DIM, value = i % HEAD_DIM, row = row_of(query) * HEAD_DIM;
    const uint in_segment = value % K_N, of_part = in_segment / kKValues;
    const uint j = value / K_N * kKValues + in_segment % kKValues;
    shared_q[of_part * kSharedPart + query * kValues + j] = uintBitsToFloat(q.at[row + value]) * kLog2E;
    if (QJL != 0) {
      shared_projected[value / kValues * kSharedPart + query * kValues + value % kValues] =
          uintBitsToFloat(projected.at[row + value]) * kLog2E;
    }
  }
}

float query_value(uint i) { return kHoldsQueries ? held_q[i] : shared_q[part * kSharedPart + i]; }
float projected_value(uint i) {
  return kHoldsQueries ? held_projected[i] : shared_projected[part * kSharedPart + i];
}

// From memory to registers. `block` is the address of a block's first word; words[at] is the first to fill.

ReadWords words_at(uvec2 block, uint word) { return ReadWords(advance(block, 1, 4 * word)); }

void load_units(uvec2 block, uint segment_at, uint n, uint bits, uint units, uint at) {
  ReadWords source = words_at(block, (place * PARTS / TOKENS + part) * units);
  UNROLL for (uint u = 0; u < units; ++u) {
    UNROLL for (uint w = 0; w < bits; ++w) words[at + u * bits + w] = source.at[segment_at + w * n + u];
  }
}

// Words of `bits` bits a token from word `at` on that hold those of this invocation's tokens.
uint number_words(uint bits) { return TOKENS * bits > 32 ? TOKENS * bits / 32 : bits != 0 ? 1 : 0; }

void load_keys(uvec2 block) {
  load_units(block, 0, K_N, K_BITS_0, kKUnits, 0);
  if (K_SEGMENTS == 2) load_units(block, K_N * K_BITS_0, K_N, K_BITS_1, kKUnits, kKUnits * K_BITS_0);
  ReadWords scales = words_at(block, kv_scale_word(K_SCALE_BITS, place));
  UNROLL for (uint s = 0; s < K_SEGMENTS; ++s) {
    UNROLL for (uint i = 0; i < number_words(K_SCALE_BITS); ++i) {
      k_numbers[s * kMostNumberWords + i] = scales.at[k_scales_at() + s * K_SCALE_BITS + i];
    }
  }
  if (QJL != 0) {
    load_units(block, signs_at(), HEAD_DIM, 1, kSignUnits, kSignsAt);
    ReadWords norms = words_at(block, kv_scale_word(16, place));
    UNROLL for (uint i = 0; i < number_words(16); ++i) norm_numbers[i] = norms.at[signs_at() + HEAD_DIM + i];
  }
}

// For the block in hand: a block ahead they would cost registers while values are summed.
void load_biases(uint token) {
  if ((FLAGS & HAS_BIAS) != 0) {
    UNROLL for (uint i = 0; i < kScores; ++i) {
      biases[i] = uintBitsToFloat(bias.at[row_of(i / TOKENS) * blocks * KV_BLOCK + token + i % TOKENS]) * kLog2E;
    }
  }
}

void load_values(uvec2 block) {
  load_units(block, k_block_words(), V_N, V_BITS_0, kVUnits, kKWords);
  if (V_SEGMENTS == 2)
    load_units(block, k_block_words() + V_N * V_BITS_0, V_N, V_BITS_1, kVUnits, kKWords + kVUnits * V_BITS_0);
  ReadWords scales = words_at(block, kv_scale_word(V_SCALE_BITS, place));
  UNROLL for (uint s = 0; s < V_SEGMENTS; ++s) {
    UNROLL for (uint i = 0; i < number_words(V_SCALE_BITS); ++i) {
      v_numbers[s * kMostNumberWords + i] = scales.at[v_scales_at() + s * V_SCALE_BITS + i];
    }
  }
}

// From registers to numbers.

// That of this invocation's token t, among words from load_keys or load_values.
float number_of(uint bits, uint word, uint t) {
  const uint shift = kv_scale_shift(bits, place) + t * bits % 32;
  return kv_scale_value(bits, word >> shift & (bits == 16 ? 0xffffu : 0xffu));
}
float k_scale(uint segment, uint t) {
  if (K_SCALE_BITS == 0) return 1.0;
  return number_of(K_SCALE_BITS, k_numbers[segment * kMostNumberWords + t * K_SCALE_BITS / 32], t);
}
float v_scale(uint segment, uint t) {
  if (V_SCALE_BITS == 0) return 1.0;
  return number_of(V_SCALE_BITS, v_numbers[segment * kMostNumberWords + t * V_SCALE_BITS / 32], t);
}

// Fours of a unit of codes: byte j of plane k of word w is element w x (32 / field) + j x (8 / field) + k.
void unpack_codes(uint bits, uint table, uint at) {
  const uint field = bits == 3 ? 4 : bits;  // 3-bit codes lie in the nibbles of four words
  const uint all = ((1u << bits) - 1) * 0x01010101u;
  UNROLL for (uint w = 0; w < field; ++w) {
    uint word = words[at + (w < bits ? w : 0)];
    if (w == bits) {  // the fourth word of 3-bit codes is the others' high bits
      word = word >> 3 & 0x11111111u | words[at + 1] >> 2 & 0x22222222u | words[at + 2] >> 1 & 0x44444444u;
    }
    UNROLL for (uint k = 0; k < 8 / field; ++k) {
      const uint plane = word >> (field * k) & all;
      UNROLL for (uint j = 0; j < 4; ++j) {
        unit_values[w * (32 / field) + j * (8 / field) + k] = book[table][plane >> (8 * j) & 0xffu];
      }
    }
  }
}

// The 32 values of the unit whose first word is words[at], to unit_values.
void unpack_unit(uint bits, uint table, uint at) {
  if (bits <= 4) unpack_codes(bits, table, at);
  if (bits < 8) return;
  UNROLL for (uint w = 0; w < bits; ++w) {
    const uint word = words[at + w];
    if (bits == 8) {
      UNROLL for (uint j = 0; j < 4; ++j) unit_values[4 * w + j] = float(int(word << (24 - 8 * j)) >> 24);
    } else if (bits == 16) {
      const vec2 pair = unpackHalf2x16(word);
      unit_values[2 * w] = pair.x;
      unit_values[2 * w + 1] = pair.y;
    } else {
      unit_values[w] = uintBitsToFloat(word);
    }
  }
}

// Scores, in units of log 2: this part's share of them.

// Adds the products of one segment; words[at] is its first.
void score_segment(uint segment, uint bits, uint at, inout float scores[kScores]) {
  float dots[2 * kScores];  // two sums each, so that an fma does not wait for the one before
  UNROLL for (uint i = 0; i < 2 * kScores; ++i) dots[i] = 0.0;
  UNROLL for (uint u = 0; u < kKUnits; ++u) {
    unpack_unit(bits, segment, at + u * bits);
    UNROLL for (uint e = 0; e < 32; ++e) {
      const uint t = (32 * u + e) / kKValues, i = segment * kKValues + (32 * u + e) % kKValues;
      UNROLL for (uint r = 0; r < QUERIES; ++r) {
        const uint sum = 2 * (r * TOKENS + t) + e % 2;
        dots[sum] = fma(query_value(r * kValues + i), unit_values[e], dots[sum]);
      }
    }
  }
  UNROLL for (uint i = 0; i < kScores; ++i) {
    scores[i] += k_scale(segment, i % TOKENS) * (dots[2 * i] + dots[2 * i + 1]);
  }
}

void score_signs(inout float scores[kScores]) {
  float dots[kScores];
  UNROLL for (uint i = 0; i < kScores; ++i) dots[i] = 0.0;
  UNROLL for (uint u = 0; u < kSignUnits; ++u) {
    const uint minus = ~words[kSignsAt + u];
    UNROLL for (uint e = 0; e < 32; ++e) {
      const uint t = (32 * u + e) / kValues, i = (32 * u + e) % kValues;
      const uint sign = minus << (31 - e) & 0x80000000u;
      UNROLL for (uint r = 0; r < QUERIES; ++r) {
        dots[r * TOKENS + t] += uintBitsToFloat(floatBitsToUint(projected_value(r * kValues + i)) ^ sign);
      }
    }
  }
  UNROLL for (uint i = 0; i < kScores; ++i) {
    const float norm = number_of(16, norm_numbers[i % TOKENS / 2], i % TOKENS);
    scores[i] += kRootOfHalfPi / float(HEAD_DIM) * norm * dots[i];
  }
}

void score_tokens(out float scores[kScores]) {
  UNROLL for (uint i = 0; i < kScores; ++i) scores[i] = 0.0;
  score_segment(0, K_BITS_0, 0, scores);
  if (K_SEGMENTS == 2) score_segment(1, K_BITS_1, kKUnits * K_BITS_0, scores);
  if (QJL != 0) score_signs(scores);
}

// The softmax and the sum. An invocation's tokens begin with `token`; those from `end` on do not count.

void weigh(uint token, uint end, inout float scores[kScores]) {
  UNROLL for (uint r = 0; r < QUERIES; ++r) {
    float highest = kLowest;
    UNROLL for (uint t = 0; t < TOKENS; ++t) {
      if (token + t < end) highest = max(highest, scores[r * TOKENS + t]);
    }
    if (highest > largest[r] + SLACK) {
      const float shrink = exp2(largest[r] - highest);
      largest[r] = highest;
      total[r] *= shrink;
      UNROLL for (uint i = 0; i < kValues; ++i) sums[r * kValues + i] *= shrink;
    }
    UNROLL for (uint t = 0; t < TOKENS; ++t) {
      const uint i = r * TOKENS + t;
      scores[i] = token + t < end ? exp2(scores[i] - largest[r]) : 0.0;
      if (part == 0) total[r] += scores[i];  // whose other parts have the same scores
    }
  }
}

void add_segment(uint segment, uint bits, uint at, uint counted, float weights[kScores]) {
  UNROLL for (uint i = 0; i < kScores; ++i) {
    // The scale of a token that does not count may be anything.
    weights[i] = i % TOKENS < counted ? weights[i] * v_scale(segment, i % TOKENS) : 0.0;
  }
  UNROLL for (uint u = 0; u < kVUnits; ++u) {
    unpack_unit(bits, 2 + segment, at + u * bits);
    UNROLL for (uint e = 0; e < 32; ++e) {
      const uint t = (32 * u + e) / kVValues, i = segment * kVValues + (32 * u + e) % kVValues;
      const float value = bits < 16 || TOKENS == 1 || t < counted ? unit_values[e] : 0.0;  // and so may be a float
      UNROLL for (uint r = 0; r < QUERIES; ++r) {
        sums[r * kValues + i] = fma(weights[r * TOKENS + t], value, sums[r * kValues + i]);
      }
    }
  }
}

void add_values(uint counted, float weights[kScores]) {
  add_segment(0, V_BITS_0, kKWords, counted, weights);
  if (V_SEGMENTS == 2) add_segment(1, V_BITS_1, kKWords + kVUnits * V_BITS_0, counted, weights);
}

// Blocks first .. end of the sequence, of which the tokens before `length` count.
void attend(uint first, uint end, uint length) {
  const uint block_words = k_block_words() + v_block_words();
  const uint slot = gl_LocalInvocationID.x / kInvocations;
  uvec2 block = advance(cache, (sequence * gl_NumWorkGroups.x + head) * blocks + first + slot, 4 * block_words);
  uint index = first + slot, token = index * KV_BLOCK + place;
  if (index < end) {
    load_keys(block);
    load_values(block);
  }
  for (uint round = first; round < end; round += kBlocksAtOnce) {
    float scores[kScores];
    if (token < length) load_biases(token);
    score_tokens(scores);
    UNROLL for (uint i = 0; i < kScores; ++i) {
      UNROLL for (uint bit = 0; bit < 5; ++bit) {  // counts up, for other loops may stay loops
        if (1u << bit < PARTS) scores[i] += subgroupShuffleXor(scores[i], 1u << bit);
      }
      if ((FLAGS & HAS_BIAS) != 0) scores[i] += biases[i];
    }
    block = advance(block, kBlocksAtOnce, 4 * block_words);
    index += kBlocksAtOnce;
    if (index < end) load_keys(block);
    weigh(token, length, scores);
    if (token < length) add_values(length - token, scores);
    if (index < end) load_values(block);
    token += kBlocksAtOnce * KV_BLOCK;
  }
}

uint summed_value(uint of_part, uint j) { return j / kVValues * V_N + of_part * kVValues + j % kVValues; }

void prepare() {
  const uint within = gl_LocalInvocationID.x % kInvocations;
  part = within % PARTS;
  place = within / PARTS * TOKENS;
  if (K_BITS_0 <= 4)
    load_book(k_codebook, (FLAGS & K_CODEBOOK_OF_HEAD) != 0, K_SEGMENTS, K_BITS_0, K_BITS_1, 0);
  if (V_BITS_0 <= 4)
    load_book(v_codebook, (FLAGS & V_CODEBOOK_OF_HEAD) != 0, V_SEGMENTS, V_BITS_0, V_BITS_1, 2);
  if (kHoldsQueries) {
    load_queries();
  } else {
    share_queries();
  }
  UNROLL for (uint i = 0; i < kWords; ++i) words[i] = 0;
}

const uint kMostRowLanes = 1;  // whose sums are in the order of the columns

#include "kv_attention_end.glsl"
