#version 450
// y = epilogue(x weight^T + bias) + residual on matrix units; x [rows, inputs] and weight [outputs, inputs] are D
// (fp16 or bf16), products are summed in fp32, bias [outputs] and residual [rows, outputs] are fp32, y is any.
//
// A workgroup makes a tile of BM rows x BN outputs, in steps of BK inputs:
//   global -> registers   16 bytes a thread, PREFETCH steps before they are needed, so that the loads of one step fly
//                         while others are multiplied
//   registers -> shared   STAGES buffers of [BM + BN][BK] elements, the rows of x, then those of weight. A row is
//                         padded by 16 bytes: eight rows at the same column then lie in different banks
//   shared -> matrices    the subgroups form a grid of WK x WM x WN. Each sums SM x SN = (BM / WM) x (BN / WN) of the
//                         tile over its 1 / WK of every step. A row of weight is a column of the right operand
// WK > 1 is for few rows, where tiles must be small to occupy the device: fewer, larger sums a subgroup need less
// shared-memory traffic. With WK = 1 the sum over inputs is in ascending order whatever the tile.
//
// The epilogue passes sums through shared memory, 16 rows of each subgroup at a time, as no element of a matrix has a
// known place in registers. It adds up the WK partial sums in ascending order and stores whole 128-byte lines.
//
// Tiles are visited in bands of BAND tile rows, column by column, so that what runs at a time shares rows of both
// operands in the level-two cache. Rows and outputs beyond the end are clamped when loaded and not stored; inputs
// beyond the end are zeros. Needs: inputs % 8 == 0; outputs % 4 == 0 unless y is fp32.
#extension GL_GOOGLE_include_directive : require
#include "coopmat.glsl"
#include "gelu.glsl"

layout(constant_id = 3) const uint BM = 64;
layout(constant_id = 4) const uint BN = 64;
layout(constant_id = 5) const uint BK = 64;
layout(constant_id = 6) const uint WM = 2;
layout(constant_id = 7) const uint WN = 2;
layout(constant_id = 8) const uint WK = 1;
layout(constant_id = 9) const uint STAGES = 1;
layout(constant_id = 10) const uint PREFETCH = 1;
layout(constant_id = 11) const uint BAND = 8;

const uint HAS_BIAS = 1;
const uint HAS_RESIDUAL = 2;
const uint HAS_GELU = 4;
const uint Y_IS_F32 = 8;

layout(push_constant, scalar) uniform Push {
  Eights x;
  Eights weight;
  Floats bias;
  WordQuads residual;
  WordQuads y;  // may be the residual
  uint rows;
  uint inputs;
  uint outputs;
  uint flags;
} push;

const uint SM = BM / WM;
const uint SN = BN / WN;
const uint FM = SM / M;  // matrices of sums in a subgroup's column and row
const uint FN = SN / M;

// Shared memory, in uvec4.
const uint ROW = BK / EIGHTS + 1;
const uint STAGE = (BM + BN) * ROW;
const uint SLICE_ROW = SN / FOURS + 1;
const uint SLICE = M * SLICE_ROW;  // 16 rows of a subgroup's sums
const uint TILE_SIZE = STAGES * STAGE;
const uint SLICES_SIZE = WM * WN * WK * SLICE;
shared uvec4 tile[TILE_SIZE > SLICES_SIZE ? TILE_SIZE : SLICES_SIZE];

// Each thread copies the same column of every ROW_STEP-th row; ROW_STEP divides BM and BN.
const uint COLUMNS = BK / EIGHTS;
const uint ROW_STEP = THREADS / COLUMNS;
const uint X_COPIES = BM / ROW_STEP;
const uint WEIGHT_COPIES = BN / ROW_STEP;

uvec4 staged_x[PREFETCH * X_COPIES];
uvec4 staged_weight[PREFETCH * WEIGHT_COPIES];
uint x_offset[X_COPIES];  // in uvec4, of this thread's element in the first step
uint weight_offset[WEIGHT_COPIES];
Sums sums[FM * FN];

