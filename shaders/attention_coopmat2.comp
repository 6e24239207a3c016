#version 450
// Bidirectional attention inside packed sequences: out = softmax(q k^T) v per head, as attention_coopmat.comp, with what
// VK_NV_cooperative_matrix2 adds to a subgroup's matrices. Operations on their elements, reductions of rows and
// conversion from sums to a left operand keep scores and probabilities in registers. q, k, v and out are [tokens, heads,
// head_dim] in D (fp16 or bf16), sequence b is tokens cu_seqlens[b] .. cu_seqlens[b + 1], q is scaled.
//
// A workgroup takes 16 ROWS queries a subgroup of one head of one sequence and walks over the sequence's keys in blocks
// of KEYS (FlashAttention, Dao et al. 2022): the block's k and v go through shared memory (loaded to registers one block
// ahead), each subgroup makes its scores = q k^T, probabilities exp(score - reference), and adds probabilities x v to its
// sums. The reference of a row is some earlier maximum of it; scores begin at its negative, so that subtracting it costs
// nothing. It is raised only when a score exceeds it by more than kSlack: in the first block, and hardly ever after.
// That is exact: sums and totals use the same reference, and probabilities of at most e^8 are well inside fp16's range.
//
// Conversion to bf16 cuts off bits, so probabilities are cut off before they are added to a row's total: what is lost
// then cancels, but for its variation, which is no more than that of rounding. Results are rounded before conversion.
//
// Blocks start at the sequence's first key, and a row does not depend on its neighbours, so a result does not depend on
// the batch. Keys past the sequence's end score -infinity, their k and v are zeros. head_dim is padded with zeros to a
// multiple of 16 in shared memory only. Needs: head_dim % 8 == 0.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_vote : require
#extension GL_NV_cooperative_matrix2 : require
#include "coopmat.glsl"

layout(constant_id = 3) const uint HEAD_DIM = 64;
layout(constant_id = 4) const uint KEYS = 64;
layout(constant_id = 5) const uint ROWS = 1;  // times 16 queries of a subgroup

layout(push_constant, scalar) uniform Push {
  Eights q;
  Eights k;
  Eights v;
  Ints cu_seqlens;
  WordQuads result;
  uint heads;
} push;

#define Result coopmat<float16_t, gl_ScopeSubgroup, 16, 16, gl_MatrixUseAccumulator>

const float kLog2E = 1.4426950408889634;
const float kSlack = 8.0;
const float kLowest = -3.0e38;

const uint QUERIES = THREADS / SUBGROUP * ROWS * M;
const uint COLUMNS = HEAD_DIM / EIGHTS;       // uvec4 of a head's row in memory
const uint FD = (HEAD_DIM + M - 1) / M;       // matrices across head_dim
const uint FK = KEYS / M;                     // and across a block of keys
const uint PADDED_COLUMNS = FD * M / EIGHTS;  // COLUMNS and the zeros

// Blocks of k and v in shared memory, in uvec4; rows are padded by 16 bytes against bank conflicts.
const uint ROW = PADDED_COLUMNS + 1;
const uint V_AT = KEYS * ROW;
shared uvec4 tile[2 * KEYS * ROW];

const uint BLOCK_COPIES = (KEYS * PADDED_COLUMNS + THREADS - 1) / THREADS;
uvec4 staged_k[BLOCK_COPIES];
uvec4 staged_v[BLOCK_COPIES];

MatrixA queries[ROWS * FD];
Sums negative_reference[ROWS];  // every column the same
Sums totals[ROWS];              // of probabilities; their columns' sum counts
Sums sums[ROWS * FD];
bool exceeds;  // whether a score of this invocation's is so much above its row's reference that it must be raised

// The head's rows of this workgroup's sequence.
uint pitch;   // from one token's row to the next, in uvec4
uint origin;  // first uvec4 of token 0
uint tokens;  // of the sequence

