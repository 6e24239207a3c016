#version 450
// Splits the joint projection into q, k and v, and turns q (scaled by q_scale first) and k by their positions: rotary
// embedding (Su et al. 2021) in the half-split form of ESM-2. With half = head_dim / 2, i < half and p = positions[t]:
//   (a, b) = (v[i], v[i + half])  ->  (a cos - b sin, b cos + a sin),  cos = table[p, i], sin = table[p, half + i]
//
//   qkv [tokens, 3, heads, head_dim] D, positions [tokens] i32, table [table_rows, head_dim] f32
//   -> q, k, v [tokens, heads, head_dim] D; head_dim is a multiple of 8
//
// An invocation takes four neighbouring i of one token and head, in q, k and v.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"

layout(local_size_x = 128) in;

layout(constant_id = 0) const uint DTYPE = DTYPE_F32;

layout(push_constant, scalar) uniform Push {
  Words qkv;
  Ints positions;
  Words table;
  Words q;
  Words k;
  Words v;
  uint tokens;
  uint heads;
  uint head_dim;
  float q_scale;
};

void rotate(uint source, Words target, uint at, float factor, vec4 cosines, vec4 sines) {
  const uint half_dim = head_dim / 2;
  const vec4 a = load4(qkv, DTYPE, source) * factor;
  const vec4 b = load4(qkv, DTYPE, source + half_dim) * factor;
  store4(target, DTYPE, at, a * cosines - b * sines);
  store4(target, DTYPE, at + half_dim, b * cosines + a * sines);
}

void main() {
  const uint half_dim = head_dim / 2, fours = half_dim / 4, width = heads * head_dim;
  const uint items = tokens * heads * fours;
  for (uint item = gl_GlobalInvocationID.x; item < items; item += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
    const uint i = 4 * (item % fours), head = item / fours % heads, t = item / (fours * heads);
    const uint position = uint(positions.at[t]);
    const vec4 cosines = load4(table, DTYPE_F32, position * head_dim + i);
    const vec4 sines = load4(table, DTYPE_F32, position * head_dim + half_dim + i);
    const uint source = 3 * t * width + head * head_dim + i;
    const uint at = t * width + head * head_dim + i;
    rotate(source, q, at, q_scale, cosines, sines);
    rotate(source + width, k, at, 1.0, cosines, sines);
    store4(v, DTYPE, at, load4(qkv, DTYPE, source + 2 * width));
    store4(v, DTYPE, at + half_dim, load4(qkv, DTYPE, source + 2 * width + half_dim));
  }
}
