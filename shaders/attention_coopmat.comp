#version 450
// Bidirectional attention inside packed sequences on matrix units: out = softmax(q k^T) v per head. q, k and v are
// [tokens, heads, head_dim] in D (fp16 or bf16), out is in either, sequence b is tokens cu_seqlens[b] .. cu_seqlens[b + 1], q is scaled.
// FlashAttention's loop (Dao et al. 2022) with its online softmax in fp32.
//
// A workgroup takes 16 queries a subgroup of one head of one sequence and walks over the sequence's keys in blocks of
// KEYS: the block's k and v go through shared memory (loaded to registers one block ahead), each subgroup makes its
// scores [16, KEYS] = q k^T, turns them into probabilities and adds probabilities x v to its sums [16, head_dim].
//
// No element of a matrix has a known place in registers, so scores pass through the subgroup's scratch, 16 rows of KEYS
// fp32 values, where lane l works on row l % 16: lanes l, l + 16, ... share a row, each a run of its columns.
// Probabilities are exp2(log2(e) score - reference) with a reference per row, log2(e) times some earlier maximum of it.
// Scaling the sums when a reference changes would cost a way through scratch as well. It is therefore raised only when
// a score exceeds it by more than kSlack = 8, that is, mostly in the first block and hardly ever after. That is exact:
// sums and the row's total use the same reference, and probabilities of at most 2^8 are well inside fp16's range.
//
// Blocks start at the sequence's first key, so a result does not depend on the batch. Keys past the sequence's end
// score -infinity, their k and v are zeros. head_dim is padded with zeros to a multiple of 16 in shared memory only.
// Needs: head_dim % 8 == 0, (KEYS / 8) % (SUBGROUP / 16) == 0.
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_vote : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "coopmat.glsl"

layout(constant_id = 3) const uint HEAD_DIM = 64;
layout(constant_id = 4) const uint KEYS = 64;
layout(constant_id = 5) const uint OPERAND_DTYPE = DTYPE_F16;  // of q, k, v and the probabilities

layout(push_constant, scalar) uniform Push {
  Eights q;
  Eights k;
  Eights v;
  Ints cu_seqlens;
  WordQuads result;
  uint heads;
} push;

const float kLog2E = 1.4426950408889634;
const float kSlack = 8.0;
const float kLowest = -3.0e38;

const uint SUBGROUPS = THREADS / SUBGROUP;
const uint QUERIES = SUBGROUPS * M;
const uint COLUMNS = HEAD_DIM / EIGHTS;       // uvec4 of a head's row in memory
const uint FD = (HEAD_DIM + M - 1) / M;       // matrices across head_dim
const uint FK = KEYS / M;                     // and across a block of keys
const uint PADDED_COLUMNS = FD * M / EIGHTS;  // COLUMNS and the zeros

// Shared memory, in uvec4; rows are padded by 16 bytes against bank conflicts. q is staged in it first, then it holds
// the blocks of k and v and the subgroups' scratch, which the probabilities reuse.
const uint ROW = PADDED_COLUMNS + 1;
const uint SCORE_ROW = KEYS / FOURS + 1;
const uint PROBABILITY_ROW = KEYS / EIGHTS + 1;
const uint SCRATCH = M * SCORE_ROW;
const uint Q_SIZE = QUERIES * ROW;
const uint V_AT = KEYS * ROW;
const uint SCRATCH_AT = 2 * KEYS * ROW;
const uint BLOCK_SIZE = SCRATCH_AT + SUBGROUPS * SCRATCH;
shared uvec4 tile[Q_SIZE > BLOCK_SIZE ? Q_SIZE : BLOCK_SIZE];

// A lane's share of its row of scratch.
const uint SHARERS = SUBGROUP / M;
const uint RUN = KEYS / SHARERS;         // columns
const uint RUN_FOURS = RUN / FOURS;
const uint RUN_EIGHTS = RUN / EIGHTS;

const uint BLOCK_COPIES = (KEYS * PADDED_COLUMNS + THREADS - 1) / THREADS;
uvec4 staged_k[BLOCK_COPIES];
uvec4 staged_v[BLOCK_COPIES];
MatrixA queries[FD];
Sums sums[FD];

// The head's rows of this workgroup's sequence.
uint pitch;     // from one token's row to the next, in uvec4
uint origin;    // first uvec4 of token 0
uint tokens;    // of the sequence
uint scratch;   // this subgroup's
uint lane_row;  // this lane's row of scratch and
uint lane_run;  // its run in it

