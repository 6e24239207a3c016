// Products of few inputs and many outputs, as the bias of positions of an attention over a cache: y = x weight^T + bias
// for x of 16 bits, [rows, inputs]. What they take is the time of writing y, so that a block computes as it writes.
//
// A warp keeps kRows rows of x in registers and goes over the block's outputs, kOutputs at a time, whose weights come
// straight from memory into fragments while those before are multiplied. There is no shared memory and no barrier. With
// lane = 4 g + t, the operands of mma.m16n8k16 are
//   A [16 x 16]  0: row g,     inputs 2 t, 2 t + 1        B [16 x 8]  0: inputs 2 t, 2 t + 1,     column g
//                1: row g + 8, inputs 2 t, 2 t + 1                    1: inputs 2 t + 8, 2 t + 9, column g
//                2: row g,     inputs 2 t + 8, 2 t + 9    C [16 x 8]  0, 1: row g,     columns 2 t, 2 t + 1
//                3: row g + 8, inputs 2 t + 8, 2 t + 9                2, 3: row g + 8, columns 2 t, 2 t + 1
// The order of the summands of a product is free, alike for A and B: lane t has inputs 8 t .. 8 t + 7 of every 32 in
// one load, of which each of two steps takes four. So is that of the columns: column c of tile n, n < 2, is output 4 (c
// / 2) + 2 n + c % 2, so that a lane has four neighbouring ones and eight rows of whole sectors are written at once.
//
// With kPosition x is made here, KvQuery's position of the queries that p.x then is (kv_step.cu).
#pragma once

#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/kv_transform.cuh"
#include "runtime/cuda/product.h"

namespace turboesm::cuda::shallow {

inline constexpr uint32_t kWarps = 4;         // of a block by itself
inline constexpr uint32_t kOutputs = 16;      // of a step of a warp
inline constexpr uint32_t kPiece = 32;        // inputs that four lanes load at once, 16 bytes each
inline constexpr uint32_t kMostInputs = 128;  // in registers
// Of a block: many share the reading of x, few make more blocks.
inline constexpr uint32_t kBlockOutputs[kShallowVariants] = {64, 128, 256, 512};

// sum += a b
template <class T>
__device__ __forceinline__ void multiply(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                         uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
#endif
}

// This lane's inputs of one row, zeros where there are none: [piece] 8 elements of 16 bits. kConstant: of a matrix that
// no kernel writes.
template <bool kConstant, uint32_t kPieces>
__device__ __forceinline__ void load_row(const void* matrix, uint32_t row, uint32_t rows, uint32_t inputs, uint32_t t,
                                         uint4 (&to)[kPieces]) {
  const uint4* source = static_cast<const uint4*>(matrix) + uint64_t(row) * (inputs / 8) + t;
#pragma unroll
  for (uint32_t i = 0; i < kPieces; ++i)
    to[i] = !(row < rows && kPiece * i + 8 * t < inputs) ? uint4{0, 0, 0, 0}
            : kConstant                                  ? __ldg(source + 4 * i)
                                                         : source[4 * i];
}

// KvQuery's position of eight neighbours of a query.
template <class T>
__device__ __forceinline__ uint4 positions_of(const uint4& query, const float* mean) {
  const T* q = reinterpret_cast<const T*>(&query);
  const auto pair = [&](uint32_t i) {
    const float2 position = position_of(float2{to_float(q[2 * i]), to_float(q[2 * i + 1])}, load2(mean + 2 * i));
    return pack_pair<T>(position.x, position.y);
  };
  return {pair(0), pair(1), pair(2), pair(3)};
}

// Row r of x belongs to head r % heads, of whose keys `means` [heads, inputs] are the means.
struct PositionMeans {
  const float* means = nullptr;
  uint32_t heads = 1;
};

// 16 rows each, of a warp, as registers allow.
__host__ __device__ constexpr uint32_t tiles_of(uint32_t pieces, bool position) {
  return pieces <= 2 && !position ? 2 : 1;
}

// What block (block_x, block_y) of a grid does, of which there are as many along x as it takes for all outputs, and
// along y for all rows.
template <class T, class Y, uint32_t kPieces, bool kPosition>
__device__ __forceinline__ void run(const Product& p, const PositionMeans& position, uint32_t block_outputs,
                                    uint32_t block_x, uint32_t block_y) {
  constexpr uint32_t kTiles = tiles_of(kPieces, kPosition), kRows = 16 * kTiles;
  const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const uint32_t first_row = (block_y * (blockDim.x / kWarp) + threadIdx.x / kWarp) * kRows;
  const uint32_t begin = block_x * block_outputs, end = min(begin + block_outputs, p.outputs);
  uint4 next[2][kPieces];  // weights of tile n's column g
  const auto load_weights = [&](uint32_t output) {
#pragma unroll
    for (uint32_t n = 0; n < 2; ++n)
      load_row<true>(p.weight, output + 4 * (g / 2) + 2 * n + g % 2, p.outputs, p.inputs, t, next[n]);
  };
  load_weights(begin);
  wait_for_inputs();
  if (first_row >= p.rows) return;
  uint4 x[kTiles][2][kPieces];  // rows g and g + 8 of each tile
#pragma unroll
  for (uint32_t m = 0; m < kTiles; ++m) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t row = first_row + 16 * m + 8 * half + g;
      load_row<false>(p.x, row, p.rows, p.inputs, t, x[m][half]);
      if constexpr (kPosition) {
        const float* means = position.means + uint64_t(row % position.heads) * p.inputs + 8 * t;
#pragma unroll
        for (uint32_t i = 0; i < kPieces; ++i)
          if (kPiece * i + 8 * t < p.inputs) x[m][half][i] = positions_of<T>(x[m][half][i], means + kPiece * i);
      }
    }
  }

  for (uint32_t output = begin; output < end; output += kOutputs) {
    uint4 weights[2][kPieces];
#pragma unroll
    for (uint32_t n = 0; n < 2; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < kPieces; ++i) weights[n][i] = next[n][i];
    }
    if (output + kOutputs < end) load_weights(output + kOutputs);

    float sums[kTiles][2][4] = {};
#pragma unroll
    for (uint32_t i = 0; i < kPieces; ++i) {
#pragma unroll
      for (uint32_t m = 0; m < kTiles; ++m) {
        const uint4 &row = x[m][0][i], &other = x[m][1][i];
#pragma unroll
        for (uint32_t n = 0; n < 2; ++n) {
          multiply<T>(sums[m][n], row.x, other.x, row.y, other.y, weights[n][i].x, weights[n][i].y);
          multiply<T>(sums[m][n], row.z, other.z, row.w, other.w, weights[n][i].z, weights[n][i].w);
        }
      }
    }
    const uint32_t column = output + 4 * t;
    if (column >= p.outputs) continue;
    const float4 bias = p.bias != nullptr ? load4(p.bias + column) : float4{0, 0, 0, 0};
#pragma unroll
    for (uint32_t m = 0; m < kTiles; ++m) {
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = first_row + 16 * m + 8 * half + g;
        if (row >= p.rows) continue;
        const float(&low)[4] = sums[m][0], (&high)[4] = sums[m][1];
        store4(
            static_cast<Y*>(p.y) + uint64_t(row) * p.outputs + column,
            {low[2 * half] + bias.x, low[2 * half + 1] + bias.y, high[2 * half] + bias.z, high[2 * half + 1] + bias.w});
      }
    }
  }
}

}  // namespace turboesm::cuda::shallow
