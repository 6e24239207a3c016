#version 450
// y = epilogue(x weight^T + bias) + residual on matrix units; x [rows, inputs] and weight [outputs, inputs] are D
// (fp16 or bf16), products are summed in fp32, bias [outputs] and residual [rows, outputs] are fp32, y is any.
//
// With HEAD_DIM the epilogue is RoPE instead: the outputs are those of q, k and v, each a third. q is scaled by
// q_scale, pairs of neighbours of q and k are turned by their row's position, and y is [3, rows, outputs / 3].
// positions [rows] i32, table [*, HEAD_DIM] fp32: row p has a cosine and a sine for each pair of a head at position p.
// outputs % 24 == 0.
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
// The epilogue passes sums through shared memory, DRAIN x 16 rows of each subgroup at a time, as no element of a matrix
// has a known place in registers. It adds up the WK partial sums in ascending order and stores whole 128-byte lines.
//
// SPLITS > 1, also for few rows: that many workgroups, along z, share a tile, each summing a run of the steps, which
// occupies the device with tiles large enough to read each operand from cache less often. They leave their sums in
// scratch memory; the one that arrives last at the tile's counter adds them up in ascending order, whoever it is, and
// finishes the tile. It leaves the counter at zero for the next product.
//
// Rows and outputs beyond the end are clamped when loaded and not stored; inputs beyond the end are zeros. Needs:
// inputs % 8 == 0; outputs % 4 == 0 unless y is fp32.
#extension GL_GOOGLE_include_directive : require
#include "coopmat.glsl"

layout(constant_id = 3) const uint BM = 64;
layout(constant_id = 4) const uint BN = 64;
layout(constant_id = 5) const uint BK = 64;
layout(constant_id = 6) const uint WM = 2;
layout(constant_id = 7) const uint WN = 2;
layout(constant_id = 8) const uint WK = 1;
layout(constant_id = 9) const uint STAGES = 1;
layout(constant_id = 10) const uint PREFETCH = 1;
layout(constant_id = 11) const uint BAND = 8;
layout(constant_id = 12) const uint SPLITS = 1;
layout(constant_id = 13) const uint DRAIN = 1;
layout(constant_id = 14) const uint HEAD_DIM = 0;  // 0: no RoPE
layout(constant_id = 15) const uint FLAGS = 0;

