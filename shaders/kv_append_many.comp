#version 450
// What kv_append.comp does, for many tokens of fp16 at once: transforms on matrix units and arithmetic in fp16 where
// there are such (variant coopmat), fp32 else. Sums are rounded as they come, so a value within a few thousandths of a
// threshold may get the code beside it, and a scale the one beside it; all else is as in kv_append.comp.
//
//   k, v [tokens, heads, d] f16, appends [sequences, 3] i32 (first row, first position, count), table [positions, d] f32
//   mean, position_mean [heads, d], transform [heads or 1, d, d], codebook [heads or 1, size] f32
//   -> cache [sequences, heads, blocks, block words]
//
// d is 32, 64 or 128, and n, the values of a segment, a multiple of 32: a token's unit of 32 codes is its own. A
// workgroup takes K or V of one head of a sequence and walks along a run of blocks (grid: runs, heads x 2 sides,
// sequences), GROUPS groups of 32 invocations at a time, d / 32 of them to a block: invocation t of group u makes unit
// u of the block's token t, from the product to the words of codes, and keeps its 32 values in registers.
//
//   memory -> shared       8 values a thread, centred, as fp16: x_tile [token][value]
//   shared -> matrices     a group's 32 rows of the transform stay in registers; times 32 tokens, fp32 sums, to shared
//                          memory as fp16 and from there to the invocation that owns the token
//   registers              pairs of values: pair 4 g + k holds values 8 g + k and 8 g + 4 + k, whose codes lie 16 bits
//                          apart in a word of nibbles
//
// What bounds it is the search for the scale: with |u| scaled and H positive centroids a look at a pair takes 2 H + 1
// instructions, and there are three looks, and a last one that takes H - 1 more. A codebook symmetric about 0 halves H.
//
// variant: plain
// variant: coopmat -DMATRIX
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifdef MATRIX
#include "coopmat.glsl"
#define real float16_t
#define real2 f16vec2
const float STEEP = 4096.0;  // see above(); largest times the largest |u| is still finite
#else
#include "dtype.glsl"
layout(local_size_x_id = 1) in;
layout(constant_id = 1) const uint THREADS = 128;
#define real float
#define real2 vec2
const float STEEP = 1048576.0;
#endif
#include "kv_layout.h"
#include "kv_scale.h"

layout(constant_id = 3) const uint HEAD_DIM = 64;
layout(constant_id = 4) const uint K_SEGMENTS = 2;
layout(constant_id = 5) const uint K_BITS_0 = 4;
layout(constant_id = 6) const uint K_BITS_1 = 3;
layout(constant_id = 7) const uint K_SCALE_BITS = 8;
layout(constant_id = 8) const uint K_SCALE_KIND = 3;
layout(constant_id = 9) const uint V_SEGMENTS = 2;
layout(constant_id = 10) const uint V_BITS_0 = 4;
layout(constant_id = 11) const uint V_BITS_1 = 2;
layout(constant_id = 12) const uint V_SCALE_BITS = 8;
layout(constant_id = 13) const uint V_SCALE_KIND = 3;
layout(constant_id = 14) const uint K_FLAGS = 0;
layout(constant_id = 15) const uint V_FLAGS = 0;

// K_FLAGS, V_FLAGS
const uint HAS_MEAN = 1;
const uint HAS_POSITION_MEAN = 2;
const uint HAS_TRANSFORM = 4;
const uint TRANSFORM_OF_HEAD = 8;  // one for each head
const uint CODEBOOK_OF_HEAD = 16;
const uint SYMMETRIC = 32;  // the codebook

// runtime/kv_operations.h's KvScale.
const uint SCALE_NONE = 0;
const uint SCALE_NORM = 1;
const uint SCALE_CORRECTED = 2;
const uint SCALE_SEARCHED = 3;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer CacheWords { uint at[]; };

layout(push_constant, scalar) uniform Push {
  WordQuads k;
  WordQuads v;
  Ints appends;
  Words table;
  CacheWords cache;
  Words k_mean;
  Words position_mean;
  Words k_transform;
  Words k_codebook;
  Words v_mean;
  Words v_transform;
  Words v_codebook;
  uint blocks;  // of a sequence and head
  uint run;     // blocks of a workgroup
};

