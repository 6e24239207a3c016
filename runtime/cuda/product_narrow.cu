// Products of f32 with few outputs, as the 33 logits of a token: y = x weight^T + bias + residual.
//
// A block takes ROWS rows of x to shared memory; a warp computes one output of them at a time, four columns of the
// weights a lane and step, and adds up across its lanes. More rows in a block read the weights less often; fewer make
// more blocks.
#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/product.h"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kWarps = 8, kThreads = kWarps * kWarp;
constexpr uint32_t kMostOutputs = 64;
constexpr uint32_t kRows[kNarrowVariants] = {1, 2, 4, 8};

template <uint32_t ROWS>
__global__ void __launch_bounds__(kThreads) narrow(const Product p) {
  extern __shared__ __align__(16) float x[];  // [ROWS][inputs]
  let_next_start();
  wait_for_inputs();
  const uint32_t first = blockIdx.x * ROWS, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint32_t held = min(ROWS, p.rows - first);
  const float* source = static_cast<const float*>(p.x) + uint64_t(first) * p.inputs;
  for (uint32_t i = 4 * threadIdx.x; i < ROWS * p.inputs; i += 4 * kThreads)
    store4(x + i, i < held * p.inputs ? load4(source + i) : float4{0, 0, 0, 0});
  __syncthreads();
  for (uint32_t output = warp; output < p.outputs; output += kWarps) {
    const float* weight = static_cast<const float*>(p.weight) + uint64_t(output) * p.inputs;
    float sums[ROWS] = {};
#pragma unroll 4
    for (uint32_t k = 4 * lane; k < p.inputs; k += 4 * kWarp) {
      const float4 w = load4(weight + k);
#pragma unroll
      for (uint32_t r = 0; r < ROWS; ++r) {
        const float4 v = load4(x + r * p.inputs + k);
        sums[r] = fmaf(v.x, w.x, fmaf(v.y, w.y, fmaf(v.z, w.z, fmaf(v.w, w.w, sums[r]))));
      }
    }
    const float bias = p.bias ? p.bias[output] : 0.0f;
#pragma unroll
    for (uint32_t r = 0; r < ROWS; ++r) {
      const float sum = warp_sum(sums[r]) + bias;
      const uint64_t at = uint64_t(first + r) * p.outputs + output;
      if (lane == 0 && r < held) static_cast<float*>(p.y)[at] = sum + (p.residual ? p.residual[at] : 0.0f);
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
