#version 450
// destination = source.
//
//   source [words] -> destination [words], both of any type
//
// Four accesses of sixteen bytes in flight per invocation, which is what it takes to reach a device's bandwidth; the
// first invocations copy the last, incomplete sixteen.
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"

layout(local_size_x = 256) in;

layout(push_constant, scalar) uniform Push {
  Words source;
  Words destination;
  uint words;
};

const uint kInFlight = 4;  // kCopyInFlight in runtime/vulkan/lower.cpp

void copy_quads(uint first, uint step, uint quads) {
  uvec4 held[kInFlight];
  for (uint i = 0; i < kInFlight; ++i) {
    held[i] = WordQuads(source).at[min(first + i * step, quads - 1)];
  }
  for (uint i = 0; i < kInFlight; ++i) {
    if (first + i * step < quads) WordQuads(destination).at[first + i * step] = held[i];
  }
}

void main() {
  const uint quads = words / 4, me = gl_GlobalInvocationID.x;
  const uint block = kInFlight * gl_WorkGroupSize.x;
  for (uint begin = gl_WorkGroupID.x * block; begin < quads; begin += gl_NumWorkGroups.x * block) {
    copy_quads(begin + gl_LocalInvocationID.x, gl_WorkGroupSize.x, quads);
  }
  if (me < words % 4) destination.at[4 * quads + me] = source.at[4 * quads + me];
}