const uint UNIT = 32;  // codes; also the invocations of a group and the tokens of a block
const uint PAIRS = UNIT / 2;
const uint GROUPS = THREADS / UNIT;
const uint UNITS = HEAD_DIM / UNIT;   // of a token
const uint SLOTS = GROUPS / UNITS;    // blocks at a time
const uint COLUMNS = HEAD_DIM / 8;    // eights in a row of x
const uint X_PITCH = COLUMNS + 1;     // in uvec4, like the next: rows of eight threads lie in different banks
const uint Y_PITCH = UNIT / 8 + 1;
const uint X_LOADS = SLOTS * KV_BLOCK * COLUMNS / THREADS;

shared uvec4 x_tile[SLOTS * KV_BLOCK * X_PITCH];  // [slot][token][value]
#ifdef MATRIX
shared uvec4 y_tile[GROUPS * UNIT * Y_PITCH];  // [group][token][value]; before that rows of the transform
const uint DEPTH = HEAD_DIM / M;
MatrixA transform_rows[2 * DEPTH];  // of this group
#endif
shared float book[2 * 31];  // for each segment its centroids, then its thresholds
shared float partial[GROUPS * UNIT];
shared uint scale_codes[GROUPS * UNIT];

// The same for all of the workgroup.
bool is_v;
uint head, heads, first_row, start, end;

// This invocation's.
uint group, unit, slot, lane;
uint token;       // position in the sequence
real2 y[PAIRS];   // transformed values, later over the token's first scale

uint flags() { return is_v ? V_FLAGS : K_FLAGS; }
bool is_new(uint position) { return position >= start && position < end; }

// Orders what a group's invocations leave in shared memory for each other.
void sync_group() {
#ifdef MATRIX
  sync_subgroup();
#else
  barrier();
#endif
}

void load_codebook() {
  const uint bits_0 = is_v ? V_BITS_0 : K_BITS_0, bits_1 = is_v ? V_BITS_1 : K_BITS_1;
  const uint size = (2u << bits_0) - 1 + ((is_v ? V_SEGMENTS : K_SEGMENTS) == 2 ? (2u << bits_1) - 1 : 0);
  const uint at = (flags() & CODEBOOK_OF_HEAD) != 0 ? head * size : 0;
  for (uint i = gl_LocalInvocationID.x; i < size; i += THREADS) {
    book[i] = uintBitsToFloat(is_v ? v_codebook.at[at + i] : k_codebook.at[at + i]);
  }
}

// Four neighbouring elements of a transform, or of the identity.
vec4 load_transform(uint row, uint column) {
  if ((flags() & HAS_TRANSFORM) == 0) return vec4(equal(uvec4(row), column + uvec4(0, 1, 2, 3)));
  const uint at = (((flags() & TRANSFORM_OF_HEAD) != 0 ? head * HEAD_DIM : 0) + row) * HEAD_DIM + column;
  return is_v ? load4(v_transform, DTYPE_F32, at) : load4(k_transform, DTYPE_F32, at);
}

// The centred values of tokens from position `first` on, of all slots, to x_tile; zeros for those that are not new.

vec4 turned_mean(uint position, uint column) {
  const vec4 m = load4(position_mean, DTYPE_F32, head * HEAD_DIM + column);
  const vec4 turn = load4(table, DTYPE_F32, position * HEAD_DIM + column);  // cosine, sine, cosine, sine
  return m * turn.xxzz + vec4(-m.y, m.x, -m.w, m.z) * turn.yyww;
}

