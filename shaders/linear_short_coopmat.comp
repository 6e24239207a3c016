#version 450
// y = x weight^T on matrix units for sums of few products, as the bias of positions has them (inputs = head_dim): the
// way of y to memory is what takes time, and what counts is to have it begin early and never stop.
//
//   x [rows, INPUTS] D, weight [outputs, INPUTS] D (fp16 or bf16) -> y [rows, outputs] fp32
//   INPUTS is a multiple of 16, outputs of 4; there are at least BM rows and BN outputs.
//
// A workgroup makes BM x BN outputs. All that it reads goes through shared memory at once. Each of its subgroups keeps
// the weights of SN outputs as matrices in registers and walks down the rows, 16 at a time, whose sums pass through a
// slice of shared memory of its own, so that it stores whole lines. Subgroups never wait for each other but for what
// was read. The last tiles of either direction overlap those before and store the same values once more.
#extension GL_GOOGLE_include_directive : require
#include "coopmat.glsl"

layout(constant_id = 3) const uint INPUTS = 64;

layout(push_constant, scalar) uniform Push {
  Eights x;
  Eights weight;
  WordQuads y;
  uint rows;
  uint outputs;
} push;

const uint BM = 128;
const uint BN = 128;
const uint SUBGROUPS = THREADS / SUBGROUP;
const uint SN = BN / SUBGROUPS;  // outputs of a subgroup
const uint FN = SN / M;
const uint FK = INPUTS / M;
const uint COLUMNS = INPUTS / EIGHTS;  // of 16 bytes
const uint ROW = COLUMNS + 1;          // padded: eight rows at the same column lie in different banks
const uint COPIES = (BM + BN) * COLUMNS / THREADS;
const uint SLICE_ROW = SN / FOURS + 2;  // padded: a matrix's rows, of which lanes store 8 bytes, lie in different banks
const uint SLICE = M * SLICE_ROW;
const uint ITEMS = M * SN / FOURS / SUBGROUP;  // of an invocation in a slice

const uint X = BM * ROW;
const uint WEIGHT = BN * ROW;
const uint SLICES = SUBGROUPS * SLICE;
shared uvec4 tile[X + (WEIGHT > SLICES ? WEIGHT : SLICES)];  // x's rows, then weight's, and in their place slices

void load_tile(uint row0, uint output0) {
  uvec4 staged[COPIES];
  [[unroll]] for (uint i = 0; i < COPIES; ++i) {
    const uint item = i * THREADS + gl_LocalInvocationIndex, row = item / COLUMNS, column = item % COLUMNS;
    staged[i] = row < BM ? push.x.at[(row0 + row) * COLUMNS + column]
                         : push.weight.at[(output0 + row - BM) * COLUMNS + column];
  }
  [[unroll]] for (uint i = 0; i < COPIES; ++i) {
    const uint item = i * THREADS + gl_LocalInvocationIndex;
    tile[item / COLUMNS * ROW + item % COLUMNS] = staged[i];
  }
}

void store_slice(uint row0, uint output0, uint slice, Sums sums[FN]) {
  sync_subgroup();  // the slice before has been read
  [[unroll]] for (uint j = 0; j < FN; ++j) {
    coopMatStore(sums[j], tile, slice + j * (M / FOURS), SLICE_ROW, ROW_MAJOR);
  }
  sync_subgroup();
  [[unroll]] for (uint n = 0; n < ITEMS; ++n) {
    const uint item = n * SUBGROUP + gl_SubgroupInvocationID, row = item / (SN / FOURS), four = item % (SN / FOURS);
    push.y.at[(row0 + row) * (push.outputs / FOURS) + output0 / FOURS + four] = tile[slice + row * SLICE_ROW + four];
  }
}

void main() {
  const uint row0 = min(gl_WorkGroupID.y * BM, push.rows - BM);
  const uint output0 = min(gl_WorkGroupID.x * BN, push.outputs - BN), own = gl_SubgroupID * SN;
  load_tile(row0, output0);
  barrier();
  MatrixB weights[FK * FN];
  [[unroll]] for (uint k = 0; k < FK; ++k) {
    [[unroll]] for (uint j = 0; j < FN; ++j) {
      coopMatLoad(weights[k * FN + j], tile, X + (own + j * M) * ROW + k * (M / EIGHTS), ROW, COLUMN_MAJOR);
    }
  }
  barrier();  // slices take the place of weights
  [[dont_unroll]] for (uint row = 0; row < BM; row += M) {
    Sums sums[FN];
    [[unroll]] for (uint j = 0; j < FN; ++j) sums[j] = Sums(0.0);
    [[unroll]] for (uint k = 0; k < FK; ++k) {
      MatrixA a;
      coopMatLoad(a, tile, row * ROW + k * (M / EIGHTS), ROW, ROW_MAJOR);
      [[unroll]] for (uint j = 0; j < FN; ++j) sums[j] = coopMatMulAdd(a, weights[k * FN + j], sums[j]);
    }
    store_slice(row0 + row, output0 + own, X + gl_SubgroupID * SLICE, sums);
  }
}
