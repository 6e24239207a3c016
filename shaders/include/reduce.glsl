// Reductions over a workgroup of at most 256 invocations, any subgroup size: within subgroups first, then over one
// value per subgroup in shared memory. All invocations must call, all get the result. The order of the additions
// depends on the device but not on the data or on what else runs.
#ifndef REDUCE_GLSL
#define REDUCE_GLSL

#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

shared float reduce_partial[256];  // one per subgroup

void share_partial(float value) {
  barrier();  // the previous reduction's values have been read
  if (subgroupElect()) reduce_partial[gl_SubgroupID] = value;
  barrier();
}

float workgroup_sum(float value) {
  share_partial(subgroupAdd(value));
  float total = 0.0;
  for (uint i = 0; i < gl_NumSubgroups; ++i) total += reduce_partial[i];
  return total;
}

float workgroup_max(float value) {
  share_partial(subgroupMax(value));
  float largest = reduce_partial[0];
  for (uint i = 1; i < gl_NumSubgroups; ++i) largest = max(largest, reduce_partial[i]);
  return largest;
}

#endif  // REDUCE_GLSL