void load_tokens(uint first) {
  const uint column = gl_LocalInvocationID.x % COLUMNS;
  uvec4 words[X_LOADS];
  [[unroll]] for (uint i = 0; i < X_LOADS; ++i) {
    const uint position = first + gl_LocalInvocationID.x / COLUMNS + i * (THREADS / COLUMNS);
    words[i] = uvec4(0);
    if (!is_new(position)) continue;
    const uint at = ((first_row + position - start) * heads + head) * COLUMNS + column;
    words[i] = is_v ? v.at[at] : k.at[at];
  }
  vec4 mean_low = vec4(0.0), mean_high = vec4(0.0);
  if ((flags() & HAS_MEAN) != 0) {
    const uint at = head * HEAD_DIM + 8 * column;
    mean_low = is_v ? load4(v_mean, DTYPE_F32, at) : load4(k_mean, DTYPE_F32, at);
    mean_high = is_v ? load4(v_mean, DTYPE_F32, at + 4) : load4(k_mean, DTYPE_F32, at + 4);
  }
  [[unroll]] for (uint i = 0; i < X_LOADS; ++i) {
    const uint row = gl_LocalInvocationID.x / COLUMNS + i * (THREADS / COLUMNS), position = first + row;
    vec4 low = vec4(unpackHalf2x16(words[i].x), unpackHalf2x16(words[i].y)) - mean_low;
    vec4 high = vec4(unpackHalf2x16(words[i].z), unpackHalf2x16(words[i].w)) - mean_high;
    if ((flags() & HAS_POSITION_MEAN) != 0 && is_new(position)) {
      low -= turned_mean(position, 8 * column);
      high -= turned_mean(position, 8 * column + 4);
    }
    x_tile[row * X_PITCH + column] = uvec4(packHalf2x16(low.xy), packHalf2x16(low.zw), packHalf2x16(high.xy),
                                           packHalf2x16(high.zw));
  }
}

// y = transform x for this invocation's unit and token.

#ifdef MATRIX
// Row p of a group's 32 as the matrices have them: pairs of values side by side.
uint paired_row(uint p) { return p / 8 * 8 + p % 8 / 2 + p % 2 * 4; }

void load_transform_rows() {
  const uint at = group * UNIT * Y_PITCH;
  [[unroll]] for (uint first = 0; first < HEAD_DIM; first += UNIT) {
    [[dont_unroll]] for (uint eight = 0; eight < UNIT / 8; ++eight) {  // of columns; a lane's row
      const uint row = unit * UNIT + paired_row(lane), column = first + 8 * eight;
      const vec4 low = load_transform(row, column), high = load_transform(row, column + 4);
      y_tile[at + lane * Y_PITCH + eight] = uvec4(packHalf2x16(low.xy), packHalf2x16(low.zw), packHalf2x16(high.xy),
                                                  packHalf2x16(high.zw));
    }
    sync_group();
    [[unroll]] for (uint k = 0; k < UNIT / M; ++k) {
      [[unroll]] for (uint i = 0; i < 2; ++i) {
        coopMatLoad(transform_rows[i * DEPTH + first / M + k], y_tile, at + i * M * Y_PITCH + k * (M / 8), Y_PITCH,
                    ROW_MAJOR);
      }
    }
    sync_group();
  }
}

void transform_token() {
  Sums sums[4];
  [[unroll]] for (uint i = 0; i < 4; ++i) sums[i] = Sums(0.0);
  [[unroll]] for (uint k = 0; k < DEPTH; ++k) {
    [[unroll]] for (uint j = 0; j < 2; ++j) {
      MatrixB x;
      coopMatLoad(x, x_tile, (slot * KV_BLOCK + j * M) * X_PITCH + k * (M / 8), X_PITCH, COLUMN_MAJOR);
      [[unroll]] for (uint i = 0; i < 2; ++i) {
        sums[2 * i + j] = coopMatMulAdd(transform_rows[i * DEPTH + k], x, sums[2 * i + j]);
      }
    }
  }
  const uint at = group * UNIT * Y_PITCH;
  [[unroll]] for (uint i = 0; i < 2; ++i) {
    [[unroll]] for (uint j = 0; j < 2; ++j) {
      const coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator> narrow =
          coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>(sums[2 * i + j]);
      coopMatStore(narrow, y_tile, at + j * M * Y_PITCH + i * (M / 8), Y_PITCH, COLUMN_MAJOR);
    }
  }
  sync_group();
  [[unroll]] for (uint g = 0; g < UNIT / 8; ++g) {
    const uvec4 words = y_tile[at + lane * Y_PITCH + g];
    [[unroll]] for (uint k = 0; k < 4; ++k) y[4 * g + k] = unpackFloat2x16(words[k]);
  }
}
#else
void load_transform_rows() {}