// First row and first output of this workgroup's tile.
uvec2 tile_origin() {
  const uint tiles_n = gl_NumWorkGroups.x;
  const uint tiles_m = gl_NumWorkGroups.y;
  const uint index = gl_WorkGroupID.y * tiles_n + gl_WorkGroupID.x;
  const uint band = index / (BAND * tiles_n);
  const uint within = index - band * BAND * tiles_n;
  const uint height = min(tiles_m - band * BAND, BAND);
  return uvec2((band * BAND + within % height) * BM, within / height * BN);
}

void find_offsets(uvec2 origin) {
  const uint row = gl_LocalInvocationIndex / COLUMNS;
  const uint column = gl_LocalInvocationIndex % COLUMNS;
  const uint pitch = push.inputs / EIGHTS;
  [[unroll]] for (uint i = 0; i < X_COPIES; ++i) {
    x_offset[i] = min(origin.x + row + i * ROW_STEP, push.rows - 1) * pitch + column;
  }
  [[unroll]] for (uint i = 0; i < WEIGHT_COPIES; ++i) {
    weight_offset[i] = min(origin.y + row + i * ROW_STEP, push.outputs - 1) * pitch + column;
  }
}

// Global memory -> registers; zeros beyond the inputs.
void load_step(uint step, uint slot) {
  const uint begin = step * COLUMNS;
  if (begin + gl_LocalInvocationIndex % COLUMNS < push.inputs / EIGHTS) {
    [[unroll]] for (uint i = 0; i < X_COPIES; ++i) {
      staged_x[slot * X_COPIES + i] = push.x.at[x_offset[i] + begin];
    }
    [[unroll]] for (uint i = 0; i < WEIGHT_COPIES; ++i) {
      staged_weight[slot * WEIGHT_COPIES + i] = push.weight.at[weight_offset[i] + begin];
    }
  } else {
    [[unroll]] for (uint i = 0; i < X_COPIES; ++i) staged_x[slot * X_COPIES + i] = uvec4(0);
    [[unroll]] for (uint i = 0; i < WEIGHT_COPIES; ++i) staged_weight[slot * WEIGHT_COPIES + i] = uvec4(0);
  }
}

// Registers -> shared memory.
void store_step(uint slot, uint stage) {
  const uint at = stage + gl_LocalInvocationIndex / COLUMNS * ROW + gl_LocalInvocationIndex % COLUMNS;
  [[unroll]] for (uint i = 0; i < X_COPIES; ++i) tile[at + i * ROW_STEP * ROW] = staged_x[slot * X_COPIES + i];
  [[unroll]] for (uint i = 0; i < WEIGHT_COPIES; ++i) {
    tile[at + (BM + i * ROW_STEP) * ROW] = staged_weight[slot * WEIGHT_COPIES + i];
  }
}

// sums += this subgroup's part of the tile's product; x_at and weight_at: its first row of either operand.
void multiply_step(uint x_at, uint weight_at) {
  [[unroll]] for (uint k = 0; k < BK / WK; k += M) {
    MatrixA a[FM];
    [[unroll]] for (uint i = 0; i < FM; ++i) {
      coopMatLoad(a[i], tile, x_at + i * M * ROW + k / EIGHTS, ROW, ROW_MAJOR);
    }
    [[unroll]] for (uint j = 0; j < FN; ++j) {
      MatrixB b;
      coopMatLoad(b, tile, weight_at + j * M * ROW + k / EIGHTS, ROW, COLUMN_MAJOR);
      [[unroll]] for (uint i = 0; i < FM; ++i) sums[i * FN + j] = coopMatMulAdd(a[i], b, sums[i * FN + j]);
    }
  }
}

// Four neighbouring outputs of a row: epilogue and store.
void finish(uint row, uint column, vec4 value) {
  const uint at = row * (push.outputs / FOURS) + column / FOURS;  // in fours
  if ((push.flags & HAS_BIAS) != 0) {
    value += vec4(push.bias.at[column], push.bias.at[column + 1], push.bias.at[column + 2], push.bias.at[column + 3]);
  }
  if ((push.flags & HAS_GELU) != 0) value = vec4(gelu(value.x), gelu(value.y), gelu(value.z), gelu(value.w));
  if ((push.flags & HAS_RESIDUAL) != 0) value += uintBitsToFloat(push.residual.at[at]);
  if ((push.flags & Y_IS_F32) != 0) {
    push.y.at[at] = floatBitsToUint(value);
  } else {
    WordPairs(push.y).at[at] = uvec2(pack_pair(value.x, value.y), pack_pair(value.z, value.w));
  }
}

