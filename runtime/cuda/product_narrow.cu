// Products of f32 with few outputs, as the 33 logits of a token: y = x weight^T + bias + residual.
//
// A block takes ROWS rows of x to shared memory; a warp computes a few outputs of them at a time, so that many loads
// are under way, four columns of the weights a lane and step, and adds up across its lanes. More rows in a block read
// the weights less often; fewer make more blocks.
#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/product.h"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kWarps = 11, kThreads = kWarps * kWarp;
constexpr uint32_t kTogether = 3;  // outputs of a warp: 33 for all warps
constexpr uint32_t kMostOutputs = 64;
constexpr uint32_t kRows[kNarrowVariants] = {1, 2, 4, 8};

template <uint32_t ROWS>
__global__ void __launch_bounds__(kThreads) narrow(const Product p) {
  extern __shared__ __align__(16) float x[];  // [ROWS][inputs]
  let_next_start();
  // The weights come while the kernel before this one runs, a share by each block.
  constexpr uint32_t kLine = 32;  // floats
  const uint64_t step = uint64_t(kLine) * kThreads;
  for (uint64_t i = step * blockIdx.x + kLine * threadIdx.x; i < uint64_t(p.outputs) * p.inputs; i += step * gridDim.x)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const float*>(p.weight) + i));
  wait_for_inputs();
  const uint32_t first = blockIdx.x * ROWS, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint32_t held = min(ROWS, p.rows - first);
  const float* source = static_cast<const float*>(p.x) + uint64_t(first) * p.inputs;
  for (uint32_t i = 4 * threadIdx.x; i < ROWS * p.inputs; i += 4 * kThreads)
    store4(x + i, i < held * p.inputs ? load4(source + i) : float4{0, 0, 0, 0});
  __syncthreads();
  for (uint32_t output = warp * kTogether; output < p.outputs; output += kWarps * kTogether) {
    const float* weights[kTogether];
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i)
      weights[i] = static_cast<const float*>(p.weight) + uint64_t(min(output + i, p.outputs - 1)) * p.inputs;
    float sums[kTogether][ROWS] = {};
#pragma unroll 4
    for (uint32_t k = 4 * lane; k < p.inputs; k += 4 * kWarp) {
      float4 w[kTogether];
#pragma unroll
      for (uint32_t i = 0; i < kTogether; ++i) w[i] = load4(weights[i] + k);
#pragma unroll
      for (uint32_t r = 0; r < ROWS; ++r) {
        const float4 v = load4(x + r * p.inputs + k);
#pragma unroll
        for (uint32_t i = 0; i < kTogether; ++i)
          sums[i][r] = fmaf(v.x, w[i].x, fmaf(v.y, w[i].y, fmaf(v.z, w[i].z, fmaf(v.w, w[i].w, sums[i][r]))));
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i) {
      if (output + i >= p.outputs) break;
      const float bias = p.bias ? p.bias[output + i] : 0.0f;
#pragma unroll
      for (uint32_t r = 0; r < ROWS; ++r) {
        const float sum = warp_sum(sums[i][r]) + bias;
        const uint64_t at = uint64_t(first + r) * p.outputs + output + i;
        if (lane == 0 && r < held) static_cast<float*>(p.y)[at] = sum + (p.residual ? p.residual[at] : 0.0f);
      }
    }
  }
}

template <uint32_t ROWS>
void launch_rows(const Product& p, const Launch& l) {
  const uint32_t bytes = ROWS * p.inputs * 4;
  start(narrow<ROWS>, blocks_of(p.rows, ROWS), kThreads, bytes, l, p);
}

}  // namespace

bool narrow_can(const Product& p, uint32_t variant, const Gpu& gpu) {
  return p.dtype == DType::f32 && p.y_dtype == DType::f32 && p.heads == 0 && !p.gelu && p.outputs <= kMostOutputs &&
         p.inputs % 4 == 0 && kRows[variant] * p.inputs * 4 <= gpu.max_shared_bytes && !gpu.tf32;
}

void launch_narrow(const Product& p, uint32_t variant, const Launch& l) {
  switch (kRows[variant]) {
    case 1: return launch_rows<1>(p, l);
    case 2: return launch_rows<2>(p, l);
    case 4: return launch_rows<4>(p, l);
    default: return launch_rows<8>(p, l);
  }
}

}  // namespace turboesm::cuda