void transform_token() {
  float sums[UNIT];
  [[unroll]] for (uint i = 0; i < UNIT; ++i) sums[i] = 0.0;
  [[dont_unroll]] for (uint column = 0; column < HEAD_DIM; column += 8) {
    const uvec4 words = x_tile[(slot * KV_BLOCK + lane) * X_PITCH + column / 8];
    const vec4 low = vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y));
    const vec4 high = vec4(unpackHalf2x16(words.z), unpackHalf2x16(words.w));
    [[unroll]] for (uint i = 0; i < UNIT; ++i) {
      sums[i] += dot(load_transform(unit * UNIT + i, column), low) + dot(load_transform(unit * UNIT + i, column + 4), high);
    }
  }
  [[unroll]] for (uint i = 0; i < PAIRS; ++i) y[i] = vec2(sums[i / 4 * 8 + i % 4], sums[i / 4 * 8 + i % 4 + 4]);
}
#endif

// Quantization of this invocation's unit. `at` is where its segment's codebook begins in `book`.

// 1 where x is above the threshold, 0 where it is below, something between within 1 / STEEP of it.
real2 above(real2 x, float threshold) {
  return clamp(fma(x, real2(STEEP), real2(-threshold * STEEP)), real2(0.0), real2(1.0));
}

float centroid_of(uint at, uint i) { return book[at + i]; }
float threshold_of(uint bits, uint at, uint i) { return book[at + (1u << bits) + i]; }

// The sum of (x - z)^2 over x = |y| / factor and z its nearest centroid; the codebook is symmetric.
float error_at(uint bits, uint at, float factor) {
  const uint half_count = 1u << bits >> 1;
  const real2 inverse = real2(1.0 / factor);
  real2 sum = real2(0.0);
  [[unroll]] for (uint i = 0; i < PAIRS; ++i) {
    const real2 x = abs(y[i] * inverse);
    real2 z = real2(centroid_of(at, half_count));
    [[unroll]] for (uint t = 1; t < half_count; ++t) {
      const float step = centroid_of(at, half_count + t) - centroid_of(at, half_count + t - 1);
      z = fma(above(x, threshold_of(bits, at, half_count - 1 + t)), real2(step), z);
    }
    const real2 difference = x - z;
    sum = fma(difference, difference, sum);
  }
  return float(sum.x) + float(sum.y);
}

// Two whole numbers, up to 15, to the halves of a word.
uint whole(real2 numbers) {
#ifdef MATRIX
  return packFloat2x16(numbers + real2(1024.0)) & 0x000f000fu;
#else
  const uvec2 rounded = uvec2(numbers + 0.5);
  return rounded.x | rounded.y << 16;
#endif
}

uint negative(real2 numbers) {  // bits 0 and 16
#ifdef MATRIX
  return packFloat2x16(numbers) >> 15 & 0x00010001u;
#else
  return (numbers.x < 0.0 ? 1 : 0) | (numbers.y < 0.0 ? 0x10000 : 0);
#endif
}

// The codes of x = y / factor, for each pair in the halves of a word; adds up x z and z^2 with the centroids z. With a
// codebook that is not symmetric the factor is 1 and nothing is added up.
void find_codes(uint bits, uint at, bool symmetric, float factor, out uint codes[PAIRS], out vec2 sum) {
  const uint half_count = 1u << bits >> 1;
  const real2 inverse = real2(1.0 / factor);
  sum = vec2(0.0);
  [[unroll]] for (uint g = 0; g < PAIRS / 4; ++g) {
    real2 xz = real2(0.0), zz = real2(0.0);  // of few, as fp16 is short
    [[unroll]] for (uint k = 0; k < 4; ++k) {
      const uint i = 4 * g + k;
      real2 index = real2(0.0);
      if (symmetric) {
        const real2 x = abs(y[i] * inverse);
        real2 z = real2(centroid_of(at, half_count));
        [[unroll]] for (uint t = 1; t < half_count; ++t) {
          const float step = centroid_of(at, half_count + t) - centroid_of(at, half_count + t - 1);
          const real2 is_above = above(x, threshold_of(bits, at, half_count - 1 + t));
          z = fma(is_above, real2(step), z);
          index += is_above;
        }
        xz = fma(x, z, xz);
        zz = fma(z, z, zz);
        // Code half_count + index, or of its mirror image: all bits inverted.
        const uint is_negative = negative(y[i]);
        codes[i] = (whole(index) | half_count * 0x00010001u) ^ ((is_negative << bits) - is_negative);
      } else {
        [[unroll]] for (uint t = 0; t < 2 * half_count - 1; ++t) {
          const real2 difference = y[i] - real2(threshold_of(bits, at, t));
          index += clamp(difference * real2(STEEP), real2(0.0), real2(1.0));
        }
        codes[i] = whole(index);
      }
    }
    sum += vec2(float(xz.x) + float(xz.y), float(zz.x) + float(zz.y));
  }
}

