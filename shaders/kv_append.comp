#version 450
// Encodes new tokens of K and V into the cache: for each token and head, d = HEAD_DIM,
//   x = v - position_mean turned to the token's position - mean,  y = transform x
// then for each segment of n values y the scale s and the codes (runtime/kv_operations.h says how), for QJL the signs of
// projection (y - decoded y) and that remainder's norm. kv_layout.h says where the bits go.
//
//   k, v [tokens, heads, d] D, appends [sequences, 3] i32 (first row, first position, count), table [positions, d] f32
//   mean, position_mean [heads, d], transform [heads or 1, d, d], codebook [heads or 1, size], projection [d, d] f32
//   -> cache [sequences, heads, blocks, block words]
//
// All back ends pack the same bits: products and sums are rounded one by one (`precise`), each sum is one invocation's
// and in ascending order, quotients and roots are only guesses that comparisons correct.
//
// A workgroup takes TOKENS tokens of a block, K or V of one head (grid: pieces, heads x 2 sides, sequences); words of
// different pieces are never the same, for TOKENS is a multiple of 8. Its invocations go over (token, value) to
// transform, (candidate, four values, token) to quantize, (candidate, token) to sum, and words to pack, of the new
// tokens alone. A matrix passes through shared memory in panels of columns; an invocation makes one value of 8 tokens.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "dtype.glsl"
#include "kv_layout.h"
#include "kv_scale.h"

layout(local_size_x_id = 0) in;

layout(constant_id = 0) const uint THREADS = 128;  // >= HEAD_DIM x TOKENS / 8
layout(constant_id = 1) const uint DTYPE = DTYPE_F32;
layout(constant_id = 2) const uint HEAD_DIM = 64;
layout(constant_id = 3) const uint TOKENS = 16;  // 8, 16 or 32

// runtime/kv_operations.h's KvScale.
const uint SCALE_NONE = 0;
const uint SCALE_NORM = 1;
const uint SCALE_CORRECTED = 2;
const uint SCALE_SEARCHED = 3;
const uint SCALE_ABSMAX = 4;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer CacheWords { uint at[]; };

layout(push_constant, scalar) uniform Push {
  Words k;
  Words v;
  Ints appends;
  Words table;
  CacheWords cache;
  Words k_mean;
  Words position_mean;
  Words k_transform;
  Words k_codebook;
  Words projection;
  Words v_mean;
  Words v_transform;
  Words v_codebook;
  uint k_side;
  uint v_side;
  uint blocks;  // of a sequence and head
};

// k_side and v_side: the format and which operands there are. No constants of the pipeline, for little is gained by
// that here and there are many formats.
bool has_mean(uint side) { return bitfieldExtract(side, 0, 1) != 0; }
bool has_position_mean(uint side) { return bitfieldExtract(side, 1, 1) != 0; }
bool has_transform(uint side) { return bitfieldExtract(side, 2, 1) != 0; }
bool has_transform_of_head(uint side) { return bitfieldExtract(side, 3, 1) != 0; }  // one for each head
bool has_codebook_of_head(uint side) { return bitfieldExtract(side, 4, 1) != 0; }
bool has_qjl(uint side) { return bitfieldExtract(side, 5, 1) != 0; }
uint segments_of(uint side) { return bitfieldExtract(side, 6, 2); }
uint bits_0_of(uint side) { return bitfieldExtract(side, 8, 6); }
uint bits_1_of(uint side) { return bitfieldExtract(side, 14, 6); }
uint scale_bits_of(uint side) { return bitfieldExtract(side, 20, 5); }
uint scale_kind_of(uint side) { return bitfieldExtract(side, 25, 3); }
uint block_words_of(uint side) {
  return kv_side_words(HEAD_DIM / segments_of(side), segments_of(side), bits_0_of(side), bits_1_of(side),
                       scale_bits_of(side), has_qjl(side) ? 1 : 0);
}

