#version 450
// What kv_append.comp does, for many tokens of fp16 at once: transforms on matrix units and arithmetic in fp16 where
// there are such (variant coopmat), fp32 else. Sums are rounded as they come, so a value within a few thousandths of a
// threshold may get the code beside it, and a scale the one beside it; all else is as in kv_append.comp.
//
//   k, v [tokens, heads, d] f16, appends [sequences, 3] i32 (first row, first position, count), table [rows, d] f32
//   mean, position_mean [heads, d], transform [heads or 1, d, d], codebook [heads or 1, size] f32
//   -> cache [sequences, heads, blocks, block words]
//
// d is 32, 64 or 128, and n, the values of a segment, a multiple of 32: a token's unit of 32 codes is its own. A
// workgroup takes K or V of one head and walks along a run of blocks (grid: runs, heads, 2 sides), GROUPS groups of 32
// invocations at a time, d / 32 of them to a block, each with a unit of its tokens: invocation t makes that of the
// block's token t.
//
//   memory -> x_tile       8 values a thread, as fp16
//   x_tile -> y            a group's 32 rows of the transform times its 32 tokens, fp32 sums, as fp16 (plain: fp32)
//   y -> registers         four pairs of values at a time: pair 4 g + k holds values 8 g + k and 8 g + 4 + k, whose
//                          codes lie 16 bits apart in a word of nibbles
//
// What bounds it is the search for the scale: with H positive centroids a look() takes 2 H + 2 instructions a pair,
// and there are three before the codes are taken. Only Gaussian codebooks are searched: they are known by heart, and
// symmetric, so that H is half of all.
//
// The variant on matrix units computes with fp16 numbers, so it is no shader that tools/retype_bf16.cpp could retype;
// k and v of bf16 models are fp16. Values over 65,504 after the transform are lost.
//
// ROLLED is for drivers that run on the CPU, whose compilers take long over unrolled loops and whose registers are
// memory.
//
// variant: plain
// variant: plain_rolled -DROLLED
// variant: coopmat -DMATRIX
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifdef ROLLED
#define UNROLL [[dont_unroll]]
#else
#define UNROLL [[unroll]]
#endif
#ifdef MATRIX
#include "coopmat.glsl"
#define real2 f16vec2
const float STEEP = 4096.0;  // see above(); times the largest x it is still finite
#else
#include "dtype.glsl"
layout(local_size_x_id = 1) in;
layout(constant_id = 1) const uint THREADS = 128;
#define real2 vec2
const float STEEP = 1048576.0;
#endif
#include "kv_gaussian.h"
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
const uint GAUSSIAN = 32;  // the codebook is kv_gaussian.h's

// runtime/kv_operations.h's KvScale.
const uint SCALE_NONE = 0;
const uint SCALE_NORM = 1;
const uint SCALE_CORRECTED = 2;
const uint SCALE_SEARCHED = 3;

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer CacheWords { uint at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) restrict readonly buffer Values { uvec4 at[]; };

layout(push_constant, scalar) uniform Push {
  Values k;
  Values v;
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
  uint blocks;      // of a sequence and head
  uint table_rows;  // of `table`
  uint sequences;
  uint steps;       // of all sequences
  uint run;         // steps of a workgroup
};

