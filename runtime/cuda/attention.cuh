// What the kernels of Attention share. attention.cu chooses between them:
//   attention_hopper.cu  wgmma, 16-bit operands, head_dim 64 and 128, compute capability 9.0
//   attention_hopper_short.cu  the same for few, short sequences and head_dim 64
//   attention_mma.cu     mma.sync, 16-bit operands, from compute capability 7.5 (f16) or 8.0 (bf16) on
//   attention.cu         plain fp32 arithmetic, all else
#pragma once

#include "runtime/cuda/kernel_tools.cuh"

namespace turboesm::cuda {

// Launches the operation and returns true, or returns false when it is not for these kernels.
bool launch_hopper_attention(const Attention& a, const Launch& l);
bool launch_short_hopper_attention(const Attention& a, const Launch& l);
bool launch_mma_attention(const Attention& a, const Launch& l);

// Addresses and sizes as kernels take them. D is the kernels' own template parameter.
struct AttentionOperands {
  const void *q, *k, *v;      // [tokens, heads, head_dim] D
  const int32_t* cu_seqlens;  // [sequences + 1]
  void* out;                  // [tokens, heads, head_dim] out_dtype
  DType out_dtype;
  uint32_t heads, head_dim;
};
inline AttentionOperands attention_operands(const Attention& a) {
  return {pointer<void>(a.q),
          pointer<void>(a.k),
          pointer<void>(a.v),
          pointer<int32_t>(a.cu_seqlens),
          pointer<void>(a.out),
          a.out.dtype,
          a.heads,
          a.head_dim};
}

// 2^x within 2 units in the last place; results below 2^-126 are 0.
__device__ __forceinline__ float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

// Elements index and index + 1 of `out`; index is even.
__device__ __forceinline__ void store_pair(void* out, DType dtype, size_t index, float2 pair) {
  if (dtype == DType::f16)
    store2(static_cast<__half*>(out) + index, pair);
  else if (dtype == DType::bf16)
    store2(static_cast<__nv_bfloat16*>(out) + index, pair);
  else
    store2(static_cast<float*>(out) + index, pair);
}

}  // namespace turboesm::cuda