// The words of a unit from the codes of its pairs.
void pack_unit(uint bits, uint codes[PAIRS], out uint words[4]) {
  uint eights[4];  // the codes of values 8 g .. 8 g + 7
  [[unroll]] for (uint g = 0; g < 4; ++g) {
    const uint field = bits >= 3 ? 4 : bits;
    const uint both = codes[4 * g] | codes[4 * g + 1] << field | codes[4 * g + 2] << (2 * field) |
                      codes[4 * g + 3] << (3 * field);
    eights[g] = field == 4 ? both : (both | both >> (16 - 4 * field)) & (1u << 8 * field) - 1;
    words[g] = 0;
  }
  if (bits == 4) {
    [[unroll]] for (uint w = 0; w < 4; ++w) words[w] = eights[w];
  } else if (bits == 3) {
    [[unroll]] for (uint w = 0; w < 3; ++w) words[w] = eights[w] | (eights[3] >> w & 0x11111111u) << 3;
  } else if (bits == 2) {
    [[unroll]] for (uint w = 0; w < 2; ++w) words[w] = eights[2 * w] | eights[2 * w + 1] << 16;
  } else {
    words[0] = eights[0] | eights[1] << 8 | eights[2] << 16 | eights[3] << 24;
  }
}

// The sum of `value` over a token's units of one segment, `units` of them.
float join(float value, uint units) {
  if (units == 1) return value;
  barrier();
  partial[gl_LocalInvocationID.x] = value;
  barrier();
  const uint first = group / units * units;
  float sum = 0.0;
  [[unroll]] for (uint u = 0; u < units; ++u) sum += partial[(first + u) * UNIT + lane];
  return sum;
}

// Stores the group's scales, of a block and segment, which begin at word `at` of the cache.
void store_scales(uint bits, uint at) {
  if (lane >= bits) return;
  const uint per_word = 32 / bits;
  uint word = 0, mask = 0;
  [[unroll]] for (uint i = 0; i < per_word; ++i) {
    const uint t = lane * per_word + i;
    if (!is_new(token - lane + t)) continue;
    word |= scale_codes[group * UNIT + t] << (i * bits);
    mask |= (1u << bits) - 1 << (i * bits);
  }
  if (mask == 0) return;
  cache.at[at + lane] = mask == 0xffffffffu ? word : cache.at[at + lane] & ~mask | word;
}