const uint UNIT = 32;  // codes; also the invocations of a group and the tokens of a block
const uint PAIRS = UNIT / 2;
const uint GROUPS = THREADS / UNIT;
const uint UNITS = HEAD_DIM / UNIT;   // of a token
const uint SLOTS = GROUPS / UNITS;    // blocks at a time
const uint COLUMNS = HEAD_DIM / 8;    // eights in a row of x
const uint X_LOADS = SLOTS * KV_BLOCK * COLUMNS / THREADS;
const uint X_PITCH = COLUMNS + 1;  // in uvec4, like the other pitches: rows of eight threads lie in different banks
const uint X_SIZE = SLOTS * KV_BLOCK * X_PITCH;
#ifdef MATRIX
// The turned mean is linear in the cosines and sines of a position: a product with them takes it off.
const bool HAS_TABLE = (K_FLAGS & HAS_POSITION_MEAN) != 0;
const uint Y_PITCH = UNIT / 8 + 1;
const uint Y_SIZE = THREADS * Y_PITCH;
const uint ROW_PITCH = (HAS_TABLE ? 2 : 1) * COLUMNS + 1;
shared uvec4 x_tile[X_SIZE > Y_SIZE ? X_SIZE : Y_SIZE];  // [slot][token][value], then y: [group][token][value]
shared uvec4 table_tile[HAS_TABLE ? X_SIZE : 1];         // [slot][token][cosine, sine, ...]
shared uvec4 transform_tile[HEAD_DIM * ROW_PITCH];       // [unit][row][column], then columns for the table
#else
shared uvec4 x_tile[X_SIZE];                      // [slot][token][value]
shared vec2 y_tile[THREADS * (PAIRS + 1)];        // [group][token][pair]
#endif
shared uint edges[2 * 16];  // packed thresholds of each segment's codebook, if it is not Gaussian
shared float partial[GROUPS * UNIT];
shared uint scale_codes[GROUPS * UNIT];

// The same for all of the workgroup.
bool is_v;
uint head, heads;
// Of a sequence's append: the place in k and v of position 0, if that were new, and the new positions.
struct Range {
  uint row_0, start, count;
};
Range range;  // in hand

// This invocation's.
uint group, unit, slot, lane;
uint token;  // position in the sequence

uint flags() { return is_v ? V_FLAGS : K_FLAGS; }
bool is_new(Range r, uint position) { return position - r.start < r.count; }

// Orders what a group's invocations leave in shared memory for each other.
void sync_group() {
#ifdef MATRIX
  sync_subgroup();
#else
  barrier();
#endif
}

// A number as the constant of a pair's arithmetic, packed in a word, and back.
uint packed_constant(float number) {
#ifdef MATRIX
  return packHalf2x16(vec2(number));
#else
  return floatBitsToUint(number);
#endif
}
real2 constant(uint word) {
#ifdef MATRIX
  return unpackFloat2x16(word);
#else
  return vec2(uintBitsToFloat(word));
#endif
}

void load_thresholds() {
  const uint segments = is_v ? V_SEGMENTS : K_SEGMENTS;
  const uint bits_0 = is_v ? V_BITS_0 : K_BITS_0, bits_1 = is_v ? V_BITS_1 : K_BITS_1;
  const uint second = (2u << bits_0) - 1, size = second + (segments == 2 ? (2u << bits_1) - 1 : 0);
  if (bits_0 > 4 || (flags() & GAUSSIAN) != 0) return;
  for (uint i = gl_LocalInvocationID.x; i < 16 * segments; i += THREADS) {
    const uint t = i % 16, count = 1u << (i < 16 ? bits_0 : bits_1);
    if (t >= count - 1) continue;
    const uint at = ((flags() & CODEBOOK_OF_HEAD) != 0 ? head * size : 0) + (i < 16 ? 0 : second) + count + t;
    edges[i] = packed_constant(uintBitsToFloat(is_v ? v_codebook.at[at] : k_codebook.at[at]));
  }
}

// Four neighbouring elements of a transform, or of the identity.
vec4 load_transform(uint row, uint column) {
  if ((flags() & HAS_TRANSFORM) == 0) return vec4(equal(uvec4(row), column + uvec4(0, 1, 2, 3)));
  const uint at = (((flags() & TRANSFORM_OF_HEAD) != 0 ? head * HEAD_DIM : 0) + row) * HEAD_DIM + column;
  return is_v ? load4(v_transform, DTYPE_F32, at) : load4(k_transform, DTYPE_F32, at);
}

#ifndef MATRIX
vec4 turned_mean(uint position, uint column) {
  const vec4 m = load4(position_mean, DTYPE_F32, head * HEAD_DIM + column);
  const vec4 turn = load4(table, DTYPE_F32, position * HEAD_DIM + column);  // cosine, sine, cosine, sine
  return m * turn.xxzz + vec4(-m.y, m.x, -m.w, m.z) * turn.yyww;
}
#endif

// Values of tokens from position `first` on, of all slots, to x_tile; zeros for those that are not new. Plain: centred;
// on matrix units without the mean that is turned.

const uint TOKEN_STEP = THREADS / COLUMNS;