// Shared between workgroups while they run.
layout(buffer_reference, scalar, buffer_reference_align = 16) devicecoherent buffer Partials { uvec4 at[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) devicecoherent buffer Counters { uint at[]; };

layout(push_constant, scalar) uniform Push {
  Eights x;
  Eights weight;
  Floats bias;
  WordQuads residual;
  WordQuads y;        // may be the residual
  Ints positions;
  WordQuads table;
  Partials partials;  // [tiles][SPLITS][BM, BN] fp32; with SPLITS > 1
  Counters counters;  // [tiles], zeros
  uint rows;
  uint inputs;
  uint outputs;
  float q_scale;
} push;

#include "linear_coopmat.glsl"

const uint SM = BM / WM;
const uint SN = BN / WN;
const uint FM = SM / M;  // matrices of sums in a subgroup's column and row
const uint FN = SN / M;

// Shared memory, in uvec4.
const uint ROW = BK / EIGHTS + 1;
const uint STAGE = (BM + BN) * ROW;
const uint SLICE_ROW = SN / FOURS + 1;
const uint SLICE = DRAIN * M * SLICE_ROW;  // rows of a subgroup's sums
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
shared uint arrived;  // workgroups of this tile that were here before
Sums sums[FM * FN];

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

// Global memory -> registers; zeros beyond the inputs and from step `end` on.
void load_step(uint step, uint end, uint slot) {
  const uint begin = step * COLUMNS;
  if (step < end && begin + gl_LocalInvocationIndex % COLUMNS < push.inputs / EIGHTS) {
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

bool is_aligned() { return HEAD_DIM != 0 || push.outputs % FOURS == 0; }
bool is_within(uvec2 at) { return at.x < push.rows && at.y < push.outputs; }

vec4 load_operand_within(uvec2 at) { return is_within(at) && is_aligned() ? load_operand(at) : vec4(0.0); }

// One by one, where rows of y are not aligned to 16 bytes; y is fp32.
void finish_unaligned(uint row, uint column, vec4 value) {
  for (uint i = 0; i < FOURS && column + i < push.outputs; ++i) {
    const uint at = row * push.outputs + column + i;
    float one = value[i];
    if ((FLAGS & HAS_GELU) != 0) one = gelu_of_few_instructions(one);
    if ((FLAGS & HAS_RESIDUAL) != 0) one += Floats(push.residual).at[at];
    Floats(push.y).at[at] = one;
  }
}

// Rows i, ..., i + DRAIN - 1 of this subgroup's matrices of sums, to shared memory. Arrays of matrices must be indexed
// by constants, lest they leave the registers; with the choice made here the epilogue, whose code is long, can stay a
// loop.
void store_slice(uint i, uint slice) {
  [[unroll]] for (uint constant_i = 0; constant_i < FM; ++constant_i) {
    if (constant_i / DRAIN == i / DRAIN) {
      const uint first = slice + constant_i % DRAIN * M * SLICE_ROW;
      [[unroll]] for (uint j = 0; j < FN; ++j) {
        coopMatStore(sums[constant_i * FN + j], tile, first + j * (M / FOURS), SLICE_ROW, ROW_MAJOR);
      }
    }
  }
}

// Four neighbouring outputs, bias added, at row at.x and column at.y of the product.
void finish_at(uvec2 at, vec4 value, vec4 operand) {
  if (!is_within(at)) return;
  if (is_aligned()) {
    store_words(place_in_y(at), words_of(finished(at, value, operand)));
  } else {
    finish_unaligned(at.x, at.y, value);
  }
}

const uint TILE_FOURS = BM * BN / FOURS;

uint tile_index() { return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x; }

// This workgroup's sums of a tile that it shares.
void store_partial(uint row, uint column, vec4 value) {
  const uint first = (tile_index() * SPLITS + gl_WorkGroupID.z) * TILE_FOURS;
  push.partials.at[first + row * (BN / FOURS) + column / FOURS] = floatBitsToUint(value);
}

// Where in the product the tile's four outputs number `item` lie.
uvec2 place_of(uvec2 origin, uint item) { return origin + uvec2(item / (BN / FOURS), item % (BN / FOURS) * FOURS); }

// A barrier of this workgroup that orders its accesses to buffers with those of other workgroups.
void sync_device() {
  controlBarrier(gl_ScopeWorkgroup, gl_ScopeDevice, gl_StorageSemanticsBuffer | gl_StorageSemanticsShared,
                 gl_SemanticsAcquireRelease);
}

// The last workgroup of a shared tile adds up what all have left.
void finish_shared_tile(uvec2 origin) {
  sync_device();  // every invocation's sums are there before the first one counts this workgroup
  if (gl_LocalInvocationIndex == 0) {
    arrived = atomicAdd(push.counters.at[tile_index()], 1, gl_ScopeDevice, gl_StorageSemanticsBuffer,
                        gl_SemanticsAcquireRelease);
  }
  sync_device();  // what the first invocation has seen, all see
  if (arrived != SPLITS - 1) return;
  if (gl_LocalInvocationIndex == 0) push.counters.at[tile_index()] = 0;
  const uint first = tile_index() * SPLITS * TILE_FOURS;
  // THREADS is a multiple of BN / 4, so an invocation's items all lie in one column.
  const vec4 bias = load_bias(origin.y + gl_LocalInvocationIndex % (BN / FOURS) * FOURS);
  const uint AT_ONCE = 4;
  for (uint begin = gl_LocalInvocationIndex; begin < TILE_FOURS; begin += AT_ONCE * THREADS) {
    vec4 value[AT_ONCE];
    vec4 operand[AT_ONCE];
    [[unroll]] for (uint i = 0; i < AT_ONCE; ++i) {
      const uint item = begin + i * THREADS;
      value[i] = bias;
      operand[i] = vec4(0.0);
      if (item >= TILE_FOURS) continue;
      operand[i] = load_operand_within(place_of(origin, item));
      [[unroll]] for (uint split = 0; split < SPLITS; ++split) {
        value[i] += uintBitsToFloat(push.partials.at[first + split * TILE_FOURS + item]);
      }
    }
    [[unroll]] for (uint i = 0; i < AT_ONCE; ++i) {
      const uint item = begin + i * THREADS;
      if (item < TILE_FOURS) finish_at(place_of(origin, item), value[i], operand[i]);
    }
  }
}

// A slice's fours and how many of them each invocation finishes.
const uint SLICE_FOURS = DRAIN * M * SN / FOURS;
const uint ITEMS = (SLICE_FOURS + WK * SUBGROUP - 1) / (WK * SUBGROUP);
uint item_of(uint n, uint depth) { return (n * WK + depth) * SUBGROUP + gl_SubgroupInvocationID; }

// Row and output of this invocation's item n of the slice at matrices i, from the subgroup's corner of the tile.
uvec2 item_place(uint i, uint n, uint depth) {
  const uint item = item_of(n, depth);
  return uvec2(i * M + item / (SN / FOURS), item % (SN / FOURS) * FOURS);
}

// The WK subgroups that summed the same part of the tile share its epilogue, and no others wait for each other; `depth`
// is this one's place among them. `bias` is that of its outputs.
void write_tile(uvec2 origin, uint depth, uint place, vec4 bias) {
  const uvec2 corner = uvec2(place / WN * SM, place % WN * SN);
  const uint own_slice = (depth * WM * WN + place) * SLICE;
  [[dont_unroll]] for (uint i = 0; i < FM; i += DRAIN) {
    vec4 operand[ITEMS];
    [[unroll]] for (uint n = 0; n < ITEMS; ++n) {
      operand[n] = SPLITS == 1 ? load_operand_within(origin + corner + item_place(i, n, depth)) : vec4(0.0);
    }
    if (i == 0 || WK > 1) {  // nobody reads the tile, or the slices of the rows before, any more
      barrier();
    } else {
      sync_subgroup();
    }
    store_slice(i, own_slice);
    if (WK > 1) {
      barrier();
    } else {
      sync_subgroup();
    }
    [[unroll]] for (uint n = 0; n < ITEMS; ++n) {
      const uint item = item_of(n, depth);
      const uvec2 within = item_place(i, n, depth);
      if (item >= SLICE_FOURS || within.x >= SM) continue;  // DRAIN need not divide FM
      const uint at = item / (SN / FOURS) * SLICE_ROW + item % (SN / FOURS);
      vec4 value = bias;
      [[unroll]] for (uint k = 0; k < WK; ++k) {
        value += uintBitsToFloat(tile[(k * WM * WN + place) * SLICE + at]);
      }
      if (SPLITS == 1) {
        finish_at(origin + corner + within, value, operand[n]);
      } else {
        store_partial(corner.x + within.x, corner.y + within.y, value);
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
  const uint all_steps = (push.inputs + BK - 1) / BK;
  const uint run = (all_steps + SPLITS - 1) / SPLITS;
  const uint begin = SPLITS == 1 ? 0 : min(gl_WorkGroupID.z * run, all_steps);
  const uint end = SPLITS == 1 ? all_steps : min(begin + run, all_steps);

  // Asked for now, to be there when the sums are: the epilogue's items of an invocation all lie in one column.
  const uint slice_column = (depth * SUBGROUP + gl_SubgroupInvocationID) % (SN / FOURS) * FOURS;
  const vec4 bias = SPLITS == 1 ? load_bias(origin.y + place % WN * SN + slice_column) : vec4(0.0);
  [[unroll]] for (uint i = 0; i < FM * FN; ++i) sums[i] = Sums(0.0);
  find_offsets(origin);
  [[unroll]] for (uint slot = 0; slot < PREFETCH; ++slot) load_step(begin + slot, end, slot);
  find_angles(origin.x);
  for (uint first = begin; first < end; first += PREFETCH) {
    [[unroll]] for (uint slot = 0; slot < PREFETCH; ++slot) {
      // Past the last step, in a last round of fewer than PREFETCH steps, everything is zeros.
      const uint step = first + slot;
      const uint stage = STAGES == 1 ? 0 : step % STAGES * STAGE;
      if (STAGES == 1) barrier();  // nobody reads the step before any more; with two stages the next barrier says so
      store_step(slot, stage);
      barrier();
      load_step(step + PREFETCH, end, slot);
      multiply_step(stage + x_at, stage + weight_at);
    }
  }
  write_tile(origin, depth, place, bias);
  if (SPLITS > 1) finish_shared_tile(origin);
}