const uint CANDIDATES = 3;  // of a searched scale

const uint TILE = 8;                                   // tokens of an invocation in a product
const uint kQuads = TOKENS / 4;                        // of tokens
const uint kPitch = TOKENS + (HEAD_DIM > 128 ? 0 : 1);  // of a row of y: odd, where there is room
const uint kPanelMost = 2048 / HEAD_DIM / 4 * 4;
const uint kPanel = kPanelMost < HEAD_DIM ? kPanelMost : HEAD_DIM;  // columns of a matrix in shared memory
const uint kPanelPitch = HEAD_DIM + 1;
const uint kPanelLoads = (HEAD_DIM * kPanel / 4 + THREADS - 1) / THREADS;
const uint kPanelSize = kPanel * kPanelPitch;
const uint kCodesSize = CANDIDATES * HEAD_DIM / 4 * TOKENS;

shared vec4 x_tile[HEAD_DIM * kQuads];  // [value][four tokens]: x, later what quantization leaves over
shared float y_tile[HEAD_DIM * kPitch];  // [value][token]
// A panel of a matrix [column][row]; codes, four in a word, [candidate][four values][token]; signs [value][token].
shared uint pool[kPanelSize > kCodesSize ? kPanelSize : kCodesSize];
shared float book[2 * 31];  // for each segment its centroids, then its thresholds
// For [segment][token]:
shared float squares[2 * TOKENS];       // sum of y^2
shared float first_scale[2 * TOKENS];   // with which codes are found
shared float scale[2 * TOKENS];         // as stored
shared uint scale_code[2 * TOKENS];     // the same, as a code
shared uint chosen[2 * TOKENS];         // candidate, the best so far
shared vec2 sums[CANDIDATES * 2 * TOKENS];  // [candidate][segment][token]: see sum_over_values
shared uint norm_code[TOKENS];                   // of what quantization leaves over

// The side in hand, the same for all of the workgroup.
bool is_v;
uint side, segments, bits_0, bits_1, scale_bits, scale_kind, n;
uint head, heads;
uint first_token;  // of the piece's new tokens: its place in the block
uint count;        // of them

uint bits_of(uint segment) { return segment == 0 ? bits_0 : bits_1; }
uint centroids_at(uint segment) { return segment == 0 ? 0 : (2u << bits_0) - 1; }
uint thresholds_at(uint segment) { return centroids_at(segment) + (1u << bits_of(segment)); }
bool has_codes() { return bits_0 <= 4; }

void choose_side(bool v_chosen) {
  is_v = v_chosen;
  side = v_chosen ? v_side : k_side;
  segments = segments_of(side);
  bits_0 = bits_0_of(side);
  bits_1 = bits_1_of(side);
  scale_bits = scale_bits_of(side);
  scale_kind = scale_kind_of(side);
  n = HEAD_DIM / segments;
}

void load_codebook() {
  if (!has_codes()) return;
  const uint size = centroids_at(1) + (segments == 2 ? (2u << bits_1) - 1 : 0);
  const uint at = has_codebook_of_head(side) ? head * size : 0;
  for (uint i = gl_LocalInvocationID.x; i < size; i += THREADS) {
    book[i] = uintBitsToFloat(is_v ? v_codebook.at[at + i] : k_codebook.at[at + i]);
  }
}

// Two neighbouring values of a token after its means are off; `at` is the first one's place in k or v.
vec2 load_centred(uint at, uint i, uint position) {
  precise vec2 x = is_v ? load2(v, DTYPE, at) : load2(k, DTYPE, at);
  if (has_position_mean(side)) {
    const vec2 m = load2(position_mean, DTYPE_F32, head * HEAD_DIM + i);
    const vec2 turn = load2(table, DTYPE_F32, position * HEAD_DIM + i);  // cosine, sine
    precise const vec2 along = m * turn.x;
    precise const vec2 across = m.yx * turn.y;
    precise const vec2 turned = vec2(along.x - across.x, along.y + across.y);
    x = x - turned;
  }
  if (has_mean(side)) {
    x = x - (is_v ? load2(v_mean, DTYPE_F32, head * HEAD_DIM + i) : load2(k_mean, DTYPE_F32, head * HEAD_DIM + i));
  }
  return x;
}

