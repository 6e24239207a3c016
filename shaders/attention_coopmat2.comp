#version 450
// Bidirectional attention inside packed sequences: out = softmax(q k^T) v per head, as attention_coopmat.comp, with
// what VK_NV_cooperative_matrix2 adds to a subgroup's matrices. Operations on their elements, reductions of rows and
// conversion from sums to a left operand keep scores and probabilities in registers. q, k, v and out are
// [tokens, heads, head_dim], the first three in D (fp16 or bf16), out in DTYPE (either of them); sequence b is tokens
// cu_seqlens[b] .. cu_seqlens[b + 1], q is scaled.
//
// A workgroup takes 16 ROWS queries a subgroup of one head of one sequence and walks over the sequence's keys in blocks
// of KEYS (FlashAttention, Dao et al. 2022): the block's k and v go through shared memory (there one block ahead, in
// registers two), each subgroup makes its scores = q k^T, probabilities exp(score - reference), and adds probabilities
// x v to its sums. The reference of a row is some earlier maximum of it. It is set in the first block, and raised when
// a score exceeds it by more than kSlack, which is rare. That is exact: sums and totals use the same reference, and
// probabilities of at most e^8 are well inside fp16's range.
//
// Each invocation keeps what belongs to a row, as its reference, for the rows that its elements of a matrix lie in:
// two, eight apart, on NVIDIA's cards, which the host makes sure of. A matrix of it would take four times the
// registers, of which there are too few.
//
// Conversion to bf16 cuts off bits. A row's total is a product, too, probabilities times ones, so that what is lost
// cancels but for its variation, which is no more than that of rounding.
//
// Blocks start at the sequence's first key, and a row does not depend on its neighbours, so a result does not depend on
// the batch. Keys past the sequence's end weigh nothing. head_dim is padded with zeros to a multiple of 16 in shared
// memory only. Needs: head_dim % 8 == 0.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_vote : require
#extension GL_NV_cooperative_matrix2 : require
#include "coopmat.glsl"

layout(constant_id = 3) const uint HEAD_DIM = 64;
layout(constant_id = 4) const uint KEYS = 64;
layout(constant_id = 5) const uint ROWS = 1;  // times 16 queries of a subgroup
layout(constant_id = 6) const uint D = DTYPE_F16;  // of matrices

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
const float kSlack = 8.0 * kLog2E;
const float kLowest = -3.0e38;

const uint QUERIES = THREADS / SUBGROUP * ROWS * M;
const uint COLUMNS = HEAD_DIM / EIGHTS;       // uvec4 of a head's row in memory
const uint FD = (HEAD_DIM + M - 1) / M;       // matrices across head_dim
const uint FK = KEYS / M;                     // and across a block of keys
const uint PADDED_COLUMNS = FD * M / EIGHTS;  // COLUMNS and the zeros

// Two blocks of k and v in shared memory, in uvec4: one is read while the next is written. Rows are padded by 16 bytes
// against bank conflicts.
const uint ROW = PADDED_COLUMNS + 1;
const uint V_AT = KEYS * ROW;
const uint BLOCK = 2 * KEYS * ROW;
shared uvec4 tile[2 * BLOCK];

const uint BLOCK_COPIES = (KEYS * PADDED_COLUMNS + THREADS - 1) / THREADS;
uvec4 staged_k[BLOCK_COPIES];
uvec4 staged_v[BLOCK_COPIES];

MatrixA queries[ROWS * FD];
Sums scores[ROWS * FK];  // of a block
Sums sums[ROWS * FD];
MatrixB ones;
Sums totals[ROWS];  // of the rows' probabilities, the same in every column

// Of this invocation's rows in matrices number r: [2 r] of the one from 0 to 7, [2 r + 1] of the one from 8 to 15.
float highest[2 * ROWS];  // of the block's scores that are this invocation's
float shifts[2 * ROWS];   // the negative reference, in powers of two
float shrinks[2 * ROWS];  // by what the sums shrink when the reference rises
uint half_of(uint row, uint r) { return 2 * r + (row / 8) % 2; }

// The head's rows of this workgroup's sequence.
uint pitch;   // from one token's row to the next, in uvec4
uint origin;  // first uvec4 of token 0
uint tokens;  // of the sequence