vec4 load_mean(uint column) {
  if ((flags() & HAS_MEAN) == 0) return vec4(0.0);
  const uint at = head * HEAD_DIM + column;
  return is_v ? load4(v_mean, DTYPE_F32, at) : load4(k_mean, DTYPE_F32, at);
}

uvec4 pack_eight(vec4 low, vec4 high) {
  return uvec4(packHalf2x16(low.xy), packHalf2x16(low.zw), packHalf2x16(high.xy), packHalf2x16(high.zw));
}

#ifdef MATRIX
uvec4 packed_mean;  // of this invocation's column
#endif

void share_tokens(uint first) {
  const uint column = gl_LocalInvocationID.x % COLUMNS, first_token = gl_LocalInvocationID.x / COLUMNS;
  Values source = k;
  if (is_v) source = v;
  const uint from = ((range.row_0 + first + first_token) * heads + head) * COLUMNS + column;
  uvec4 words[X_LOADS];
  UNROLL for (uint i = 0; i < X_LOADS; ++i) {
    words[i] = uvec4(0);
    const uint t = first_token + i * TOKEN_STEP;
    if (is_new(range, first + t)) words[i] = source.at[from + i * TOKEN_STEP * heads * COLUMNS];
  }
  UNROLL for (uint i = 0; i < X_LOADS; ++i) {
    const uint t = first_token + i * TOKEN_STEP;
#ifdef MATRIX
    if ((flags() & HAS_MEAN) != 0) {
      UNROLL for (uint w = 0; w < 4; ++w) {
        words[i][w] = packFloat2x16(unpackFloat2x16(words[i][w]) - unpackFloat2x16(packed_mean[w]));
      }
    }
#else
    if ((flags() & (HAS_MEAN | HAS_POSITION_MEAN)) != 0) {
      vec4 low = vec4(unpackHalf2x16(words[i].x), unpackHalf2x16(words[i].y)) - load_mean(8 * column);
      vec4 high = vec4(unpackHalf2x16(words[i].z), unpackHalf2x16(words[i].w)) - load_mean(8 * column + 4);
      if ((flags() & HAS_POSITION_MEAN) != 0 && is_new(range, first + t)) {
        low -= turned_mean(first + t, 8 * column);
        high -= turned_mean(first + t, 8 * column + 4);
      }
      words[i] = pack_eight(low, high);
    }
#endif
    x_tile[t * X_PITCH + column] = words[i];
  }
}

#ifdef MATRIX
// The table's rows from position `first` on; any row will do for positions that have none.
void share_table(uint first) {
  const uint column = gl_LocalInvocationID.x % COLUMNS, first_token = gl_LocalInvocationID.x / COLUMNS;
  UNROLL for (uint i = 0; i < X_LOADS; ++i) {
    const uint t = first_token + i * TOKEN_STEP, at = min(first + t, table_rows - 1) * HEAD_DIM + 8 * column;
    table_tile[t * X_PITCH + column] = pack_eight(load4(table, DTYPE_F32, at), load4(table, DTYPE_F32, at + 4));
  }
}
#endif

// y = transform x for this invocation's unit and token.

#ifdef MATRIX
// Row p of a unit as the matrices have them: pairs of values side by side.
uint paired_row(uint p) { return p / 8 * 8 + p % 8 / 2 + p % 2 * 4; }

// What a row of the transform, four columns of it, does to the turned mean, as a factor of four numbers of the table.
vec4 on_turned_mean(vec4 a, uint column) {
  const vec4 m = load4(position_mean, DTYPE_F32, head * HEAD_DIM + column);
  return vec4(a.x * m.x + a.y * m.y, a.y * m.x - a.x * m.y, a.z * m.z + a.w * m.w, a.w * m.z - a.z * m.w);
}

void share_transform() {
  for (uint item = gl_LocalInvocationID.x; item < HEAD_DIM * COLUMNS; item += THREADS) {
    const uint p = item / COLUMNS, row = p / UNIT * UNIT + paired_row(p % UNIT), column = item % COLUMNS * 8;
    const vec4 low = load_transform(row, column), high = load_transform(row, column + 4);
    const uint at = p * ROW_PITCH + item % COLUMNS;
    transform_tile[at] = pack_eight(low, high);
    if (HAS_TABLE && !is_v) {
      transform_tile[at + COLUMNS] = pack_eight(-on_turned_mean(low, column), -on_turned_mean(high, column + 4));
    }
  }
}

