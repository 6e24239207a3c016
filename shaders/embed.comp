#version 450
// out[t] = table[ids[t]] scale[sequence of t], and 0 for <mask>; without scale simply table[ids[t]]. An id that is no
// row of the table reads row unk_id.
//
//   ids [tokens] i32, cu_seqlens [sequences + 1] i32, scale [sequences] f32, table [vocab, width] any
//   -> out [tokens, width] f32
//
// One workgroup per token, two elements per invocation and step.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"

layout(local_size_x = 128) in;

layout(constant_id = 0) const uint DTYPE = DTYPE_F32;

layout(push_constant, scalar) uniform Push {
  Ints ids;
  Ints cu_seqlens;
  Floats scale;
  Words table;
  Words result;
  uint tokens;
  uint sequences;
  uint vocab;
  uint width;
  int mask_id;
  int unk_id;
  uint has_scale;
};

// The sequence b with cu_seqlens[b] <= t < cu_seqlens[b + 1].
uint sequence_of(uint t) {
  uint low = 0, high = sequences;
  while (high - low > 1) {
    const uint middle = (low + high) / 2;
    if (uint(cu_seqlens.at[middle]) <= t) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

float factor_of(uint t, int id) {
  if (has_scale == 0) return 1.0;
  return id == mask_id ? 0.0 : scale.at[sequence_of(t)];
}

void main() {
  for (uint t = gl_WorkGroupID.x; t < tokens; t += gl_NumWorkGroups.x) {
    const int id = ids.at[t];
    const uint row = id >= 0 && uint(id) < vocab ? uint(id) : uint(unk_id);
    const float factor = factor_of(t, id);
    for (uint i = 2 * gl_LocalInvocationID.x; i < width; i += 2 * gl_WorkGroupSize.x) {
      store2(result, DTYPE_F32, t * width + i, load2(table, DTYPE, row * width + i) * factor);
    }
  }
}
