// What attention over a cache needs of its queries (KvQuery in runtime/kv_operations.h):
//   out = transform q,  projected = projection out,  position = (q_a m_a + q_b m_b, q_b m_a - q_a m_b) by pairs (a, b)
//
// A block takes some rows of one head, a warp one or a few at a time, which share what is read of a matrix, a lane
// outputs lane, lane + 32 ... The transform, which no kernel writes, is brought to shared memory while the kernel
// before still runs; the stride of its rows there lets neighbouring lanes read different banks.
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
  uint32_t rows, heads, head_dim;
  uint32_t warps, rows_of_warp, rows_of_block;  // of a block; at a time; in all
  bool transform_of_head, is_staged;            // the transform, in shared memory

  uint32_t blocks() const { return blocks_of(rows, rows_of_block); }
  uint32_t shared_bytes() const {
    return 4 * head_dim * (2 * warps * rows_of_warp + (is_staged ? staged_stride(head_dim) : 0));
  }
};

// y = matrix x for a matrix [d, d] whose rows are `stride` apart and x, y [kRows, d] in shared memory. kHeadDim is d,
// or 0 where only the caller knows it.
template <uint32_t kHeadDim, uint32_t kRows>
__device__ __forceinline__ void multiply(const float* matrix, uint32_t stride, const float* x, uint32_t d,
                                         uint32_t lane, float* y) {
  constexpr uint32_t kMost = (kHeadDim != 0 ? kHeadDim : kMaxHeadDim) / kWarp;
  constexpr uint32_t kAhead = kHeadDim == 32 ? 2 : 1;  // as registers allow
  const auto is_inside = [&](uint32_t k) { return kHeadDim != 0 || lane + k * kWarp < d; };
  float sums[kMost][kRows] = {}, others[kMost][kRows] = {};
#pragma unroll kAhead
  for (uint32_t j = 0; j < d; j += 8) {
    float4 a[kRows], b[kRows];
#pragma unroll
    for (uint32_t r = 0; r < kRows; ++r) a[r] = load4(x + r * d + j), b[r] = load4(x + r * d + j + 4);
#pragma unroll
    for (uint32_t k = 0; k < kMost; ++k) {
      if (!is_inside(k)) break;
      const float* row = matrix + uint64_t(lane + k * kWarp) * stride + j;
      const float4 m = load4(row), n = load4(row + 4);
#pragma unroll
      for (uint32_t r = 0; r < kRows; ++r) {
        float &sum = sums[k][r], &other = others[k][r];
        sum = fmaf(m.x, a[r].x, fmaf(m.y, a[r].y, fmaf(m.z, a[r].z, fmaf(m.w, a[r].w, sum))));
        other = fmaf(n.x, b[r].x, fmaf(n.y, b[r].y, fmaf(n.z, b[r].z, fmaf(n.w, b[r].w, other))));
      }
    }
  }
#pragma unroll
  for (uint32_t k = 0; k < kMost; ++k) {
#pragma unroll
    for (uint32_t r = 0; r < kRows; ++r)
      if (is_inside(k)) y[r * d + lane + k * kWarp] = sums[k][r] + others[k][r];
  }
}

// Whether kernels that know head_dim when they are compiled take the query. Others take any.
inline bool has_kernel(const KvQuery& query) {
  const bool has_type = !query.position || query.position.dtype == query.q.dtype;
  return has_type && (query.head_dim == 32 || query.head_dim == 64 || query.head_dim == 128);
}

inline Arguments arguments_of(const KvQuery& a, uint32_t warps, uint32_t rows_of_warp, const Gpu& gpu) {
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
                      .rows_of_warp = rows_of_warp,
                      .rows_of_block = warps * rows_of_warp,
                      .transform_of_head = a.transform.count > matrix,
                      .is_staged = a.transform && a.head_dim <= kStagedHeadDim};
  if (arguments.shared_bytes() > gpu.max_shared_bytes) arguments.is_staged = false;
  // Once the multiprocessors have some blocks each, more rows share a transform.
  while (a.heads * arguments.blocks() > 8 * gpu.multiprocessors && arguments.blocks() > 1) arguments.rows_of_block *= 2;
  return arguments;
}

// What block (head, block) of a grid does, of which there are Arguments::blocks() for each head; `memory` has
// Arguments::shared_bytes(). kHeadDim as above, kRows is Arguments::rows_of_warp.
template <class T, class Position, uint32_t kHeadDim, uint32_t kRows>
__device__ __forceinline__ void run(const Arguments& a, float* memory, uint32_t head, uint32_t block) {
  const uint32_t d = kHeadDim != 0 ? kHeadDim : a.head_dim, thread = threadIdx.x, warp = thread / kWarp,
                 lane = thread % kWarp;
  const T* q = static_cast<const T*>(a.q);
  Position* position = static_cast<Position*>(a.position);
  float* const vectors = memory + 2 * warp * kRows * d;
  float* const staged = memory + 2 * a.warps * kRows * d;
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
  for (uint32_t row = block * a.rows_of_block + warp * kRows; row < end; row += a.warps * kRows) {
    float *x = vectors, *y = vectors + kRows * d;
    // Of the last row again where there are fewer.
    const auto place_of = [&](uint32_t r) { return (uint64_t(min(row + r, end - 1)) * a.heads + head) * d; };
    const auto for_pairs = [&](auto&& act) {
#pragma unroll
      for (uint32_t r = 0; r < kRows; ++r) {
        const uint64_t at = place_of(r);
#pragma unroll
        for (uint32_t i = 2 * lane; i < d; i += 2 * kWarp) act(at + i, r * d + i, i);
      }
    };
    __syncwarp();  // the rows before have been read
    for_pairs([&](uint64_t at, uint32_t to, uint32_t) { store2(x + to, load2(q + at)); });
    __syncwarp();
    if (a.position_mean) {
      const float* m = a.position_mean + uint64_t(head) * d;
      for_pairs([&](uint64_t at, uint32_t from, uint32_t i) {
        store2(position + at, position_of(load2(x + from), load2(m + i)));
      });
    }
    if (a.transform) {
      multiply<kHeadDim, kRows>(transform, stride, x, d, lane, y);
      __syncwarp();
      float* z = x;
      x = y, y = z;
    }
    for_pairs([&](uint64_t at, uint32_t from, uint32_t) { store2(a.out + at, load2(x + from)); });
    if (!a.projection) continue;
    __syncwarp();  // y's former values have been read
    multiply<kHeadDim, kRows>(a.projection, d, x, d, lane, y);
    __syncwarp();
    for_pairs([&](uint64_t at, uint32_t from, uint32_t) { store2(a.projected + at, load2(y + from)); });
  }
}

}  // namespace turboesm::cuda::kv_query