// Rows row .. row + count of k or v, the first at `position`, centred, to x_tile or, without a transform, to y_tile.
void load_tokens(uint row, uint position) {
  const bool to_x = has_transform(side);
  const uint quads = (count + 3) / 4;
  for (uint item = gl_LocalInvocationID.x; item < HEAD_DIM / 2 * quads; item += THREADS) {
    const uint i = item % (HEAD_DIM / 2) * 2, quad = item / (HEAD_DIM / 2);
    vec4 even = vec4(0.0), odd = vec4(0.0);
    [[unroll]] for (uint c = 0; c < 4; ++c) {
      const uint a = 4 * quad + c;
      if (a >= count) continue;
      const vec2 x = load_centred(((row + a) * heads + head) * HEAD_DIM + i, i, position + a);
      even[c] = x.x;
      odd[c] = x.y;
      if (!to_x) {
        y_tile[i * kPitch + a] = x.x;
        y_tile[(i + 1) * kPitch + a] = x.y;
      }
    }
    if (to_x) {
      x_tile[i * kQuads + quad] = even;
      x_tile[(i + 1) * kQuads + quad] = odd;
    }
  }
}

vec4 staged[kPanelLoads];

// Columns first .. first + kPanel of a matrix whose first element is `at`, to registers.
void load_panel(Words matrix, uint at, uint first) {
  [[unroll]] for (uint l = 0; l < kPanelLoads; ++l) {
    const uint item = l * THREADS + gl_LocalInvocationID.x;
    const uint row = item / (kPanel / 4), column = first + item % (kPanel / 4) * 4;
    staged[l] = vec4(0.0);
    if (row < HEAD_DIM && column < HEAD_DIM) staged[l] = load4(matrix, DTYPE_F32, at + row * HEAD_DIM + column);
  }
}

void store_panel() {
  [[unroll]] for (uint l = 0; l < kPanelLoads; ++l) {
    const uint item = l * THREADS + gl_LocalInvocationID.x;
    const uint row = item / (kPanel / 4), column = item % (kPanel / 4) * 4;
    if (row >= HEAD_DIM) continue;
    [[unroll]] for (uint c = 0; c < 4; ++c) pool[(column + c) * kPanelPitch + row] = floatBitsToUint(staged[l][c]);
  }
}

// Adds a panel's share of one row times x_tile for the tokens of a tile; the panel's first column is `first`.
void add_panel(uint first, uint row, uint tile, inout vec4 low, inout vec4 high) {
  precise vec4 low_sum = low, high_sum = high;
  const uint columns = min(kPanel, HEAD_DIM - first);
  [[dont_unroll]] for (uint column = 0; column < columns; column += 4) {
    [[unroll]] for (uint c = 0; c < 4; ++c) {
      const float element = uintBitsToFloat(pool[(column + c) * kPanelPitch + row]);
      const uint at = (first + column + c) * kQuads + 2 * tile;
      precise const vec4 low_product = element * x_tile[at];
      low_sum = low_sum + low_product;
      if (count <= 4) continue;
      precise const vec4 high_product = element * x_tile[at + 1];
      high_sum = high_sum + high_product;
    }
  }
  low = low_sum;
  high = high_sum;
}