// Uvec4 number `item` of a padded block of rows that starts at token `first`; zeros outside of the sequence and head.
uvec4 load_padded(Eights source, uint first, uint item) {
  const uint token = first + item / PADDED_COLUMNS;
  const uint column = item % PADDED_COLUMNS;
  return token < tokens && column < COLUMNS ? source.at[origin + token * pitch + column] : uvec4(0);
}

// Place of that uvec4 in shared memory.
uint place_of(uint item) { return item / PADDED_COLUMNS * ROW + item % PADDED_COLUMNS; }

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
    if ((i + 1) * THREADS <= KEYS * PADDED_COLUMNS || item < KEYS * PADDED_COLUMNS) {
      tile[place_of(item)] = staged_k[i];
      tile[V_AT + place_of(item)] = staged_v[i];
    }
  }
}

// Columns of the sums from matrix `first` on, to scratch and back: FK matrices fit at a time.
void sums_to_scratch(uint first) {
  sync_subgroup();
  [[unroll]] for (uint i = 0; i < FK; ++i) {
    if (first + i < FD) coopMatStore(sums[first + i], tile, scratch + i * (M / FOURS), SCORE_ROW, ROW_MAJOR);
  }
  sync_subgroup();
}

void sums_from_scratch(uint first) {
  sync_subgroup();
  [[unroll]] for (uint i = 0; i < FK; ++i) {
    if (first + i < FD) coopMatLoad(sums[first + i], tile, scratch + i * (M / FOURS), SCORE_ROW, ROW_MAJOR);
  }
}

// Multiplies this lane's row of the sums by `factor`.
void scale_sums(float factor) {
  [[unroll]] for (uint first = 0; first < FD; first += FK) {
    sums_to_scratch(first);
    [[unroll]] for (uint i = 0; i < RUN_FOURS; ++i) {
      const uint at = scratch + lane_row * SCORE_ROW + lane_run * RUN_FOURS + i;
      tile[at] = floatBitsToUint(uintBitsToFloat(tile[at]) * factor);
    }
    sums_from_scratch(first);
  }
}

// scores = q k^T of the block in shared memory, to scratch.
void score_block() {
  [[unroll]] for (uint j = 0; j < FK; ++j) {
    Sums scores = Sums(0.0);
    [[unroll]] for (uint d = 0; d < FD; ++d) {
      MatrixB k;
      coopMatLoad(k, tile, j * M * ROW + d * (M / EIGHTS), ROW, COLUMN_MAJOR);
      scores = coopMatMulAdd(queries[d], k, scores);
    }
    coopMatStore(scores, tile, scratch + j * (M / FOURS), SCORE_ROW, ROW_MAJOR);
  }
  sync_subgroup();
}

// sums += probabilities v, from scratch and the block in shared memory.
void add_values() {
  [[unroll]] for (uint j = 0; j < FK; ++j) {
    MatrixA p;
    coopMatLoad(p, tile, scratch + j * (M / EIGHTS), PROBABILITY_ROW, ROW_MAJOR);
    [[unroll]] for (uint d = 0; d < FD; ++d) {
      MatrixB v;
      coopMatLoad(v, tile, V_AT + j * M * ROW + d * (M / EIGHTS), ROW, ROW_MAJOR);
      sums[d] = coopMatMulAdd(p, v, sums[d]);
    }
  }
  sync_subgroup();  // the next scores take the probabilities' place
}

