// What attention over a cache needs of its queries (KvQuery in runtime/kv_operations.h):
//   out = transform q,  projected = projection out,  position = (q_a m_a + q_b m_b, q_b m_a - q_a m_b) by pairs (a, b)
//
// A block takes some rows of one head, a warp one row at a time, a lane outputs lane, lane + 32 ... The transform,
// which no kernel writes, is brought to shared memory while the kernel before still runs; the stride of its rows there
// lets lanes that are 4 apart read different banks.
#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/kv_position.cuh"
#include "runtime/operation_rules.h"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kWarps = 4;
constexpr uint32_t kStagedHeadDim = 128;  // transforms of larger heads stay where they are

struct QueryArguments {
  const float *transform, *projection, *position_mean;
  float *out, *projected;
  uint32_t rows, heads, head_dim, rows_of_block;
  bool transform_of_head;
  Overlap overlap;
};

__host__ __device__ constexpr uint32_t staged_stride(uint32_t head_dim) { return head_dim + 4; }

// y = matrix x for a matrix [d, d] whose rows are `stride` apart; x and y are in shared memory.
__device__ void multiply(const float* matrix, uint32_t stride, const float* x, uint32_t d, float* y) {
  for (uint32_t i = threadIdx.x; i < d; i += kWarp) {
    float sum = 0, other = 0;
    const float* row = matrix + uint64_t(i) * stride;
    for (uint32_t j = 0; j < d; j += 8) {
      const float4 m = load4(row + j), n = load4(row + j + 4), a = load4(x + j), b = load4(x + j + 4);
      sum = fmaf(m.x, a.x, fmaf(m.y, a.y, fmaf(m.z, a.z, fmaf(m.w, a.w, sum))));
      other = fmaf(n.x, b.x, fmaf(n.y, b.y, fmaf(n.z, b.z, fmaf(n.w, b.w, other))));
    }
    y[i] = sum + other;
  }
}

template <class T, class Position>
__global__ void __launch_bounds__(kWarps* kWarp) kv_query(const T* q, Position* position, const QueryArguments a) {
  __shared__ __align__(16) float vectors[kWarps][2][kMaxHeadDim];
  extern __shared__ __align__(16) float staged[];
  let_next_start(a.overlap);
  const uint32_t d = a.head_dim, head = blockIdx.x, thread = threadIdx.y * kWarp + threadIdx.x;
  const float* transform = a.transform + (a.transform_of_head ? uint64_t(head) * d * d : 0);
  uint32_t stride = d;
  if (a.transform && d <= kStagedHeadDim) {
    stride = staged_stride(d);
    for (uint32_t i = 4 * thread; i < d * d; i += 4 * kWarps * kWarp)
      store4(staged + i / d * stride + i % d, load4(transform + i));
    transform = staged;
  }
  wait_for_inputs(a.overlap);
  __syncthreads();
  const uint32_t end = min(a.rows, (blockIdx.y + 1) * a.rows_of_block);
  for (uint32_t row = blockIdx.y * a.rows_of_block + threadIdx.y; row < end; row += kWarps) {
    float *x = vectors[threadIdx.y][0], *y = vectors[threadIdx.y][1];
    const uint64_t at = (uint64_t(row) * a.heads + head) * d;
    __syncwarp();  // the row before has been read
    for (uint32_t i = 2 * threadIdx.x; i < d; i += 2 * kWarp) store2(x + i, load2(q + at + i));
    __syncwarp();
    if (a.position_mean) {
      const float* m = a.position_mean + uint64_t(head) * d;
      for (uint32_t i = 2 * threadIdx.x; i < d; i += 2 * kWarp)
        store2(position + at + i, position_of(load2(x + i), load2(m + i)));
    }
    if (a.transform) {
      multiply(transform, stride, x, d, y);
      __syncwarp();
      float* z = x;
      x = y, y = z;
    }
    for (uint32_t i = 2 * threadIdx.x; i < d; i += 2 * kWarp) store2(a.out + at + i, load2(x + i));
    if (!a.projection) continue;
    __syncwarp();  // y's former values have been read
    multiply(a.projection, d, x, d, y);
    __syncwarp();
    for (uint32_t i = 2 * threadIdx.x; i < d; i += 2 * kWarp) store2(a.projected + at + i, load2(y + i));
  }
  wait_for_neighbours(a.overlap);
}

}  // namespace

void launch(const KvQuery& a, const Launch& l) {
  const uint32_t d = a.head_dim;
  QueryArguments arguments{.transform = pointer<const float>(a.transform),
                           .projection = pointer<const float>(a.projection),
                           .position_mean = pointer<const float>(a.position_mean),
                           .out = pointer<float>(a.out),
                           .projected = pointer<float>(a.projected),
                           .rows = a.rows,
                           .heads = a.heads,
                           .head_dim = d,
                           .rows_of_block = kWarps,
                           .transform_of_head = a.transform.count > uint64_t(d) * d,
                           .overlap = l.overlap};
  // Once the multiprocessors have some blocks each, more rows share a transform.
  while (a.heads * blocks_of(a.rows, arguments.rows_of_block) > 8 * l.gpu.multiprocessors) arguments.rows_of_block *= 2;
  const uint32_t shared = a.transform && d <= kStagedHeadDim ? d * staged_stride(d) * 4 : 0;
  const dim3 grid(a.heads, blocks_of(a.rows, arguments.rows_of_block));
  const DType stored = a.position ? a.position.dtype : DType::f32;
  with_type(a.q.dtype, [&](auto type) {
    with_type(stored, [&](auto position) {
      using T = decltype(type);
      using Position = decltype(position);
      start(kv_query<T, Position>, grid, dim3(kWarp, kWarps), shared, l, pointer<const T>(a.q),
            pointer<Position>(a.position), arguments);
    });
  });
}

}  // namespace turboesm::cuda
