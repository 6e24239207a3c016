#version 450
// linear_coopmat.comp for many rows: y = epilogue(x weight^T + bias) + residual on matrix units, or RoPE as its
// epilogue with HEAD_DIM; x [rows, INPUTS] and weight [outputs, INPUTS] are D (fp16 or bf16), products are summed in
// fp32 in ascending order. INPUTS is a multiple of 64, outputs of 4 (of 24 with HEAD_DIM); there are at least BM rows
// and BN outputs.
//
// A workgroup makes BM x BN outputs in steps of BK inputs; its four subgroups sum 64 x 64 each, the most that registers
// hold, so that a product reads least from shared memory. A step goes from memory to registers while the one before is
// multiplied, and from there to shared memory when that is done; meanwhile another workgroup multiplies. Steps of 64
// inputs, for those are the 128 bytes that caches move at a time.
//
// What is spared, for an instruction here is one that no product takes the place of: addresses are an invocation's
// pointer and constants, as inputs are known; two steps in a loop's body trade registers without moves; the last tiles
// of either direction lie wholly inside, overlapping those before, whose outputs they do not store again.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_buffer_reference_uvec2 : require
#include "coopmat.glsl"

layout(constant_id = 3) const uint INPUTS = 64;
layout(constant_id = 4) const uint BAND = 8;
layout(constant_id = 5) const uint HEAD_DIM = 0;  // 0: no RoPE
layout(constant_id = 6) const uint FLAGS = 0;

layout(push_constant, scalar) uniform Push {
  uvec2 x;       // addresses
  uvec2 weight;
  Floats bias;
  WordQuads residual;
  WordQuads y;  // may be the residual
  Ints positions;
  WordQuads table;
  uint rows;
  uint outputs;
  float q_scale;
} push;

const uint BM = 128;
const uint BN = 128;
const uint BK = 64;
const uint WN = 2;  // subgroups side by side, of four
const uint SM = 64;
const uint SN = 64;
const uint FM = SM / M;  // matrices of sums in a subgroup's column and row
const uint FN = SN / M;

#include "linear_coopmat.glsl"

// Shared memory, in uvec4: x's rows, then weight's. Rows are padded: eight of them at the same column lie in different
// banks.
const uint COLUMNS = BK / EIGHTS;
const uint ROW = COLUMNS + 1;
const uint SLICE_ROW = SN / FOURS + 1;
const uint SLICE = M * SLICE_ROW;
shared uvec4 tile[(BM + BN) * ROW];

// Each invocation copies the same column of every ROW_STEP-th row.
const uint ROW_STEP = THREADS / COLUMNS;
const uint X_COPIES = BM / ROW_STEP;
const uint WEIGHT_COPIES = BN / ROW_STEP;
const uint PITCH = INPUTS / EIGHTS;
const uint STEPS = INPUTS / BK;

uvec2 x_at, weight_at;  // addresses of this invocation's first elements of the next step to load
uvec4 staged_x[X_COPIES];
uvec4 staged_weight[WEIGHT_COPIES];
Sums sums[FM * FN];

// Of this invocation's first element of an operand whose first row is `row`.
uvec2 first_address(uvec2 operand, uint row) {
  const uvec2 first = advance(operand, row + gl_LocalInvocationIndex / COLUMNS, PITCH * 16);
  return advance(first, gl_LocalInvocationIndex % COLUMNS, 16);
}

void load_step() {
  [[unroll]] for (uint i = 0; i < X_COPIES; ++i) staged_x[i] = Eights(x_at).at[i * (ROW_STEP * PITCH)];
  [[unroll]] for (uint i = 0; i < WEIGHT_COPIES; ++i) staged_weight[i] = Eights(weight_at).at[i * (ROW_STEP * PITCH)];
  x_at = advance(x_at, COLUMNS, 16);
  weight_at = advance(weight_at, COLUMNS, 16);
}

void store_step() {
  const uint at = gl_LocalInvocationIndex / COLUMNS * ROW + gl_LocalInvocationIndex % COLUMNS;
  [[unroll]] for (uint i = 0; i < X_COPIES; ++i) tile[at + i * ROW_STEP * ROW] = staged_x[i];
  [[unroll]] for (uint i = 0; i < WEIGHT_COPIES; ++i) tile[at + (BM + i * ROW_STEP) * ROW] = staged_weight[i];
}

