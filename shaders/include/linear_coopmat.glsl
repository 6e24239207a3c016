// What linear_coopmat.comp and linear_many_coopmat.comp share: the order of tiles, and how a layer ends, for four
// neighbouring outputs of a row at a time: bias, GELU or RoPE, residual, and the words to be stored. What a layer has
// is known when the pipeline is compiled. Before this come coopmat.glsl, the constants BM, BN, BAND, FLAGS and
// HEAD_DIM, and `push` with the operands' addresses, rows, outputs and q_scale.
#ifndef LINEAR_COOPMAT_GLSL
#define LINEAR_COOPMAT_GLSL

#include "gelu.glsl"
#include "rope.glsl"

// FLAGS
const uint HAS_BIAS = 1;
const uint HAS_RESIDUAL = 2;
const uint HAS_GELU = 4;
const uint Y_IS_F32 = 8;

// First row and first output of this workgroup's tile. Tiles are visited in bands of BAND tile rows, column by column,
// so that what runs at a time shares rows of both operands in the level-two cache.
uvec2 tile_origin() {
  const uint tiles_n = gl_NumWorkGroups.x;
  const uint tiles_m = gl_NumWorkGroups.y;
  const uint index = gl_WorkGroupID.y * tiles_n + gl_WorkGroupID.x;
  const uint band = index / (BAND * tiles_n);
  const uint within = index - band * BAND * tiles_n;
  const uint height = min(tiles_m - band * BAND, BAND);
  return uvec2((band * BAND + within % height) * BM, within / height * BN);
}

// Where in `table` the cosines and sines of the tile's rows begin, in uvec4; that of a row at its number modulo BM.
shared uint angles_of[HEAD_DIM != 0 ? BM : 1];

// Well ahead of the epilogue, which then need not wait for two loads in a row; the barriers of the first step show the
// result to all.
void find_angles(uint row0) {
  if (HEAD_DIM == 0) return;
  for (uint i = gl_LocalInvocationIndex; i < BM; i += THREADS) {
    const uint row = row0 + i;
    angles_of[row % BM] = uint(push.positions.at[min(row, push.rows - 1)]) * (HEAD_DIM / FOURS);
  }
}

// The bias of four neighbouring outputs; outputs beyond the end get some other's.
vec4 load_bias(uint column) {
  if ((FLAGS & HAS_BIAS) == 0) return vec4(0.0);
  const uint last = push.outputs - 1;
  return vec4(push.bias.at[min(column, last)], push.bias.at[min(column + 1, last)],
              push.bias.at[min(column + 2, last)], push.bias.at[min(column + 3, last)]);
}

// What the epilogue at row at.x and outputs at.y .. at.y + 3 of the product takes from memory: their residual, or the
// cosines and sines of their two pairs. To be asked for ahead of its use, and of stores that it could not pass.
vec4 load_operand(uvec2 at) {
  if (HEAD_DIM != 0) {
    if (at.y >= 2 * (push.outputs / 3)) return vec4(0.0);  // v is not turned
    return uintBitsToFloat(push.table.at[angles_of[at.x % BM] + at.y % HEAD_DIM / FOURS]);
  }
  if ((FLAGS & HAS_RESIDUAL) == 0) return vec4(0.0);
  return uintBitsToFloat(push.residual.at[at.x * (push.outputs / FOURS) + at.y / FOURS]);
}

// The finished outputs; `value` has the bias, `operand` is load_operand()'s.
vec4 finished(uvec2 at, vec4 value, vec4 operand) {
  if (HEAD_DIM != 0) {
    const uint width = push.outputs / 3;
    if (at.y < width) value *= push.q_scale;
    return at.y < 2 * width ? vec4(turn(value.xy, operand.xy), turn(value.zw, operand.zw)) : value;
  }
  if ((FLAGS & HAS_GELU) != 0) {
    [[unroll]] for (uint i = 0; i < FOURS; ++i) value[i] = gelu_of_few_instructions(value[i]);
  }
  return (FLAGS & HAS_RESIDUAL) != 0 ? value + operand : value;
}

// Where in y they belong, in fours.
uint place_in_y(uvec2 at) {
  if (HEAD_DIM != 0) return place_in_qkv(push.rows, push.outputs / 3 / FOURS, at.x, at.y / FOURS);
  return at.x * (push.outputs / FOURS) + at.y / FOURS;
}

// In y's type: four words, or two.
uvec4 words_of(vec4 value) {
  if ((FLAGS & Y_IS_F32) != 0) return floatBitsToUint(value);
  return uvec4(pack_pair(value.x, value.y), pack_pair(value.z, value.w), 0, 0);
}

void store_words(uint place, uvec4 words) {
  if ((FLAGS & Y_IS_F32) != 0) {
    push.y.at[place] = words;
  } else {
    WordPairs(push.y).at[place] = words.xy;
  }
}

#endif  // LINEAR_COOPMAT_GLSL