// Value lane % HEAD_DIM of matrix x_tile for the TILE tokens from TILE x (lane / HEAD_DIM) on. load_panel has been
// called for the first columns.
void multiply(Words matrix, uint at, out float result[TILE]) {
  const uint row = gl_LocalInvocationID.x % HEAD_DIM, tile = gl_LocalInvocationID.x / HEAD_DIM;
  vec4 low = vec4(0.0), high = vec4(0.0);
  for (uint first = 0; first < HEAD_DIM; first += kPanel) {
    barrier();  // x_tile is there and nobody reads the pool any more
    store_panel();
    barrier();
    if (first + kPanel < HEAD_DIM) load_panel(matrix, at, first + kPanel);
    if (TILE * tile < count) add_panel(first, row, tile, low, high);
  }
  [[unroll]] for (uint c = 0; c < 4; ++c) {
    result[c] = low[c];
    result[4 + c] = high[c];
  }
}

void transform_tokens(Words matrix, uint at) {
  float made[TILE];
  multiply(matrix, at, made);
  const uint i = gl_LocalInvocationID.x % HEAD_DIM, tile = gl_LocalInvocationID.x / HEAD_DIM;
  [[unroll]] for (uint c = 0; c < TILE; ++c) {
    if (TILE * tile + c < count) y_tile[i * kPitch + TILE * tile + c] = made[c];
  }
}

// The code of the scale nearest to a / b, or to its root; 0 when there is no such number.
uint nearest_scale(uint format, float a, float b, bool root) {
  if (!(b > 0.0)) return 0;
  const float guess = root ? sqrt(a / b) : a / b;
  return kv_scale_nearest(format, guess, a, b, root);
}

// For each segment and token the sum of squares and the scale with which its codes are found.
void measure() {
  for (uint item = gl_LocalInvocationID.x; item < segments * count; item += THREADS) {
    const uint a = item % count, segment = item / count, at = segment * TOKENS + a;
    const uint first = segment * n * kPitch + a;
    precise float sum = 0.0;
    float largest = 0.0;
    for (uint i = 0; i < n; ++i) {
      const float y = y_tile[first + i * kPitch];
      precise const float square = y * y;
      sum = sum + square;
      largest = max(largest, abs(y));
    }
    squares[at] = sum;
    const bool is_absmax = scale_kind == SCALE_ABSMAX;
    const uint format = scale_kind == SCALE_NORM || is_absmax ? scale_bits : 16;
    const float top = has_codes() ? book[thresholds_at(segment) - 1] : 127.0;
    scale_code[at] = nearest_scale(format, is_absmax ? largest : sum, is_absmax ? top : float(n), !is_absmax);
    first_scale[at] = scale_kind == SCALE_NONE ? 1.0 : kv_scale_value(format, scale_code[at]);
    scale[at] = first_scale[at];
    chosen[at] = 0;
  }
}

// The number of the segment's thresholds t with t s < y. They ascend, so that halving finds it.
uint code_of(uint segment, float y, float s) {
  const uint first = thresholds_at(segment);
  uint code = 0;
  for (uint step = 1u << bits_of(segment) >> 1; step > 0; step >>= 1) {
    precise const float threshold = book[first + code + step - 1] * s;
    if (threshold < y) code += step;
  }
  return code;
}

// The integer q in [-127, 127] with (q - 1/2) s <= y < (q + 1/2) s, as a byte.
uint byte_of(float y, float s) {
  if (s == 0.0) return 0;
  float q = clamp(floor(y / s + 0.5), -127.0, 127.0);
  for (uint i = 0; i < 2; ++i) {
    precise const float low = (q - 0.5) * s;
    precise const float high = (q + 0.5) * s;
    if (q > -127.0 && y < low) {
      q -= 1.0;
    } else if (q < 127.0 && y >= high) {
      q += 1.0;
    }
  }
  return uint(int(q)) & 0xffu;
}

uint codes_at(uint candidate, uint four, uint a) { return (candidate * (HEAD_DIM / 4) + four) * TOKENS + a; }

float candidate_scale(uint candidate, uint at) {
  if (scale_kind != SCALE_SEARCHED) return first_scale[at];
  precise const float s = first_scale[at] * kv_search_factor(candidate, chosen[at] == 1);
  return s;
}