// Uvec4 number `item` of a padded block of rows that starts at token `first`; past the sequence's end its last token,
// which weighs nothing there.
uvec4 load_padded(Eights source, uint first, uint item) {
  const uint token = min(first + item / PADDED_COLUMNS, tokens - 1);
  const uint column = item % PADDED_COLUMNS;
  return column < COLUMNS ? source.at[origin + token * pitch + column] : uvec4(0);
}

void load_block(uint first) {
  [[unroll]] for (uint i = 0; i < BLOCK_COPIES; ++i) {
    const uint item = i * THREADS + gl_LocalInvocationIndex;
    staged_k[i] = load_padded(push.k, first, item);
    staged_v[i] = load_padded(push.v, first, item);
  }
}

void store_block(uint block) {
  [[unroll]] for (uint i = 0; i < BLOCK_COPIES; ++i) {
    const uint item = i * THREADS + gl_LocalInvocationIndex;
    const uint place = block + item / PADDED_COLUMNS * ROW + item % PADDED_COLUMNS;
    if ((i + 1) * THREADS <= KEYS * PADDED_COLUMNS || item < KEYS * PADDED_COLUMNS) {
      tile[place] = staged_k[i];
      tile[V_AT + place] = staged_v[i];
    }
  }
}

// Functions of a matrix's elements.

float larger(const in float a, const in float b) { return max(a, b); }
float larger_of(const in uint row, const in uint column, const in float a, const in float b) { return max(a, b); }

float masked(const in uint row, const in uint column, const in float score, const in uint first_key) {
  return first_key + column < tokens ? score : kLowest;
}

float note_highest(const in uint row, const in uint column, const in float score, const in uint r) {
  highest[half_of(row, r)] = max(highest[half_of(row, r)], score);
  return score;
}

float keep_highest(const in uint row, const in uint column, const in float score, const in uint r) {
  highest[half_of(row, r)] = score;
  return score;
}

// The probability, relative to the reference.
float weight_of(const in uint row, const in uint column, const in float score, const in uint r) {
  return exp2(fma(score, kLog2E, shifts[half_of(row, r)]));
}

float shrunk(const in uint row, const in uint column, const in float value, const in uint r) {
  return value * shrinks[half_of(row, r)];
}

// The number whose bits in D are the result's in DTYPE, since it is matrices of D that are stored. (An infinity in bf16
// becomes a NaN in fp16; averages of fp16's numbers have none.)
float result_of(const in uint row, const in uint column, const in float sum, const in float total) {
  const float value = sum / total;
  const uint bits = DTYPE == DTYPE_BF16 ? bf16_bits(value) : packHalf2x16(vec2(value, 0.0));
  return D == DTYPE_BF16 ? uintBitsToFloat(bits << 16) : unpackHalf2x16(bits).x;
}

// By how much a score exceeds a row's reference, in powers of two.
float excess(uint i) { return fma(highest[i], kLog2E, shifts[i]); }

// Of the block in shared memory; `ends`: the sequence may end in it.
void score_block(uint block, uint first_key, bool ends) {
  [[unroll]] for (uint i = 0; i < 2 * ROWS; ++i) highest[i] = kLowest;
  [[unroll]] for (uint j = 0; j < FK; ++j) {
    [[unroll]] for (uint r = 0; r < ROWS; ++r) scores[r * FK + j] = Sums(0.0);
    [[unroll]] for (uint d = 0; d < FD; ++d) {
      MatrixB k;
      coopMatLoad(k, tile, block + (j * M * ROW + d * (M / EIGHTS)), ROW, COLUMN_MAJOR);
      [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        scores[r * FK + j] = coopMatMulAdd(queries[r * FD + d], k, scores[r * FK + j]);
      }
    }
  }
  [[unroll]] for (uint i = 0; i < ROWS * FK; ++i) {
    if (ends) coopMatPerElementNV(scores[i], scores[i], masked, first_key + i % FK * M);
    coopMatPerElementNV(scores[i], scores[i], note_highest, i / FK);
  }
}