// Quantizes and stores this invocation's unit. The side begins at word `side_at` of the cache, and is this workgroup's.
void encode(uint segments, uint bits_0, uint bits_1, uint scale_bits, uint scale_kind, bool symmetric, uint side_at,
            bool counts) {
  const uint units = UNITS / segments, n = HEAD_DIM / segments;
  const bool is_second = segments == 2 && unit >= units;
  const uint second_at = (2u << bits_0) - 1;

  float squares = 0.0, first_scale = 1.0;
  if (scale_kind != SCALE_NONE) {
    [[unroll]] for (uint i = 0; i < PAIRS; ++i) {
      const vec2 wide = vec2(y[i]);
      squares += dot(wide, wide);
    }
    squares = join(squares, units);
    first_scale = sqrt(squares / float(n));
  }
  uint scale_code = 0;
  if (scale_kind == SCALE_NORM) {
    scale_code = kv_scale_nearest(scale_bits, first_scale, squares, float(n), true);
    first_scale = kv_scale_value(scale_bits, scale_code);
  }
  float factor = 1.0;
  if (scale_kind != SCALE_NONE) {
    const real2 inverse = real2(first_scale > 0.0 ? 1.0 / first_scale : 0.0);
    [[unroll]] for (uint i = 0; i < PAIRS; ++i) y[i] *= inverse;
  }
  if (scale_kind == SCALE_SEARCHED) {
    float least = 0.0;
    bool second_is_better = false;
    [[dont_unroll]] for (uint candidate = 0; candidate < 3; ++candidate) {
      const float tried = kv_search_factor(candidate, second_is_better);
      const float found = is_second ? error_at(bits_1, second_at, tried) : error_at(bits_0, 0, tried);
      const float error = join(found, units) * tried * tried;
      const bool is_better = candidate == 0 || error < least;
      second_is_better = second_is_better || is_better && candidate == 1;
      factor = is_better ? tried : factor;
      least = is_better ? error : least;
    }
  }

  uint codes[PAIRS], words[4];
  vec2 sum;
  if (is_second) {
    find_codes(bits_1, second_at, symmetric, factor, codes, sum);
    pack_unit(bits_1, codes, words);
  } else {
    find_codes(bits_0, 0, symmetric, factor, codes, sum);
    pack_unit(bits_0, codes, words);
  }
  const uint bits = is_second ? bits_1 : bits_0;
  const uint at = side_at + kv_codes_at(n, bits_0, is_second ? 1 : 0) + token % KV_BLOCK * units + unit % units;
  [[unroll]] for (uint w = 0; w < 4; ++w) {
    if (w < bits && counts && is_new(token)) cache.at[at + w * KV_BLOCK * units] = words[w];
  }

  if (scale_kind == SCALE_SEARCHED) {
    const float yz = join(sum.x, units) * factor * first_scale;
    scale_code = kv_scale_nearest(scale_bits, squares / yz, squares, yz, false);
  } else if (scale_kind == SCALE_CORRECTED) {
    const float zz = join(sum.y, units);
    scale_code = kv_scale_nearest(scale_bits, sqrt(squares / zz), squares, zz, true);
  }
  if (scale_kind == SCALE_NONE) return;
  const uint scales_at = side_at + kv_scales_at(n, segments, bits_0, bits_1) + (is_second ? scale_bits : 0);
  scale_codes[group * UNIT + lane] = scale_code;
  sync_group();
  if (counts && unit % units == 0) store_scales(scale_bits, scales_at);
}

uint k_words() {
  return kv_side_words(HEAD_DIM / K_SEGMENTS, K_SEGMENTS, K_BITS_0, K_BITS_1, K_SCALE_BITS, 0);
}
uint v_words() {
  return kv_side_words(HEAD_DIM / V_SEGMENTS, V_SEGMENTS, V_BITS_0, V_BITS_1, V_SCALE_BITS, 0);
}

void main() {
  heads = gl_NumWorkGroups.y / 2;
  head = gl_WorkGroupID.y / 2;
  is_v = (gl_WorkGroupID.y & 1) != 0;
  group = gl_LocalInvocationID.x / UNIT;
  lane = gl_LocalInvocationID.x % UNIT;
  unit = group % UNITS;
  slot = group / UNITS;
  const uint sequence = gl_WorkGroupID.z;
  first_row = uint(appends.at[3 * sequence]);
  start = uint(appends.at[3 * sequence + 1]);
  end = start + uint(appends.at[3 * sequence + 2]);
  const uint first = start / KV_BLOCK + gl_WorkGroupID.x * run;
  const uint last = min(first + run, (end + KV_BLOCK - 1) / KV_BLOCK);
  if (start == end || first >= last) return;

  load_codebook();
  load_transform_rows();
  for (uint block = first; block < last; block += SLOTS) {
    barrier();  // nobody reads x_tile any more
    load_tokens(block * KV_BLOCK);
    barrier();
    transform_token();
    token = (block + slot) * KV_BLOCK + lane;
    const bool counts = block + slot < last;
    const uint at = ((sequence * heads + head) * blocks + block + slot) * (k_words() + v_words());
    if (is_v) {
      encode(V_SEGMENTS, V_BITS_0, V_BITS_1, V_SCALE_BITS, V_SCALE_KIND, (V_FLAGS & SYMMETRIC) != 0, at + k_words(),
             counts);
    } else {
      encode(K_SEGMENTS, K_BITS_0, K_BITS_1, K_SCALE_BITS, K_SCALE_KIND, (K_FLAGS & SYMMETRIC) != 0, at, counts);
    }
  }
}
