// What the kernels of attention over a cache, kv_attention.comp and kv_attention_rows.comp, begin with: the same
// specialization constants, operands and state; their middle part differs, and kv_attention_end.glsl follows it.
//
// Everything is unrolled, for what is in registers has no index; ROLLED is for drivers that run on the CPU, whose
// compilers take long over that and whose registers are memory.
#ifndef KV_ATTENTION_GLSL
#define KV_ATTENTION_GLSL

#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "dtype.glsl"
#include "kv_layout.h"
#include "kv_scale.h"
#include "reduce.glsl"

#ifdef ROLLED
#define UNROLL [[dont_unroll]]
#else
#define UNROLL [[unroll]]
#endif

layout(local_size_x_id = 0) in;

layout(constant_id = 0) const uint THREADS = 128;  // a multiple of the invocations that share a block
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint QUERIES = 1;  // of a sequence, 1 to 4
layout(constant_id = 3) const uint TOKENS = 1;   // of an invocation; 1, or whole groups of tokens
layout(constant_id = 4) const uint PARTS = 2;    // of a token: a power of two, no more than a subgroup; TOKENS is 1 or PARTS is
layout(constant_id = 5) const uint K_SEGMENTS = 1;
layout(constant_id = 6) const uint K_BITS_0 = 3;
layout(constant_id = 7) const uint K_BITS_1 = 0;
layout(constant_id = 8) const uint K_SCALE_BITS = 16;
layout(constant_id = 9) const uint QJL = 0;
layout(constant_id = 10) const uint V_SEGMENTS = 1;
layout(constant_id = 11) const uint V_BITS_0 = 4;
layout(constant_id = 12) const uint V_BITS_1 = 0;
layout(constant_id = 13) const uint V_SCALE_BITS = 16;
layout(constant_id = 14) const uint FLAGS = 0;
layout(constant_id = 15) const uint RESULT_DTYPE = DTYPE_F32;
layout(constant_id = 16) const uint MERGED = 16;  // values merged at a time; divides those of an invocation

// FLAGS
const uint HAS_BIAS = 1;
const uint HAS_TRANSFORM = 2;
const uint TRANSFORM_OF_HEAD = 4;  // one for each head
const uint HAS_MEAN = 8;
const uint K_CODEBOOK_OF_HEAD = 16;
const uint V_CODEBOOK_OF_HEAD = 32;

// What no one writes while the kernel runs, so that the compiler may load it at any time and by read-only caches.
layout(buffer_reference, scalar, buffer_reference_align = 4) restrict readonly buffer ReadWords { uint at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) restrict readonly buffer ReadQuads { uvec4 at[]; };
// Shared between workgroups while they run: COUNTERS of arrivals, zero at rest, then [head of a sequence][split][query]
// of a largest score, a sum of weights and HEAD_DIM sums of values.
layout(buffer_reference, scalar, buffer_reference_align = 4) coherent buffer Scratch { uint at[]; };

layout(push_constant, scalar) uniform Push {
  Words q;
  Words projected;
  ReadWords bias;
  uvec2 cache;
  Ints lengths;
  ReadWords k_codebook;
  ReadWords v_codebook;
  Words transform;
  Words mean;
  Words result;
  Scratch scratch;
  uint blocks;  // of a sequence and head
  // Constants that the compiler is not to know (kv_attention_rows.comp):
  uvec2 ones;      // 7 and 15
  uint shifts[7];  // 4 i + 2
};

const float kLog2E = 1.44269504089;
const float kRootOfHalfPi = 1.25331413732;
const float kLowest = -1e30;  // below every score; finite, because infinities need not work
const float SLACK = 16.0;     // in units of log 2
const uint COUNTERS = 16384;

const uint K_N = HEAD_DIM / K_SEGMENTS;  // values of a segment
const uint V_N = HEAD_DIM / V_SEGMENTS;
const uint kValues = HEAD_DIM / PARTS;                // of an invocation, both segments
const uint kInvocations = KV_BLOCK / TOKENS * PARTS;  // that share a block
const uint kBlocksAtOnce = THREADS / kInvocations;

shared float book[4][16];  // centroids of codes: of the segments of K, then of V
shared float merge_buffer[MERGED * (THREADS + 1)];  // [value][invocation]
shared float merged[HEAD_DIM];
shared float weight_of_split[THREADS];
shared uint arrived;  // workgroups of this head and sequence that were here before

float sums[QUERIES * kValues];  // [query][value]
float largest[QUERIES];         // of the scores, loosely, in units of log 2
float total[QUERIES];           // of exp2(score - largest)

uint head, sequence, part;
uint place;  // of the first of this invocation's tokens in its block
uint first_row() { return sequence * QUERIES; }
uint row_of(uint query) { return (first_row() + query) * gl_NumWorkGroups.x + gl_WorkGroupID.x; }

uint k_block_words() { return kv_side_words(K_N, K_SEGMENTS, K_BITS_0, K_BITS_1, K_SCALE_BITS, QJL); }
uint v_block_words() { return kv_side_words(V_N, V_SEGMENTS, V_BITS_0, V_BITS_1, V_SCALE_BITS, 0); }
uint k_scales_at() { return kv_scales_at(K_N, K_SEGMENTS, K_BITS_0, K_BITS_1); }
uint v_scales_at() { return k_block_words() + kv_scales_at(V_N, V_SEGMENTS, V_BITS_0, V_BITS_1); }
uint signs_at() { return kv_signs_at(K_N, K_SEGMENTS, K_BITS_0, K_BITS_1, K_SCALE_BITS); }

// A loop of known length, not one that begins at the invocation: it becomes straight code, whose loads fly together.
void load_book(ReadWords codebook, bool of_head, uint segments, uint bits_0, uint bits_1, uint table) {
  const uint second = (2u << bits_0) - 1, size = second + (segments == 2 ? (2u << bits_1) - 1 : 0);
  const uint first = of_head ? head * size : 0;
  UNROLL for (uint base = 0; base < 16 * segments; base += THREADS) {
    const uint i = base + gl_LocalInvocationID.x, code = i % 16;
    if (i < 16 * segments && code >> (i < 16 ? bits_0 : bits_1) == 0) {
      book[table + i / 16][code] = uintBitsToFloat(codebook.at[first + (i < 16 ? 0 : second) + code]);
    }
  }
}

#endif  // KV_ATTENTION_GLSL