// Scores -> probabilities, in scratch. `reference` and `total` are those of this lane's row; of `total` each of the
// lanes that share the row keeps its own columns' part.
void soften_block(uint first_key, inout float reference, inout float total) {
  vec4 score[RUN_FOURS];
  float highest = kLowest;
  [[unroll]] for (uint i = 0; i < RUN_FOURS; ++i) {
    score[i] = uintBitsToFloat(tile[scratch + lane_row * SCORE_ROW + lane_run * RUN_FOURS + i]);
    if (first_key + KEYS > tokens) {  // only in the last block
      const uint key = first_key + lane_run * RUN + i * FOURS;
      score[i].x = key < tokens ? score[i].x : kLowest;
      score[i].y = key + 1 < tokens ? score[i].y : kLowest;
      score[i].z = key + 2 < tokens ? score[i].z : kLowest;
      score[i].w = key + 3 < tokens ? score[i].w : kLowest;
    }
    highest = max(highest, max(max(score[i].x, score[i].y), max(score[i].z, score[i].w)));
  }
  [[unroll]] for (uint mask = M; mask < SUBGROUP; mask *= 2) highest = max(highest, subgroupShuffleXor(highest, mask));
  highest *= kLog2E;

  const bool raise = highest > reference + kSlack;
  if (subgroupAny(raise)) {
    const float factor = raise ? exp2(reference - highest) : 1.0;
    reference = raise ? highest : reference;
    total *= factor;
    if (first_key > 0) scale_sums(factor);  // in the first block the sums are zeros
  }

  sync_subgroup();  // every lane has its scores; the probabilities take their place
  [[unroll]] for (uint i = 0; i < RUN_EIGHTS; ++i) {
    const vec4 a = exp2(fma(score[2 * i], vec4(kLog2E), vec4(-reference)));
    const vec4 b = exp2(fma(score[2 * i + 1], vec4(kLog2E), vec4(-reference)));
    total += ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
    tile[scratch + lane_row * PROBABILITY_ROW + lane_run * RUN_EIGHTS + i] =
        uvec4(pack_numbers(OPERAND_DTYPE, a.xy), pack_numbers(OPERAND_DTYPE, a.zw), pack_numbers(OPERAND_DTYPE, b.xy),
              pack_numbers(OPERAND_DTYPE, b.zw));
  }
  sync_subgroup();
}

// sums / total to memory, for the subgroup's 16 queries from `first_query` on.
void write_result(uint first_query, float total) {
  [[unroll]] for (uint mask = M; mask < SUBGROUP; mask *= 2) total += subgroupShuffleXor(total, mask);
  const float factor = 1.0 / total;
  const uint query = first_query + lane_row;
  [[unroll]] for (uint first = 0; first < FD; first += FK) {
    sums_to_scratch(first);
    [[unroll]] for (uint i = 0; i < RUN_EIGHTS; ++i) {
      const uint run_column = lane_run * RUN_EIGHTS + i;
      const uint column = first * (M / EIGHTS) + run_column;
      if (query >= tokens || column >= COLUMNS) continue;
      const uint at = scratch + lane_row * SCORE_ROW + 2 * run_column;
      const vec4 a = uintBitsToFloat(tile[at]) * factor;
      const vec4 b = uintBitsToFloat(tile[at + 1]) * factor;
      push.result.at[origin + query * pitch + column] =
          uvec4(pack_pair(a.x, a.y), pack_pair(a.z, a.w), pack_pair(b.x, b.y), pack_pair(b.z, b.w));
    }
  }
}

void main() {
  const uint begin = uint(push.cu_seqlens.at[gl_WorkGroupID.z]);
  tokens = uint(push.cu_seqlens.at[gl_WorkGroupID.z + 1]) - begin;
  const uint workgroup_query = gl_WorkGroupID.x * QUERIES;
  if (workgroup_query >= tokens) return;  // the whole workgroup
  pitch = push.heads * COLUMNS;
  origin = begin * pitch + gl_WorkGroupID.y * COLUMNS;
  scratch = SCRATCH_AT + gl_SubgroupID * SCRATCH;
  lane_row = gl_SubgroupInvocationID % M;
  lane_run = gl_SubgroupInvocationID / M;

  load_block(0);
  for (uint item = gl_LocalInvocationIndex; item < QUERIES * PADDED_COLUMNS; item += THREADS) {
    tile[place_of(item)] = load_padded(push.q, workgroup_query, item);
  }
  barrier();
  [[unroll]] for (uint d = 0; d < FD; ++d) {
    coopMatLoad(queries[d], tile, gl_SubgroupID * M * ROW + d * (M / EIGHTS), ROW, ROW_MAJOR);
    sums[d] = Sums(0.0);
  }

  const uint first_query = workgroup_query + gl_SubgroupID * M;
  float reference = kLowest;
  float total = 0.0;
  for (uint first_key = 0; first_key < tokens; first_key += KEYS) {
    barrier();  // nobody reads q, or the block before, any more
    store_block();
    barrier();
    load_block(first_key + KEYS);
    if (first_query < tokens) {  // a subgroup past the sequence's end only helps to load
      score_block();
      soften_block(first_key, reference, total);
      add_values();
    }
  }
  if (first_query < tokens) write_result(first_query, total);
}