void multiply_step(uint x_row, uint weight_row) {
  [[unroll]] for (uint k = 0; k < BK; k += M) {
    MatrixB b[FN];
    [[unroll]] for (uint j = 0; j < FN; ++j) {
      coopMatLoad(b[j], tile, weight_row + (j * M * ROW + k / EIGHTS), ROW, COLUMN_MAJOR);
    }
    [[unroll]] for (uint i = 0; i < FM; ++i) {
      MatrixA a;
      coopMatLoad(a, tile, x_row + (i * M * ROW + k / EIGHTS), ROW, ROW_MAJOR);
      [[unroll]] for (uint j = 0; j < FN; ++j) sums[i * FN + j] = coopMatMulAdd(a, b[j], sums[i * FN + j]);
    }
  }
}

// All of a step but the last: nobody reads the step before any more.
void take_step(uint x_row, uint weight_row) {
  store_step();
  load_step();
  barrier();
  multiply_step(x_row, weight_row);
  barrier();
}

const uint ITEMS = M * SN / FOURS / SUBGROUP;  // of an invocation in a slice

// Sums pass through a slice of shared memory of the subgroup's own, 16 rows at a time. `whole`: no tile before stores
// any of these outputs.
void write_tile(uvec2 first, uvec2 origin, vec4 bias, bool whole) {
  const uvec2 corner = origin + uvec2(gl_SubgroupID / WN * SM, gl_SubgroupID % WN * SN);
  const uint slice = gl_SubgroupID * SLICE;
  const uint lane_row = gl_SubgroupInvocationID / (SN / FOURS), lane_column = gl_SubgroupInvocationID % (SN / FOURS);
  const uint rows_at_once = SUBGROUP / (SN / FOURS);
  const uvec2 own = corner + uvec2(lane_row, lane_column * FOURS);
  barrier();  // nobody reads the tile any more
  [[unroll]] for (uint i = 0; i < FM; ++i) {
    vec4 operand[ITEMS];
    [[unroll]] for (uint n = 0; n < ITEMS; ++n) {
      operand[n] = load_operand(own + uvec2(i * M + n * rows_at_once, 0));
    }
    if (i > 0) sync_subgroup();
    [[unroll]] for (uint j = 0; j < FN; ++j) {
      coopMatStore(sums[i * FN + j], tile, slice + j * (M / FOURS), SLICE_ROW, ROW_MAJOR);
    }
    sync_subgroup();
    [[unroll]] for (uint n = 0; n < ITEMS; ++n) {
      const uvec2 at = own + uvec2(i * M + n * rows_at_once, 0);
      const vec4 value =
          bias + uintBitsToFloat(tile[slice + (n * rows_at_once + lane_row) * SLICE_ROW + lane_column]);
      const uvec4 words = words_of(finished(at, value, operand[n]));
      if (whole || (at.x >= first.x && at.y >= first.y)) store_words(place_in_y(at), words);
    }
  }
}

void main() {
  const uvec2 first = tile_origin();
  const uvec2 origin = min(first, uvec2(push.rows - BM, push.outputs - BN));
  const uint x_row = gl_SubgroupID / WN * SM * ROW;
  const uint weight_row = (BM + gl_SubgroupID % WN * SN) * ROW;
  const vec4 bias = load_bias(origin.y + gl_SubgroupID % WN * SN + gl_SubgroupInvocationID % (SN / FOURS) * FOURS);
  x_at = first_address(push.x, origin.x);
  weight_at = first_address(push.weight, origin.y);
  load_step();
  [[unroll]] for (uint i = 0; i < FM * FN; ++i) sums[i] = Sums(0.0);
  find_angles(origin.x);
  [[dont_unroll]] for (uint step = 0; step + 2 < STEPS; step += 2) {
    take_step(x_row, weight_row);
    take_step(x_row, weight_row);
  }
  if (STEPS % 2 == 0) take_step(x_row, weight_row);
  store_step();
  barrier();
  multiply_step(x_row, weight_row);
  // A tile of its own outputs stores without conditions. (With a residual that is no faster.)
  if ((FLAGS & HAS_RESIDUAL) == 0 && first == origin) {
    write_tile(first, origin, bias, true);
  } else {
    write_tile(first, origin, bias, false);
  }
}
