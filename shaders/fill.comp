#version 450
// out[i] = value. The host gives the value as a word: the bits of an f32, or of a 16-bit type twice.
//
//   -> out [words / elements per word] any
//
// Sixteen bytes per invocation and step; the first invocations write the last, incomplete sixteen.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"

layout(local_size_x = 256) in;

layout(push_constant, scalar) uniform Push {
  Words result;
  uint words;
  uint pattern;
};

void main() {
  const uint quads = words / 4, me = gl_GlobalInvocationID.x, step = gl_NumWorkGroups.x * gl_WorkGroupSize.x;
  for (uint i = me; i < quads; i += step) WordQuads(result).at[i] = uvec4(pattern);
  if (me < words % 4) result.at[4 * quads + me] = pattern;
}