// Uvec4 number `item` of a padded block of rows that starts at token `first`; zeros outside of the sequence and head.
uvec4 load_padded(Eights source, uint first, uint item) {
  const uint token = first + item / PADDED_COLUMNS;
  const uint column = item % PADDED_COLUMNS;
  return token < tokens && column < COLUMNS ? source.at[origin + token * pitch + column] : uvec4(0);
}

void load_block(uint first) {
  [[unroll]] for (uint i = 0; i < BLOCK_COPIES; ++i) {
    const uint item = i * THREADS + gl_LocalInvocationIndex;
    staged_k[i] = load_padded(push.k, first, item);
    staged_v[i] = load_padded(push.v, first, item);
  }
}

void store_block() {
  [[unroll]] for (uint i = 0; i < BLOCK_COPIES; ++i) {
    const uint item = i * THREADS + gl_LocalInvocationIndex;
    const uint place = item / PADDED_COLUMNS * ROW + item % PADDED_COLUMNS;
    if ((i + 1) * THREADS <= KEYS * PADDED_COLUMNS || item < KEYS * PADDED_COLUMNS) {
      tile[place] = staged_k[i];
      tile[V_AT + place] = staged_v[i];
    }
  }
}

// Functions of a matrix's elements.

float larger(const in float a, const in float b) { return max(a, b); }
float added(const in float a, const in float b) { return a + b; }
float larger_of(const in uint row, const in uint column, const in float a, const in float b) { return max(a, b); }

float masked(const in uint row, const in uint column, const in float score, const in uint first_key) {
  return first_key + column < tokens ? score : kLowest;
}

// The probability, relative to the reference, as it will be converted.
float weight_of(const in uint row, const in uint column, const in float score) {
  exceeds = exceeds || score > kSlack;
  const float weight = exp2(score * kLog2E);
  return DTYPE == DTYPE_BF16 ? uintBitsToFloat(floatBitsToUint(weight) & 0xffff0000u) : weight;
}

// By how much a row's reference rises, from the largest of its scores.
float rise_of(const in uint row, const in uint column, const in float highest, const in bool is_first) {
  return is_first || highest > kSlack ? highest : 0.0;
}

float shrunk(const in uint row, const in uint column, const in float value, const in float rise) {
  return value * exp2(-rise * kLog2E);
}

float result_of(const in uint row, const in uint column, const in float sum, const in float total) {
  const float value = sum / total;
  return DTYPE == DTYPE_BF16 ? uintBitsToFloat(bf16_bits(value) << 16) : value;
}

// Of rows number r, for this block's scores.
void raise_reference(uint r, bool is_first, inout Sums scores[FK]) {
  Sums highest = scores[0];
  [[unroll]] for (uint j = 1; j < FK; ++j) coopMatPerElementNV(highest, highest, larger_of, scores[j]);
  Sums rise;
  coopMatReduceNV(rise, highest, gl_CooperativeMatrixReduceRowNV, larger);
  coopMatPerElementNV(rise, rise, rise_of, is_first);
  [[unroll]] for (uint j = 0; j < FK; ++j) scores[j] -= rise;
  negative_reference[r] -= rise;
  if (is_first) return;  // nothing has been added up
  coopMatPerElementNV(totals[r], totals[r], shrunk, rise);
  [[unroll]] for (uint d = 0; d < FD; ++d) coopMatPerElementNV(sums[r * FD + d], sums[r * FD + d], shrunk, rise);
}