// Raises the references of those rows whose largest score in the block is too far above, which depends on the row
// alone, though the subgroup comes here for any of them.
void raise_references(bool is_first) {
  [[unroll]] for (uint r = 0; r < ROWS; ++r) {
    Sums largest = scores[r * FK];
    [[unroll]] for (uint j = 1; j < FK; ++j) coopMatPerElementNV(largest, largest, larger_of, scores[r * FK + j]);
    coopMatReduceNV(largest, largest, gl_CooperativeMatrixReduceRowNV, larger);
    coopMatPerElementNV(largest, largest, keep_highest, r);
    [[unroll]] for (uint i = 2 * r; i < 2 * r + 2; ++i) {
      const float rise = is_first || excess(i) > kSlack ? excess(i) : 0.0;
      shifts[i] -= rise;
      shrinks[i] = is_first ? 1.0 : exp2(-rise);  // nothing has been added up in the first block
    }
    coopMatPerElementNV(totals[r], totals[r], shrunk, r);
    [[unroll]] for (uint d = 0; d < FD; ++d) coopMatPerElementNV(sums[r * FD + d], sums[r * FD + d], shrunk, r);
  }
}

// sums += probabilities v, of the block in shared memory.
void add_block(uint block, uint first_key, bool ends) {
  score_block(block, first_key, ends);
  float most = excess(0);
  [[unroll]] for (uint i = 1; i < 2 * ROWS; ++i) most = max(most, excess(i));
  if (subgroupAny(most > kSlack || first_key == 0)) raise_references(first_key == 0);
  [[unroll]] for (uint j = 0; j < FK; ++j) {
    MatrixA probabilities[ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
      coopMatPerElementNV(scores[r * FK + j], scores[r * FK + j], weight_of, r);
      probabilities[r] = MatrixA(scores[r * FK + j]);
      totals[r] = coopMatMulAdd(probabilities[r], ones, totals[r]);
    }
    [[unroll]] for (uint d = 0; d < FD; ++d) {
      MatrixB v;
      coopMatLoad(v, tile, block + (V_AT + j * M * ROW + d * (M / EIGHTS)), ROW, ROW_MAJOR);
      [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        sums[r * FD + d] = coopMatMulAdd(probabilities[r], v, sums[r * FD + d]);
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
    [[unroll]] for (uint d = 0; d < FD; ++d) {
      coopMatPerElementNV(sums[r * FD + d], sums[r * FD + d], result_of, totals[r]);
      const Result result = Result(sums[r * FD + d]);
      coopMatStoreTensorNV(result, push.result.at, origin,
                           sliceTensorLayoutNV(HEAD_ROWS, first_query + r * M, M, d * M, M));
    }
  }
}

// Waits for the block; the one after it goes to shared memory, and the one after that is on its way. Returns the
// block's place.
uint next_block(uint first_key) {
  const uint block = first_key / KEYS % 2 * BLOCK;
  barrier();
  store_block(BLOCK - block);
  load_block(first_key + 2 * KEYS);
  return block;
}

void main() {
  const uint begin = uint(push.cu_seqlens.at[gl_WorkGroupID.z]);
  tokens = uint(push.cu_seqlens.at[gl_WorkGroupID.z + 1]) - begin;
  if (gl_WorkGroupID.x * QUERIES >= tokens) return;  // the whole workgroup
  pitch = push.heads * COLUMNS;
  origin = begin * pitch + gl_WorkGroupID.y * COLUMNS;
  const uint first_query = gl_WorkGroupID.x * QUERIES + gl_SubgroupID * ROWS * M;

  const bool has_queries = first_query < tokens;  // a subgroup past the sequence's end only helps to load

  load_block(0);
  load_queries(first_query);
  // One, but not to the compiler of the shader, which would make it a constant of fp16 that bf16 cannot take over.
  ones = MatrixB(Sums(min(float(push.heads), 1.0)));
  [[unroll]] for (uint i = 0; i < 2 * ROWS; ++i) shifts[i] = 0.0;
  [[unroll]] for (uint r = 0; r < ROWS; ++r) totals[r] = Sums(0.0);
  [[unroll]] for (uint i = 0; i < ROWS * FD; ++i) sums[i] = Sums(0.0);
  store_block(0);
  load_block(KEYS);
  uint first_key = 0;
  for (; first_key + KEYS <= tokens; first_key += KEYS) {
    const uint block = next_block(first_key);
    if (has_queries) add_block(block, first_key, false);
  }
  if (first_key < tokens) {
    const uint block = next_block(first_key);
    if (has_queries) add_block(block, first_key, true);
  }
  if (has_queries) write_result(first_query);
}