// Codes of all values with the scales of candidates first .. first + candidates.
void quantize(uint first, uint candidates) {
  const uint items = candidates * HEAD_DIM / 4 * count;
  for (uint item = gl_LocalInvocationID.x; item < items; item += THREADS) {
    const uint a = item % count, four = item / count % (HEAD_DIM / 4), candidate = first + item / count / (HEAD_DIM / 4);
    const uint segment = 4 * four / n;
    const float s = candidate_scale(candidate, segment * TOKENS + a);
    uint codes = 0;
    [[unroll]] for (uint c = 0; c < 4; ++c) {
      const float y = y_tile[(4 * four + c) * kPitch + a];
      codes |= (bits_0 == 8 ? byte_of(y, s) : code_of(segment, y, s)) << (8 * c);
    }
    pool[codes_at(candidate, four, a)] = codes;
  }
}

// With z the centroids: of a searched scale s the sums of (y - s z)^2 and of y z, of others those of z^2 and of y z.
void sum_over_values(uint first, uint candidates) {
  const bool is_searched = scale_kind == SCALE_SEARCHED;
  for (uint item = gl_LocalInvocationID.x; item < candidates * segments * count; item += THREADS) {
    const uint a = item % count, segment = item / count % segments, candidate = first + item / count / segments;
    const uint centroids = centroids_at(segment);
    const float s = candidate_scale(candidate, segment * TOKENS + a);
    precise vec2 sum = vec2(0.0);
    for (uint i = segment * n; i < (segment + 1) * n; i += 4) {
      const uint codes = pool[codes_at(candidate, i / 4, a)];
      [[unroll]] for (uint c = 0; c < 4; ++c) {
        const float y = y_tile[(i + c) * kPitch + a];
        const float z = book[centroids + (codes >> (8 * c) & 0xffu)];
        precise const float decoded = s * z;
        precise const float difference = y - decoded;
        precise const vec2 product = (is_searched ? vec2(difference, y) : vec2(z, y)) *
                                     (is_searched ? vec2(difference, z) : vec2(z, z));
        sum = sum + product;
      }
    }
    sums[(candidate * 2 + segment) * TOKENS + a] = sum;
  }
}

void choose_candidate(uint candidate) {
  for (uint item = gl_LocalInvocationID.x; item < segments * count; item += THREADS) {
    const uint at = item / count * TOKENS + item % count;
    if (sums[candidate * 2 * TOKENS + at].x < sums[chosen[at] * 2 * TOKENS + at].x) chosen[at] = candidate;
  }
}

// Leaves the best candidate of each token and segment in `chosen`.
void search() {
  quantize(0, 2);
  barrier();
  sum_over_values(0, 2);
  barrier();
  choose_candidate(1);
  barrier();
  quantize(2, 1);
  barrier();
  sum_over_values(2, 1);
  barrier();
  choose_candidate(2);
}

void find_scales() {
  for (uint item = gl_LocalInvocationID.x; item < segments * count; item += THREADS) {
    const uint at = item / count * TOKENS + item % count;
    const vec2 sum = sums[chosen[at] * 2 * TOKENS + at];
    const bool is_searched = scale_kind == SCALE_SEARCHED;
    scale_code[at] = nearest_scale(scale_bits, squares[at], is_searched ? sum.y : sum.x, !is_searched);
    scale[at] = kv_scale_value(scale_bits, scale_code[at]);
  }
}

// Stores the bits of `word` under `mask` at word `at` of the cache, and leaves the others.
void merge_word(uint at, uint word, uint mask) {
  if (mask == 0) return;
  cache.at[at] = mask == 0xffffffffu ? word : cache.at[at] & ~mask | word;
}

bool is_new(uint token) { return token >= first_token && token < first_token + count; }

