// Matrix products on the CUDA cores, of any type and shape, and the epilogues that cuBLASLt does not have:
//   y = epilogue(x weight^T + bias) + residual, or QkvRope's (runtime/operations.h)
//
// A block computes kTile x kTile outputs; a thread 4 x 4 of them, two pairs of neighbouring outputs in each of four
// rows, so that RoPE finds its pairs in one thread. kDepth columns of both operands are in shared memory, transposed.
#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/product.h"
#include "shaders/include/erf_coefficients.h"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kTile = 64, kDepth = 16, kThreads = 256;

__device__ float error_function(float x) {
  if (fabsf(x) >= TURBOESM_ERF_LIMIT) return copysignf(1.0f, x);
  const float t = x * x;
  float p = TURBOESM_ERF_P6;
  p = fmaf(p, t, TURBOESM_ERF_P5);
  p = fmaf(p, t, TURBOESM_ERF_P4);
  p = fmaf(p, t, TURBOESM_ERF_P3);
  p = fmaf(p, t, TURBOESM_ERF_P2);
  p = fmaf(p, t, TURBOESM_ERF_P1);
  p = fmaf(p, t, TURBOESM_ERF_P0);
  float q = TURBOESM_ERF_Q5;
  q = fmaf(q, t, TURBOESM_ERF_Q4);
  q = fmaf(q, t, TURBOESM_ERF_Q3);
  q = fmaf(q, t, TURBOESM_ERF_Q2);
  q = fmaf(q, t, TURBOESM_ERF_Q1);
  q = fmaf(q, t, TURBOESM_ERF_Q0);
  return fminf(fmaxf(x * p / q, -1.0f), 1.0f);
}

__device__ float gelu(float z) { return 0.5f * z * (1.0f + error_function(z * 0.70710678118654752f)); }

// Outputs `output` and `output` + 1 of row `row`; the second is left out where it lies beyond the last.
template <class Y>
__device__ void finish_pair(const Product& p, uint32_t row, uint32_t output, float2 z) {
  const bool has_second = output + 1 < p.outputs;
  if (p.bias) {
    z.x += p.bias[output];
    if (has_second) z.y += p.bias[output + 1];
  }
  Y* y = static_cast<Y*>(p.y);
  if (p.heads > 0) {
    const uint32_t width = p.heads * p.head_dim, part = output / width, column = output % width;
    if (part < 2) {
      const float* angles = p.table + uint64_t(p.positions[row]) * p.head_dim + column % p.head_dim;
      const float scale = part == 0 ? p.q_scale : 1.0f, a = z.x * scale, b = z.y * scale;
      z = {a * angles[0] - b * angles[1], b * angles[0] + a * angles[1]};
    }
    store2(y + (uint64_t(part) * p.rows + row) * width + column, z);
    return;
  }
  if (p.gelu) z = {gelu(z.x), gelu(z.y)};
  const uint64_t at = uint64_t(row) * p.outputs + output;
  if (p.residual) {
    z.x += p.residual[at];
    if (has_second) z.y += p.residual[at + 1];
  }
  y[at] = from_float<Y>(z.x);
  if (has_second) y[at + 1] = from_float<Y>(z.y);
}

// The tile's columns [k, k + kDepth) of rows [first, first + kTile) of a row-major matrix, transposed; 0 beyond it.
template <class T>
__device__ void load_tile(const T* matrix, uint32_t first, uint32_t rows, uint32_t columns, uint32_t k,
                          float (&tile)[kDepth][kTile + 4]) {
  for (uint32_t i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
    const uint32_t row = i / kDepth, column = i % kDepth;
    const bool inside = first + row < rows && k + column < columns;
    tile[column][row] = inside ? to_float(matrix[uint64_t(first + row) * columns + k + column]) : 0.0f;
  }
}

template <class T, class Y>
__global__ void __launch_bounds__(kThreads) product(const Product p) {
  __shared__ __align__(16) float x_tile[kDepth][kTile + 4], weight_tile[kDepth][kTile + 4];
  wait_for_inputs();
  const uint32_t first_row = blockIdx.y * kTile, first_output = blockIdx.x * kTile;
  const uint32_t thread_row = threadIdx.x / 16 * 4, thread_output = threadIdx.x % 16 * 4;
  float sums[4][4] = {};
  for (uint32_t k = 0; k < p.inputs; k += kDepth) {
    load_tile(static_cast<const T*>(p.x), first_row, p.rows, p.inputs, k, x_tile);
    load_tile(static_cast<const T*>(p.weight), first_output, p.outputs, p.inputs, k, weight_tile);
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < kDepth; ++i) {
      const float4 x = load4(&x_tile[i][thread_row]), w = load4(&weight_tile[i][thread_output]);
      const float xs[4] = {x.x, x.y, x.z, x.w}, ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (uint32_t r = 0; r < 4; ++r)
#pragma unroll
        for (uint32_t c = 0; c < 4; ++c) sums[r][c] = fmaf(xs[r], ws[c], sums[r][c]);
    }
    __syncthreads();
  }
#pragma unroll
  for (uint32_t r = 0; r < 4; ++r)
#pragma unroll
    for (uint32_t c = 0; c < 4; c += 2) {
      const uint32_t row = first_row + thread_row + r, output = first_output + thread_output + c;
      if (row < p.rows && output < p.outputs) finish_pair<Y>(p, row, output, {sums[r][c], sums[r][c + 1]});
    }
}

template <class Y>
__global__ void __launch_bounds__(kThreads)
    epilogue(const Product p, const float* sums, uint32_t first, uint32_t rows) {
  let_next_start();
  wait_for_inputs();
  const uint32_t pairs = (p.outputs + 1) / 2;
  for (uint64_t i = uint64_t(blockIdx.x) * kThreads + threadIdx.x; i < uint64_t(rows) * pairs;
       i += uint64_t(gridDim.x) * kThreads) {
    const uint32_t row = uint32_t(i / pairs), output = uint32_t(i % pairs) * 2;
    const float* z = sums + uint64_t(row) * p.outputs + output;
    finish_pair<Y>(p, first + row, output, {z[0], output + 1 < p.outputs ? z[1] : 0.0f});
  }
}

}  // namespace

void launch_plain(const Product& p, const Launch& l) {
  // The grid's second dimension is limited to 65,535 blocks: 4 million rows.
  const dim3 grid(blocks_of(p.outputs, kTile), blocks_of(p.rows, kTile));
  with_type(p.dtype, [&](auto x) {
    with_type(p.y_dtype, [&](auto y) { start(product<decltype(x), decltype(y)>, grid, kThreads, 0, l, p); });
  });
}

void launch_epilogue(const Product& p, const float* sums, uint32_t first, uint32_t rows, const Launch& l) {
  const uint64_t pairs = uint64_t(rows) * ((p.outputs + 1) / 2);
  const uint32_t blocks = std::min<uint32_t>(blocks_of(pairs, kThreads), 16 * l.gpu.multiprocessors);
  with_type(p.y_dtype, [&](auto y) { start(epilogue<decltype(y)>, blocks, kThreads, 0, l, p, sums, first, rows); });
}

}  // namespace turboesm::cuda