// The same one by one, where rows of y are not aligned to 16 bytes; y is fp32.
void finish_unaligned(uint row, uint column, vec4 value) {
  for (uint i = 0; i < FOURS && column + i < push.outputs; ++i) {
    const uint at = row * push.outputs + column + i;
    float one = value[i];
    if ((push.flags & HAS_BIAS) != 0) one += push.bias.at[column + i];
    if ((push.flags & HAS_GELU) != 0) one = gelu(one);
    if ((push.flags & HAS_RESIDUAL) != 0) one += Floats(push.residual).at[at];
    Floats(push.y).at[at] = one;
  }
}

// Row i of this subgroup's matrices of sums, to shared memory. Arrays of matrices must be indexed by constants, lest
// they leave the registers; with the choice made here the epilogue, whose code is long, can stay a loop.
void store_slice(uint i, uint slice) {
  [[unroll]] for (uint constant_i = 0; constant_i < FM; ++constant_i) {
    if (constant_i == i) {
      [[unroll]] for (uint j = 0; j < FN; ++j) {
        coopMatStore(sums[constant_i * FN + j], tile, slice + j * (M / FOURS), SLICE_ROW, ROW_MAJOR);
      }
    }
  }
}

// The WK subgroups that summed the same part of the tile share its epilogue; `depth` is this one's place among them.
void write_tile(uvec2 origin, uint depth, uint place) {
  const uvec2 corner = origin + uvec2(place / WN * SM, place % WN * SN);
  const uint own_slice = (depth * WM * WN + place) * SLICE;
  [[dont_unroll]] for (uint i = 0; i < FM; ++i) {
    barrier();  // nobody reads the tile, or the slices of the rows before, any more
    store_slice(i, own_slice);
    barrier();
    for (uint item = depth * SUBGROUP + gl_SubgroupInvocationID; item < M * SN / FOURS; item += WK * SUBGROUP) {
      const uint slice_row = item / (SN / FOURS);
      const uint slice_column = item % (SN / FOURS);
      const uint row = corner.x + i * M + slice_row;
      const uint column = corner.y + slice_column * FOURS;
      if (row >= push.rows || column >= push.outputs) continue;
      vec4 value = vec4(0.0);
      [[unroll]] for (uint k = 0; k < WK; ++k) {
        value += uintBitsToFloat(tile[(k * WM * WN + place) * SLICE + slice_row * SLICE_ROW + slice_column]);
      }
      if (push.outputs % FOURS == 0) {
        finish(row, column, value);
      } else {
        finish_unaligned(row, column, value);
      }
    }
  }
}

void main() {
  const uvec2 origin = tile_origin();
  const uint depth = gl_SubgroupID / (WM * WN);
  const uint place = gl_SubgroupID % (WM * WN);
  const uint x_at = place / WN * SM * ROW + depth * (COLUMNS / WK);
  const uint weight_at = (BM + place % WN * SN) * ROW + depth * (COLUMNS / WK);
  const uint steps = (push.inputs + BK - 1) / BK;

  [[unroll]] for (uint i = 0; i < FM * FN; ++i) sums[i] = Sums(0.0);
  find_offsets(origin);
  [[unroll]] for (uint slot = 0; slot < PREFETCH; ++slot) load_step(slot, slot);
  for (uint first = 0; first < steps; first += PREFETCH) {
    [[unroll]] for (uint slot = 0; slot < PREFETCH; ++slot) {
      // Past the last step, in a last round of fewer than PREFETCH steps, everything is zeros.
      const uint step = first + slot;
      const uint stage = STAGES == 1 ? 0 : step % STAGES * STAGE;
      if (STAGES == 1) barrier();  // nobody reads the step before any more; with two stages the next barrier says so
      store_step(slot, stage);
      barrier();
      load_step(step + PREFETCH, slot);
      multiply_step(stage + x_at, stage + weight_at);
    }
  }
  write_tile(origin, depth, place);
}