// Word w of unit f of a segment: value f x 32 + e of the block's tokens, one after another, is element e.
void pack_codes(uint at, uint segment, uint f, uint w) {
  const uint bits = bits_of(segment), all = 0xffffffffu >> (32 - bits);
  uint word = 0, mask = 0;
  [[dont_unroll]] for (uint e = 0; e < 32; e += 4) {
    const bool within = bits == 3 ? e >= 24 || e / 8 == w : e * bits / 32 <= w && w <= (e + 3) * bits / 32;
    const uint token = (f * 32 + e) / n, i = segment * n + (f * 32 + e) % n, a = token - first_token;
    if (!within || !is_new(token)) continue;
    const uint codes = bits <= 8 ? pool[codes_at(chosen[segment * TOKENS + a], i / 4, a)] : 0;
    [[unroll]] for (uint c = 0; c < 4; ++c) {
      const float y = y_tile[(i + c) * kPitch + a];
      const uint code = bits <= 8 ? codes >> (8 * c) & 0xffu : bits == 16 ? f16_bits(y) : floatBitsToUint(y);
      word |= kv_deposit(bits, e + c, w, code);
      mask |= kv_deposit(bits, e + c, w, all);
    }
  }
  merge_word(at + w * n + f, word, mask);
}

// The units that the new tokens' values, `values` of each, lie in.
uvec2 units_of(uint values) {
  const uint first = first_token * values / 32;
  return uvec2(first, ((first_token + count) * values + 31) / 32 - first);
}

void pack_all_codes(uint side_at) {
  const uvec2 units = units_of(n);
  for (uint segment = 0; segment < segments; ++segment) {
    const uint at = side_at + kv_codes_at(n, bits_0, segment);
    for (uint item = gl_LocalInvocationID.x; item < units.y * bits_of(segment); item += THREADS) {
      pack_codes(at, segment, units.x + item % units.y, item / units.y);
    }
  }
}

// Numbers of `bits` bits, 8 or 16, one for each new token: those of `segment`, or with QJL the norms of what is left.
void pack_numbers(uint at, uint bits, uint segment, bool norms) {
  const uint first = kv_scale_word(bits, first_token), last = kv_scale_word(bits, first_token + count - 1);
  for (uint w = first + gl_LocalInvocationID.x; w <= last; w += THREADS) {
    uint word = 0, mask = 0;
    for (uint token = w * (32 / bits); token < (w + 1) * (32 / bits); ++token) {
      if (!is_new(token)) continue;
      const uint a = token - first_token, shift = kv_scale_shift(bits, token);
      word |= (norms ? norm_code[a] : scale_code[segment * TOKENS + a]) << shift;
      mask |= 0xffffffffu >> (32 - bits) << shift;
    }
    merge_word(at + w, word, mask);
  }
}

// What quantization leaves over, y - decoded y, to x_tile.
void find_residual() {
  for (uint item = gl_LocalInvocationID.x; item < HEAD_DIM * ((count + 3) / 4); item += THREADS) {
    const uint i = item % HEAD_DIM, quad = item / HEAD_DIM, segment = i / n;
    vec4 left = vec4(0.0);
    [[unroll]] for (uint c = 0; c < 4; ++c) {
      const uint a = 4 * quad + c;
      if (a >= count) continue;
      const uint codes = pool[codes_at(chosen[segment * TOKENS + a], i / 4, a)];
      const float z = book[centroids_at(segment) + (codes >> (i % 4 * 8) & 0xffu)];
      precise const float decoded = scale[segment * TOKENS + a] * z;
      precise const float difference = y_tile[i * kPitch + a] - decoded;
      left[c] = difference;
    }
    x_tile[i * kQuads + quad] = left;
  }
}

void measure_residual() {
  for (uint a = gl_LocalInvocationID.x; a < count; a += THREADS) {
    precise float sum = 0.0;
    [[dont_unroll]] for (uint i = 0; i < HEAD_DIM; ++i) {
      const float left = x_tile[i * kQuads + a / 4][a % 4];
      precise const float square = left * left;
      sum = sum + square;
    }
    norm_code[a] = nearest_scale(16, sum, 1.0, true);
  }
}