// sums += probabilities v, of the block in shared memory.
void add_block(uint first_key) {
  Sums scores[ROWS * FK];
  [[unroll]] for (uint j = 0; j < FK; ++j) {
    [[unroll]] for (uint r = 0; r < ROWS; ++r) scores[r * FK + j] = negative_reference[r];
    [[unroll]] for (uint d = 0; d < FD; ++d) {
      MatrixB k;
      coopMatLoad(k, tile, j * M * ROW + d * (M / EIGHTS), ROW, COLUMN_MAJOR);
      [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        scores[r * FK + j] = coopMatMulAdd(queries[r * FD + d], k, scores[r * FK + j]);
      }
    }
  }
  MatrixA probabilities[ROWS * FK];
  [[unroll]] for (uint r = 0; r < ROWS; ++r) {
    Sums row_scores[FK];
    Sums weights[FK];
    exceeds = false;
    [[unroll]] for (uint j = 0; j < FK; ++j) {
      row_scores[j] = scores[r * FK + j];
      if (first_key + KEYS > tokens) {
        coopMatPerElementNV(row_scores[j], row_scores[j], masked, first_key + j * M);
      }
      coopMatPerElementNV(weights[j], row_scores[j], weight_of);
    }
    if (first_key == 0 || subgroupAny(exceeds)) {
      raise_reference(r, first_key == 0, row_scores);
      [[unroll]] for (uint j = 0; j < FK; ++j) coopMatPerElementNV(weights[j], row_scores[j], weight_of);
    }
    [[unroll]] for (uint j = 0; j < FK; ++j) {
      totals[r] += weights[j];
      probabilities[r * FK + j] = MatrixA(weights[j]);
    }
  }
  [[unroll]] for (uint j = 0; j < FK; ++j) {
    [[unroll]] for (uint d = 0; d < FD; ++d) {
      MatrixB v;
      coopMatLoad(v, tile, V_AT + j * M * ROW + d * (M / EIGHTS), ROW, ROW_MAJOR);
      [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        sums[r * FD + d] = coopMatMulAdd(probabilities[r * FK + j], v, sums[r * FD + d]);
      }
    }
  }
}

// The head's rows as a tensor [tokens, HEAD_DIM], zeros around it.
#define HEAD_ROWS                                                                                                      \
  setTensorLayoutStrideNV(setTensorLayoutDimensionNV(createTensorLayoutNV(2, gl_CooperativeMatrixClampModeConstantNV), \
                                                     tokens, HEAD_DIM),                                                \
                          pitch* EIGHTS, 1)

void load_queries(uint first_query) {
  [[unroll]] for (uint r = 0; r < ROWS; ++r) {
    [[unroll]] for (uint d = 0; d < FD; ++d) {
      MatrixA q;
      coopMatLoadTensorNV(q, push.q.at, origin, sliceTensorLayoutNV(HEAD_ROWS, first_query + r * M, M, d * M, M));
      queries[r * FD + d] = q;
    }
  }
}

void write_result(uint first_query) {
  [[unroll]] for (uint r = 0; r < ROWS; ++r) {
    Sums total;
    coopMatReduceNV(total, totals[r], gl_CooperativeMatrixReduceRowNV, added);
    [[unroll]] for (uint d = 0; d < FD; ++d) {
      coopMatPerElementNV(sums[r * FD + d], sums[r * FD + d], result_of, total);
      const Result result = Result(sums[r * FD + d]);
      coopMatStoreTensorNV(result, push.result.at, origin,
                           sliceTensorLayoutNV(HEAD_ROWS, first_query + r * M, M, d * M, M));
    }
  }
}

void main() {
  const uint begin = uint(push.cu_seqlens.at[gl_WorkGroupID.z]);
  tokens = uint(push.cu_seqlens.at[gl_WorkGroupID.z + 1]) - begin;
  if (gl_WorkGroupID.x * QUERIES >= tokens) return;  // the whole workgroup
  pitch = push.heads * COLUMNS;
  origin = begin * pitch + gl_WorkGroupID.y * COLUMNS;
  const uint first_query = gl_WorkGroupID.x * QUERIES + gl_SubgroupID * ROWS * M;

  load_block(0);
  load_queries(first_query);
  [[unroll]] for (uint r = 0; r < ROWS; ++r) {
    negative_reference[r] = Sums(0.0);
    totals[r] = Sums(0.0);
  }
  [[unroll]] for (uint i = 0; i < ROWS * FD; ++i) sums[i] = Sums(0.0);
  for (uint first_key = 0; first_key < tokens; first_key += KEYS) {
    barrier();  // nobody reads the block before any more
    store_block();
    barrier();
    load_block(first_key + KEYS);
    if (first_query < tokens) add_block(first_key);  // a subgroup past the sequence's end only helps to load
  }
  if (first_query < tokens) write_result(first_query);
}
