// What attention over a cache needs of its queries (KvQuery in runtime/kv_operations.h):
//   out = transform q,  projected = projection out,  position = (q_a m_a + q_b m_b, q_b m_a - q_a m_b) by pairs (a, b)
//
// A block takes some rows of one head, a warp one row at a time, a lane outputs lane, lane + 32 ... The transform,
// which no kernel writes, is brought to shared memory while the kernel before still runs; the stride of its rows there
// lets lanes that are 4 apart read different banks.
#pragma once

#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/kv_transform.cuh"
#include "runtime/operation_rules.h"

namespace turboesm::cuda::kv_query {

inline constexpr uint32_t kWarps = 4;            // of a block by itself
inline constexpr uint32_t kStagedHeadDim = 128;  // transforms of larger heads stay where they are

__host__ __device__ constexpr uint32_t staged_stride(uint32_t head_dim) { return head_dim + 4; }

struct Arguments {
  const void* q;
  void* position;
  const float *transform, *projection, *position_mean;
  float *out, *projected;
  uint32_t rows, heads, head_dim, warps, rows_of_block;  // warps: of a block
  bool transform_of_head, is_staged;                     // the transform, in shared memory

  uint32_t blocks() const { return blocks_of(rows, rows_of_block); }
  uint32_t shared_bytes() const { return 4 * head_dim * (2 * warps + (is_staged ? staged_stride(head_dim) : 0)); }
};

// y = matrix x for a matrix [d, d] whose rows are `stride` apart; x and y are in shared memory. kHeadDim is d, or 0
// where only the caller knows it.
template <uint32_t kHeadDim>
__device__ __forceinline__ void multiply(const float* matrix, uint32_t stride, const float* x, uint32_t d,
                                         uint32_t lane, float* y) {
  constexpr uint32_t kMost = (kHeadDim != 0 ? kHeadDim : kMaxHeadDim) / kWarp;
  constexpr uint32_t kAhead = kHeadDim != 0 ? 2 : 1;  // as registers allow
  float sums[kMost];
#pragma unroll
  for (uint32_t k = 0; k < kMost; ++k) {
    const uint32_t i = lane + k * kWarp;
    if (i >= d) break;
    float sum = 0, other = 0;
    const float* row = matrix + uint64_t(i) * stride;
#pragma unroll kAhead
    for (uint32_t j = 0; j < d; j += 8) {
      const float4 m = load4(row + j), n = load4(row + j + 4), a = load4(x + j), b = load4(x + j + 4);
      sum = fmaf(m.x, a.x, fmaf(m.y, a.y, fmaf(m.z, a.z, fmaf(m.w, a.w, sum))));
      other = fmaf(n.x, b.x, fmaf(n.y, b.y, fmaf(n.z, b.z, fmaf(n.w, b.w, other))));
    }
    sums[k] = sum + other;
  }
#pragma unroll
  for (uint32_t k = 0; k < kMost; ++k)
    if (lane + k * kWarp < d) y[lane + k * kWarp] = sums[k];
}

inline Arguments arguments_of(const KvQuery& a, uint32_t warps, const Gpu& gpu) {
  const uint64_t matrix = uint64_t(a.head_dim) * a.head_dim;
  Arguments arguments{.q = pointer<const void>(a.q),
                      .position = pointer<void>(a.position),
                      .transform = pointer<const float>(a.transform),
                      .projection = pointer<const float>(a.projection),
                      .position_mean = pointer<const float>(a.position_mean),
                      .out = pointer<float>(a.out),
                      .projected = pointer<float>(a.projected),
                      .rows = a.rows,
                      .heads = a.heads,
                      .head_dim = a.head_dim,
                      .warps = warps,
                      .rows_of_block = warps,
                      .transform_of_head = a.transform.count > matrix,
                      .is_staged = a.transform && a.head_dim <= kStagedHeadDim};
  if (arguments.shared_bytes() > gpu.max_shared_bytes) arguments.is_staged = false;
  // Once the multiprocessors have some blocks each, more rows share a transform.
  while (a.heads * arguments.blocks() > 8 * gpu.multiprocessors && arguments.blocks() > 1) arguments.rows_of_block *= 2;
  return arguments;
}

// What block (head, block) of a grid does, of which there are Arguments::blocks() for each head; `memory` has
// Arguments::shared_bytes(). kHeadDim as above.
template <class T, class Position, uint32_t kHeadDim = 0>
__device__ __forceinline__ void run(const Arguments& a, float* memory, uint32_t head, uint32_t block) {
  const uint32_t d = kHeadDim != 0 ? kHeadDim : a.head_dim, thread = threadIdx.x, warp = thread / kWarp,
                 lane = thread % kWarp;
  const T* q = static_cast<const T*>(a.q);
  Position* position = static_cast<Position*>(a.position);
  float* const vectors = memory + 2 * warp * d;
  float* const staged = memory + 2 * a.warps * d;
  const float* transform = a.transform + (a.transform_of_head ? uint64_t(head) * d * d : 0);
  uint32_t stride = d;
  if (a.is_staged) {
    stride = staged_stride(d);
    fetch_transform(transform, d, staged, stride, thread, a.warps * kWarp);
    transform = staged;
  }
  wait_for_transform();
  wait_for_inputs();
  __syncthreads();
  const uint32_t end = min(a.rows, (block + 1) * a.rows_of_block);
  for (uint32_t row = block * a.rows_of_block + warp; row < end; row += a.warps) {
    float *x = vectors, *y = vectors + d;
    const uint64_t at = (uint64_t(row) * a.heads + head) * d;
    __syncwarp();  // the row before has been read
    for (uint32_t i = 2 * lane; i < d; i += 2 * kWarp) store2(x + i, load2(q + at + i));
    __syncwarp();
    if (a.position_mean) {
      const float* m = a.position_mean + uint64_t(head) * d;
      for (uint32_t i = 2 * lane; i < d; i += 2 * kWarp)
        store2(position + at + i, position_of(load2(x + i), load2(m + i)));
    }
    if (a.transform) {
      multiply<kHeadDim>(transform, stride, x, d, lane, y);
      __syncwarp();
      float* z = x;
      x = y, y = z;
    }
    for (uint32_t i = 2 * lane; i < d; i += 2 * kWarp) store2(a.out + at + i, load2(x + i));
    if (!a.projection) continue;
    __syncwarp();  // y's former values have been read
    multiply<kHeadDim>(a.projection, d, x, d, lane, y);
    __syncwarp();
    for (uint32_t i = 2 * lane; i < d; i += 2 * kWarp) store2(a.projected + at + i, load2(y + i));
  }
}

}  // namespace turboesm::cuda::kv_query