void pack_signs(uint at) {
  const uvec2 units = units_of(HEAD_DIM);
  for (uint f = units.x + gl_LocalInvocationID.x; f < units.x + units.y; f += THREADS) {
    uint word = 0, mask = 0;
    [[dont_unroll]] for (uint e = 0; e < 32; ++e) {
      const uint token = (f * 32 + e) / HEAD_DIM;
      if (!is_new(token)) continue;
      word |= pool[(f * 32 + e) % HEAD_DIM * TOKENS + token - first_token] << e;
      mask |= 1u << e;
    }
    merge_word(at + f, word, mask);
  }
}

void encode_residual(uint side_at) {
  const uint at = side_at + kv_signs_at(n, segments, bits_0, bits_1, scale_bits);
  load_panel(projection, 0, 0);
  find_residual();
  float made[TILE];
  multiply(projection, 0, made);
  measure_residual();
  barrier();
  const uint i = gl_LocalInvocationID.x % HEAD_DIM, tile = gl_LocalInvocationID.x / HEAD_DIM;
  [[unroll]] for (uint c = 0; c < TILE; ++c) {
    if (TILE * tile + c < count) pool[i * TOKENS + TILE * tile + c] = made[c] >= 0.0 ? 1 : 0;
  }
  barrier();
  pack_signs(at);
  pack_numbers(at + HEAD_DIM, 16, 0, true);
}

// The new tokens from position `begin` on, whose rows of k and v begin with `row`.
void encode(uint row, uint begin, uint side_at) {
  Words transform = k_transform;
  if (is_v) transform = v_transform;
  const uint transform_at = has_transform_of_head(side) ? head * HEAD_DIM * HEAD_DIM : 0;
  const bool transforms = has_transform(side);
  if (transforms) load_panel(transform, transform_at, 0);
  load_codebook();
  load_tokens(row, begin);
  if (transforms) transform_tokens(transform, transform_at);
  barrier();
  if (bits_0 <= 8) {
    measure();
    barrier();
    if (scale_kind == SCALE_SEARCHED) {
      search();
    } else {
      quantize(0, 1);
      barrier();
      if (scale_kind == SCALE_CORRECTED) sum_over_values(0, 1);
    }
    barrier();
    if (scale_kind == SCALE_CORRECTED || scale_kind == SCALE_SEARCHED) find_scales();
    barrier();
  }
  pack_all_codes(side_at);
  if (scale_bits > 0) {
    const uint scales_at = side_at + kv_scales_at(n, segments, bits_0, bits_1);
    for (uint segment = 0; segment < segments; ++segment) {
      pack_numbers(scales_at + segment * scale_bits, scale_bits, segment, false);
    }
  }
  if (has_qjl(side)) encode_residual(side_at);
}

void main() {
  heads = gl_NumWorkGroups.y / 2;
  head = gl_WorkGroupID.y / 2;
  choose_side((gl_WorkGroupID.y & 1) != 0);
  const uint sequence = gl_WorkGroupID.z;
  const uint row = uint(appends.at[3 * sequence]), start = uint(appends.at[3 * sequence + 1]);
  const uint end = start + uint(appends.at[3 * sequence + 2]);
  if (start == end) return;
  const uint k_words = block_words_of(k_side), block_words = k_words + block_words_of(v_side);
  for (uint piece = start / TOKENS + gl_WorkGroupID.x; piece * TOKENS < end; piece += gl_NumWorkGroups.x) {
    const uint begin = max(start, piece * TOKENS);
    count = min(end, (piece + 1) * TOKENS) - begin;
    first_token = begin % KV_BLOCK;
    const uint block = (sequence * heads + head) * blocks + begin / KV_BLOCK;
    encode(row + begin - start, begin, block * block_words + (is_v ? k_words : 0));
    barrier();  // before the next piece comes
  }
}
