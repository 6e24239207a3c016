// What the kernels share whose invocations are the lanes of a processor's vectors (software drivers): memory by 8 bytes,
// because such a driver gathers a lane's value from wherever it is, at the same cost for 4 bytes as for 8.
//
// The file that includes this declares the specialization constants DTYPE (of what is read) and LANES (the subgroup's
// size, which is the workgroup's).
#ifndef LANES_GLSL
#define LANES_GLSL

#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#extension GL_EXT_control_flow_attributes : require

layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Longs { uint64_t at[]; };

const uint kValues = DTYPE == DTYPE_F32 ? 2 : 4;  // of 8 bytes

// The kValues values of 8 bytes, and zeros.
vec4 widen(uint64_t bits) {
  const uvec2 words = unpackUint2x32(bits);
  if (DTYPE == DTYPE_F32) return vec4(uintBitsToFloat(words), 0.0, 0.0);
  return vec4(widen2(DTYPE, words.x), widen2(DTYPE, words.y));
}

// f32 elements i and i + 1 for an even i, in one access.
vec2 load_pair(Words tensor, uint i) { return uintBitsToFloat(unpackUint2x32(Longs(tensor).at[i / 2])); }

void store_pair(Words tensor, uint dtype, uint i, vec2 pair) {
  if (dtype == DTYPE_F32) {
    Longs(tensor).at[i / 2] = packUint2x32(floatBitsToUint(pair));
  } else {
    store2(tensor, dtype, i, pair);
  }
}

#endif  // LANES_GLSL
