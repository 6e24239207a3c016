// The Lloyd-Max quantizer of N(0, 1) for 1 to 4 bits, for C++, GLSL and CUDA alike: model/codebook.cpp's
// lloyd_max_gaussian(), to fp32. Kernels that know a codebook by heart need neither load it nor keep it in registers.
#ifndef TURBOESM_KV_GAUSSIAN_H
#define TURBOESM_KV_GAUSSIAN_H

#include "kv_layout.h"

#ifdef __cplusplus
namespace turboesm {
#endif

// Positive centroid i, 0 .. 2^(bits - 1) - 1, in ascending order; the others are their negatives.
KV_FUNCTION float kv_gaussian_centroid(kv_uint bits, kv_uint i) {
  if (bits == 1u) return 0.797884561f;
  if (bits == 2u) return i == 0u ? 0.452780035f : 1.51041761f;
  if (bits == 3u) return i == 0u ? 0.245094179f : i == 1u ? 0.756005281f : i == 2u ? 1.34390928f : 2.1519457f;
  if (i < 4u) return i == 0u ? 0.12839503f : i == 1u ? 0.388048299f : i == 2u ? 0.656759119f : 0.942340456f;
  return i == 4u ? 1.2562312f : i == 5u ? 1.61804639f : i == 6u ? 2.06901723f : 2.73258957f;
}

// The threshold below positive centroid i, i > 0: midway to the one before.
KV_FUNCTION float kv_gaussian_threshold(kv_uint bits, kv_uint i) {
  return 0.5f * (kv_gaussian_centroid(bits, i - 1u) + kv_gaussian_centroid(bits, i));
}

#ifdef __cplusplus
}  // namespace turboesm
#endif

#endif  // TURBOESM_KV_GAUSSIAN_H
