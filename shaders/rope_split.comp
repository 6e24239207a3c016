#version 450
// Splits the joint projection into q, k and v, and turns q (scaled by q_scale first) and k by their positions: rotary
// embedding (Su et al. 2021) in the half-split form of ESM-2. With half = head_dim / 2, i < half and p = positions[t]:
//   (a, b) = (v[i], v[i + half])  ->  (a cos - b sin, b cos + a sin),  cos = table[p, i], sin = table[p, half + i]
//
//   qkv [tokens, 3, heads, head_dim] D, positions [tokens] i32, table [table_rows, head_dim] f32
//   -> q, k, v [tokens, heads, head_dim] D; head_dim is a multiple of 8
//
// An invocation takes four neighbouring i of one token and head, in q, k and v. All loads come before the first store,
// which they may not pass: the device waits for memory once.
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

// The two halves' elements i, i + 1, i + 2, i + 3 of a head.
struct Halves {
  vec4 a, b;
};

Halves load(uint at) { return Halves(load4(qkv, DTYPE, at), load4(qkv, DTYPE, at + head_dim / 2)); }

void store(Words target, uint at, Halves v) {
  store4(target, DTYPE, at, v.a);
  store4(target, DTYPE, at + head_dim / 2, v.b);
}

Halves turn(Halves v, vec4 cosines, vec4 sines) {
  return Halves(v.a * cosines - v.b * sines, v.b * cosines + v.a * sines);
}

void main() {
  const uint half_dim = head_dim / 2, fours = half_dim / 4, width = heads * head_dim;
  const uint items = tokens * heads * fours;
  for (uint item = gl_GlobalInvocationID.x; item < items; item += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
    const uint i = 4 * (item % fours), head = item / fours % heads, t = item / (fours * heads);
    const uint source = 3 * t * width + head * head_dim + i;
    const uint at = t * width + head * head_dim + i;
    const uint position = uint(positions.at[t]);
    const Halves q_in = load(source), k_in = load(source + width), v_in = load(source + 2 * width);
    const vec4 cosines = load4(table, DTYPE_F32, position * head_dim + i);
    const vec4 sines = load4(table, DTYPE_F32, position * head_dim + half_dim + i);
    store(q, at, turn(Halves(q_in.a * q_scale, q_in.b * q_scale), cosines, sines));
    store(k, at, turn(k_in, cosines, sines));
    store(v, at, v_in);
  }
}