// Adds the product of 32 rows of the transform, from column 16 k on, and 16 columns of this slot's tokens.
void multiply(uint k, MatrixA tokens[2], inout Sums sums[4]) {
  UNROLL for (uint j = 0; j < 2; ++j) {
    MatrixB rows;
    coopMatLoad(rows, transform_tile, (unit * UNIT + j * M) * ROW_PITCH + k * (M / 8), ROW_PITCH, COLUMN_MAJOR);
    UNROLL for (uint i = 0; i < 2; ++i) sums[2 * i + j] = coopMatMulAdd(tokens[i], rows, sums[2 * i + j]);
  }
}

void transform_token() {
  const uint DEPTH = HEAD_DIM / M, x_at = slot * KV_BLOCK * X_PITCH;
  Sums sums[4];
  MatrixA tokens[2];
  UNROLL for (uint i = 0; i < 4; ++i) sums[i] = Sums(0.0);
  UNROLL for (uint k = 0; k < DEPTH; ++k) {
    UNROLL for (uint i = 0; i < 2; ++i) {
      coopMatLoad(tokens[i], x_tile, x_at + i * M * X_PITCH + k * (M / 8), X_PITCH, ROW_MAJOR);
    }
    multiply(k, tokens, sums);
  }
  if (HAS_TABLE && !is_v) {
    UNROLL for (uint k = 0; k < DEPTH; ++k) {
      UNROLL for (uint i = 0; i < 2; ++i) {
        coopMatLoad(tokens[i], table_tile, x_at + i * M * X_PITCH + k * (M / 8), X_PITCH, ROW_MAJOR);
      }
      multiply(DEPTH + k, tokens, sums);
    }
  }
  barrier();  // all have read x
  const uint at = group * UNIT * Y_PITCH;
  UNROLL for (uint i = 0; i < 2; ++i) {
    UNROLL for (uint j = 0; j < 2; ++j) {
      const coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator> narrow =
          coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>(sums[2 * i + j]);
      coopMatStore(narrow, x_tile, at + i * M * Y_PITCH + j * (M / 8), Y_PITCH, ROW_MAJOR);
    }
  }
  sync_group();
}

// Pairs 4 g .. 4 g + 3.
void load_pairs(uint g, out real2 pairs[4]) {
  const uvec4 words = x_tile[gl_LocalInvocationID.x * Y_PITCH + g];
  UNROLL for (uint k = 0; k < 4; ++k) pairs[k] = unpackFloat2x16(words[k]);
}
#else
void share_transform() {}

void transform_token() {
  float sums[UNIT];
  UNROLL for (uint i = 0; i < UNIT; ++i) sums[i] = 0.0;
  [[dont_unroll]] for (uint column = 0; column < HEAD_DIM; column += 8) {
    const uvec4 words = x_tile[(slot * KV_BLOCK + lane) * X_PITCH + column / 8];
    const vec4 low = vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y));
    const vec4 high = vec4(unpackHalf2x16(words.z), unpackHalf2x16(words.w));
    UNROLL for (uint i = 0; i < UNIT; ++i) {
      const uint row = unit * UNIT + i;
      sums[i] += dot(load_transform(row, column), low) + dot(load_transform(row, column + 4), high);
    }
  }
  UNROLL for (uint i = 0; i < PAIRS; ++i) {
    y_tile[gl_LocalInvocationID.x * (PAIRS + 1) + i] = vec2(sums[i / 4 * 8 + i % 4], sums[i / 4 * 8 + i % 4 + 4]);
  }
}

void load_pairs(uint g, out real2 pairs[4]) {
  UNROLL for (uint k = 0; k < 4; ++k) pairs[k] = y_tile[gl_LocalInvocationID.x * (PAIRS + 1) + 4 * g + k];
}
#endif

// Quantization of this invocation's unit.

