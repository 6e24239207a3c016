// The epilogue of Hopper's products on four neighbouring outputs of a row, z = (x weight^T)[row, column .. column + 3]:
//   Linear:  y = epilogue(z + bias) + residual, epilogue nothing or GELU
//   QkvRope: y = turn(scale (z + bias)) for q and k, z + bias for v (runtime/operations.h)
// `extra` is what is read beside bias, early enough to hide its latency: the residual, or two pairs (cos, sin).
#pragma once

#include <type_traits>

#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/product_hopper_kernels.h"
#include "shaders/include/gelu_coefficients.h"

namespace turboesm::cuda::hopper {

// As gelu_coefficients.h states it. A NaN stays one.
__device__ __forceinline__ float gelu(float z) {
  const float h = fminf(fabsf(z), TURBOESM_GELU_LIMIT);
  float p = TURBOESM_GELU_P6;
  p = fmaf(p, h, TURBOESM_GELU_P5);
  p = fmaf(p, h, TURBOESM_GELU_P4);
  p = fmaf(p, h, TURBOESM_GELU_P3);
  p = fmaf(p, h, TURBOESM_GELU_P2);
  p = fmaf(p, h, TURBOESM_GELU_P1);
  p = fmaf(p, h, TURBOESM_GELU_P0);
  float q, positive;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(q) : "f"(p));
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(positive) : "f"(z));
  return fmaf(-h, q, positive);
}
__device__ __forceinline__ float4 gelu(float4 z) { return {gelu(z.x), gelu(z.y), gelu(z.z), gelu(z.w)}; }

__device__ __forceinline__ float4 add(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// (a, b) -> (a cos - b sin, b cos + a sin), scaled first; angles holds cos, sin, cos, sin.
__device__ __forceinline__ float4 turn(float4 z, float scale, float4 angles) {
  z = {z.x * scale, z.y * scale, z.z * scale, z.w * scale};
  return {z.x * angles.x - z.y * angles.y, z.y * angles.x + z.x * angles.y, z.z * angles.z - z.w * angles.w,
          z.w * angles.z + z.z * angles.w};
}

// The type of y of a kernel of this kind.
template <class T, Kind kKind>
using ResultOf = std::conditional_t<kKind == Kind::wide || kKind == Kind::wide_gelu, float,
                                    std::conditional_t<kKind == Kind::rope, __half, T>>;

// Of QkvRope's column: 0 for q, 1 for k, 2 for v.
__device__ __forceinline__ uint32_t part_of(const Epilogue& e, uint32_t column) {
  return uint32_t(column >= e.width) + uint32_t(column >= 2 * e.width);
}
__device__ __forceinline__ uint32_t in_head(const Epilogue& e, uint32_t column) {
  return column - __umulhi(column, e.head_magic) * e.head_dim;
}
// The place in y of a row's column; row < rows, column < outputs.
__device__ __forceinline__ uint64_t place(const Epilogue& e, uint32_t row, uint32_t column, uint32_t part) {
  return (uint64_t(part) * e.rows + row) * e.width + (column - part * e.width);
}

__device__ __forceinline__ uint32_t pack(float low, float high, bool f16) {
  const uint32_t half = pack_pair<__half>(low, high), bfloat = pack_pair<__nv_bfloat16>(low, high);
  return f16 ? half : bfloat;
}
__device__ __forceinline__ void store_narrow(const Epilogue& e, uint64_t at, float4 z) {
  const bool f16 = e.y_dtype == DType::f16;
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(e.y) + at) = {pack(z.x, z.y, f16), pack(z.z, z.w, f16)};
}
__device__ __forceinline__ void store_wide(const Epilogue& e, uint64_t at, float4 z) {
  *reinterpret_cast<float4*>(static_cast<float*>(e.y) + at) = z;
}
__device__ __forceinline__ void store_one(const Epilogue& e, uint64_t at, float z) {
  if (e.y_dtype == DType::f32)
    static_cast<float*>(e.y)[at] = z;
  else
    static_cast<uint16_t*>(e.y)[at] = uint16_t(pack(z, z, e.y_dtype == DType::f16));
}

// A lane's sums of eight tokens where M is outputs: a wgmma leaves with lane l outputs l / 4 and l / 4 + 8 of tokens 2
// (l % 4) and the next, in (x, y) and (z, w). Returned are outputs quad_output(l) .. + 3 of token quad_token(l): first
// bit 2 of the lane and the lowest of the token change places, then bit 3 of the lane and bit 3 of the output.
__device__ __forceinline__ uint32_t quad_token(uint32_t lane) { return lane % 4 * 2 + lane / 4 % 2; }
__device__ __forceinline__ uint32_t quad_output(uint32_t lane) { return lane / 8 % 2 * 8 + lane / 16 * 4; }
__device__ __forceinline__ float4 to_quad(float4 v, uint32_t lane) {
  const bool odd = lane & 4, high = lane & 8;
  const float a = __shfl_xor_sync(kAllLanes, odd ? v.x : v.y, 4);
  const float b = __shfl_xor_sync(kAllLanes, odd ? v.z : v.w, 4);
  v = {odd ? a : v.x, odd ? v.y : a, odd ? b : v.z, odd ? v.w : b};
  const float c = __shfl_xor_sync(kAllLanes, high ? v.x : v.z, 8);
  const float d = __shfl_xor_sync(kAllLanes, high ? v.y : v.w, 8);
  return {high ? c : v.x, high ? d : v.y, high ? v.z : c, high ? v.w : d};
}

// Four values of a row of f32 from column on, `outputs` long; 0 beyond.
__device__ __forceinline__ float4 load_quad(const float* row, uint32_t column, uint32_t outputs, bool vectors) {
  float4 v{};
  if (vectors) {
    if (column < outputs) v = *reinterpret_cast<const float4*>(row + column);
    return v;
  }
  if (column < outputs) v.x = row[column];
  if (column + 1 < outputs) v.y = row[column + 1];
  if (column + 2 < outputs) v.z = row[column + 2];
  if (column + 3 < outputs) v.w = row[column + 3];
  return v;
}

}  // namespace turboesm::cuda::hopper