// 1 where x is above the threshold, 0 where below, something between very near to it.
real2 above(real2 x, float threshold) {
  return clamp(fma(x, real2(STEEP), real2(-threshold * STEEP)), real2(0.0), real2(1.0));
}

// With x = factor |y| and z its nearest centroids, of a Gaussian codebook: the sums of (x - z)^2 and of x z.
vec2 look(uint bits, float factor) {
  const real2 scaling = constant(packed_constant(factor));
  real2 error = real2(0.0), xz = real2(0.0);
  UNROLL for (uint g = 0; g < PAIRS / 4; ++g) {
    real2 pairs[4];
    load_pairs(g, pairs);
    UNROLL for (uint k = 0; k < 4; ++k) {
      const real2 x = abs(pairs[k] * scaling);
      real2 z = real2(kv_gaussian_centroid(bits, 0));
      UNROLL for (uint t = 1; t < 1u << bits >> 1; ++t) {
        const float step = kv_gaussian_centroid(bits, t) - kv_gaussian_centroid(bits, t - 1);
        z = fma(above(x, kv_gaussian_threshold(bits, t)), real2(step), z);
      }
      const real2 difference = x - z;
      error = fma(difference, difference, error);
      xz = fma(x, z, xz);
    }
  }
  return vec2(float(error.x) + float(error.y), float(xz.x) + float(xz.y));
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

// The codes of factor y, eight to a word: of values 8 g .. 8 g + 7, a field of 1, 2 or 4 bits each. Returns, if asked
// for it of a Gaussian codebook, the sum of z^2, z the centroids; else the thresholds begin with edges[at].
float find_codes(uint bits, uint at, bool gaussian, float factor, bool wants_squares, out uint eights[4]) {
  const uint half_count = 1u << bits >> 1, field = bits >= 3 ? 4 : bits;
  const real2 scaling = constant(packed_constant(factor));
  real2 squares = real2(0.0);
  UNROLL for (uint g = 0; g < PAIRS / 4; ++g) {
    real2 pairs[4];
    load_pairs(g, pairs);
    uint both = 0;  // of values 8 g + k in the lower half, 8 g + 4 + k in the upper
    UNROLL for (uint k = 0; k < 4; ++k) {
      uint code;
      if (gaussian) {
        const real2 x = abs(pairs[k] * scaling);
        real2 z = real2(kv_gaussian_centroid(bits, 0)), index = real2(half_count);
        UNROLL for (uint t = 1; t < half_count; ++t) {
          const real2 is_above = above(x, kv_gaussian_threshold(bits, t));
          const float step = kv_gaussian_centroid(bits, t) - kv_gaussian_centroid(bits, t - 1);
          index += is_above;
          if (wants_squares) z = fma(is_above, real2(step), z);
        }
        if (wants_squares) squares = fma(z, z, squares);
        code = whole(index) ^ negative(pairs[k]) * ((1u << bits) - 1);  // the mirror image has all bits inverted
      } else {
        real2 index = real2(0.0);
        UNROLL for (uint t = 0; t + 1 < 2 * half_count; ++t) {
          index += clamp((pairs[k] - constant(edges[at + t])) * real2(STEEP), real2(0.0), real2(1.0));
        }
        code = whole(index);
      }
      both += code * (1u << field * k);
    }
    if (field < 4) both = (both | both >> (16 - 4 * field)) & (1u << 8 * field) - 1;
    eights[g] = both;
  }
  return float(squares.x) + float(squares.y);
}

// The words of a unit from those of find_codes.
void pack_unit(uint bits, uint eights[4], out uint words[4]) {
  if (bits == 4) {
    UNROLL for (uint w = 0; w < 4; ++w) words[w] = eights[w];
  } else if (bits == 3) {
    UNROLL for (uint w = 0; w < 3; ++w) words[w] = eights[w] | (eights[3] >> w & 0x11111111u) << 3;
  } else if (bits == 2) {
    UNROLL for (uint w = 0; w < 2; ++w) words[w] = eights[2 * w] | eights[2 * w + 1] << 16;
  } else {
    words[0] = eights[0] | eights[1] << 8 | eights[2] << 16 | eights[3] << 24;
  }
}

// The sum of `value` over a token's units of one segment, `units` of them.
float join(float value, uint units) {
  if (units == 1) return value;
  barrier();
  partial[(slot * UNITS + unit) * UNIT + lane] = value;
  barrier();
  const uint first = slot * UNITS + unit / units * units;
  float sum = 0.0;
  UNROLL for (uint u = 0; u < units; ++u) sum += partial[(first + u) * UNIT + lane];
  return sum;
}

// Stores the group's scales, of a block and segment, which begin at word `at` of the cache.
void store_scales(uint bits, uint at) {
  if (lane >= bits) return;
  const uint per_word = 32 / bits;
  uint word = 0, mask = 0;
  UNROLL for (uint i = 0; i < per_word; ++i) {
    const uint t = lane * per_word + i;
    if (!is_new(range, token - lane + t)) continue;
    word |= scale_codes[group * UNIT + t] << (i * bits);
    mask |= (1u << bits) - 1 << (i * bits);
  }
  if (mask == 0) return;
  cache.at[at + lane] = mask == 0xffffffffu ? word : cache.at[at + lane] & ~mask | word;
}

// The code of the scale nearest to a value.
uint nearest_scale(uint scale_bits, float value) {
  const uint half_step = 1u << (scale_bits == 8 ? 17 : 12);
  const uint lowest = kv_scale_lowest(scale_bits);
  const uint code = kv_scale_below(scale_bits, uintBitsToFloat(floatBitsToUint(value) + half_step));
  return code == 0 && value >= 0.5 * kv_scale_value(scale_bits, lowest) ? lowest : code;
}

// Stores this invocation's unit of an f16 cache, from the row of x at `x_at`.
void store_halves(uint at, uint x_at, uint units) {
  UNROLL for (uint eight = 0; eight < UNIT / 8; ++eight) {
    const uvec4 words = x_tile[x_at + eight];
    UNROLL for (uint w = 0; w < 4; ++w) cache.at[at + (4 * eight + w) * KV_BLOCK * units] = words[w];
  }
}

// Quantizes and stores this invocation's unit. The side begins at word `side_at` of the cache.
void encode(uint segments, uint bits_0, uint bits_1, uint scale_bits, uint scale_kind, bool gaussian, uint side_at) {
  const uint units = UNITS / segments, n = HEAD_DIM / segments;
  const bool is_second = segments == 2 && unit >= units, stores = is_new(range, token);
  const uint at = side_at + kv_codes_at(n, bits_0, is_second ? 1 : 0) + token % KV_BLOCK * units + unit % units;
  if (bits_0 == 16) {
    if (stores) store_halves(at, (slot * KV_BLOCK + lane) * X_PITCH + unit * (UNIT / 8), units);
    return;
  }
  bits_0 = min(bits_0, 4);
  transform_token();

  float squares = 0.0, first_scale = 1.0, factor = 1.0;
  uint scale_code = 0;
  if (scale_kind != SCALE_NONE) {
    UNROLL for (uint g = 0; g < PAIRS / 4; ++g) {
      real2 pairs[4];
      load_pairs(g, pairs);
      UNROLL for (uint k = 0; k < 4; ++k) squares += dot(vec2(pairs[k]), vec2(pairs[k]));
    }
    squares = join(squares, units);
    first_scale = sqrt(squares / float(n));
    if (scale_kind == SCALE_NORM) {
      scale_code = nearest_scale(scale_bits, first_scale);
      first_scale = kv_scale_value(scale_bits, scale_code);
    }
    factor = first_scale > 0.0 ? min(1.0 / first_scale, 50000.0) : 0.0;  // a finite fp16, over any candidate too
  }
  if (scale_kind == SCALE_SEARCHED) {
    const float inverse = factor;
    float least = 0.0, best_xz = 0.0;
    bool second_is_better = false;
    [[dont_unroll]] for (uint candidate = 0; candidate < 3; ++candidate) {
      const float tried = kv_search_factor(candidate, second_is_better);
      const float scaling = inverse / tried;
      const vec2 seen = is_second ? look(bits_1, scaling) : look(bits_0, scaling);
      const float error = join(seen.x, units) * tried * tried;
      const bool is_better = candidate == 0 || error < least;
      second_is_better = second_is_better || is_better && candidate == 1;
      factor = is_better ? scaling : factor;
      best_xz = is_better ? seen.y : best_xz;
      least = is_better ? error : least;
    }
    const float xz = join(best_xz, units);  // |y|^2 / (y . z) with x = factor y
    scale_code = xz > 0.0 ? nearest_scale(scale_bits, squares * factor / xz) : 0;
  }

  uint eights[4], words[4];
  const bool corrects = scale_kind == SCALE_CORRECTED;
  float z_squares;
  if (is_second) {
    z_squares = find_codes(bits_1, 16, gaussian, factor, corrects, eights);
    pack_unit(bits_1, eights, words);
  } else {
    z_squares = find_codes(bits_0, 0, gaussian, factor, corrects, eights);
    pack_unit(bits_0, eights, words);
  }
  UNROLL for (uint w = 0; w < 4; ++w) {
    if (w < (is_second ? bits_1 : bits_0) && stores) cache.at[at + w * KV_BLOCK * units] = words[w];
  }
  if (corrects) scale_code = nearest_scale(scale_bits, sqrt(squares / join(z_squares, units)));
  if (scale_kind == SCALE_NONE) return;
  const uint scales_at = side_at + kv_scales_at(n, segments, bits_0, bits_1) + (is_second ? scale_bits : 0);
  scale_codes[group * UNIT + lane] = scale_code;
  sync_group();
  if (unit % units == 0) store_scales(scale_bits, scales_at);
}

uint k_words() {
  return kv_side_words(HEAD_DIM / K_SEGMENTS, K_SEGMENTS, K_BITS_0, K_BITS_1, K_SCALE_BITS, 0);
}
uint v_words() {
  return kv_side_words(HEAD_DIM / V_SEGMENTS, V_SEGMENTS, V_BITS_0, V_BITS_1, V_SCALE_BITS, 0);
}

// Step i is SLOTS blocks of sequence i % sequences: all sequences take the same blocks one after another, and find the
// table's rows there.
Range range_of(uint step) {
  const uint at = 3 * (step % sequences);
  const uint start = uint(appends.at[at + 1]);
  return Range(uint(appends.at[at]) - start, start, uint(appends.at[at + 2]));
}
uint first_block_of(uint step, Range r) { return r.start / KV_BLOCK + step / sequences * SLOTS; }

void main() {
  heads = gl_NumWorkGroups.y;
  head = gl_WorkGroupID.y;
  is_v = gl_WorkGroupID.z != 0;  // one side after the other, each with code of its own
  group = gl_LocalInvocationID.x / UNIT;
  lane = gl_LocalInvocationID.x % UNIT;
  unit = group % UNITS;
  slot = group / UNITS;
  const uint first = gl_WorkGroupID.x * run, last = min(first + run, steps);

  load_thresholds();
  if ((is_v ? V_BITS_0 : K_BITS_0) <= 4) share_transform();
#ifdef MATRIX
  const uint column = gl_LocalInvocationID.x % COLUMNS * 8;
  packed_mean = pack_eight(load_mean(column), load_mean(column + 4));
#endif
  uint table_block = ~0u;  // whose rows are in the tile
  for (uint step = first; step < last; ++step) {
    range = range_of(step);
    const uint block = first_block_of(step, range);
    if (block * KV_BLOCK >= range.start + range.count) continue;
    barrier();  // nobody reads x_tile any more
    share_tokens(block * KV_BLOCK);
#ifdef MATRIX
    if (HAS_TABLE && !is_v && block != table_block) {
      share_table(block * KV_BLOCK);
      table_block = block;
    }
#endif
    barrier();
    token = (block + slot) * KV_BLOCK + lane;
    const uint at = ((step % sequences * heads + head) * blocks + block + slot) * (k_words() + v_words());
    if (is_v) {
      encode(V_SEGMENTS, V_BITS_0, V_BITS_1, V_SCALE_BITS, V_SCALE_KIND, (V_FLAGS & GAUSSIAN) != 0, at + k_words());
    } else {
      encode(K_SEGMENTS, K_BITS_0, K_BITS_1, K_SCALE_BITS, K_SCALE_KIND, (K_FLAGS & GAUSSIAN) != 0, at);
    }
  }
}
