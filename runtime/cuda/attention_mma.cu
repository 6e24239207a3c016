// Bidirectional attention inside each packed sequence, for each head: out = softmax(q k^T) v, on matrix cores by
// mma.sync, with an online softmax in fp32 (Milakov & Gimelshein 2018; Dao 2023, FlashAttention-2).
//
//   q, k, v [tokens, heads, head_dim] f16 or bf16, cu_seqlens [sequences + 1] i32 -> out [tokens, heads, head_dim] any
//   head_dim is a multiple of 8, at most 256, and counts as the next kDim, with zeros; q is already scaled
//
// Few and short sequences have a kernel of their own, without tiles (Short sequences, below).
//
// A block takes 16 x kRowWarps queries of one head and sequence (grid: query tiles, heads, sequences) and walks over
// the sequence's keys in tiles of kKeys, whose keys and values wait in shared memory, one tile ahead. A warp has 16
// queries, in registers as fragments, and of every tile kKeys / kKeyWarps keys. Warps of the same queries (kKeyWarps of
// them, when there are too few queries to fill the device) add up what they have at the end. The weights of a tile stay
// in registers: the accumulator of S = Q K^T, rounded to 16 bits, is the left operand of P V. The sum of a row's
// weights is that of the values before they were rounded: the roundings are unbiased and mean out in both.
//
// Fragments of mma.m16n8k16, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   A (16 x 16)  a0 (g, 2t..)  a1 (g + 8, 2t..)  a2 (g, 2t + 8..)  a3 (g + 8, 2t + 8..)     pairs along the row
//   B (16 x 8)   b0 (2t.., g)  b1 (2t + 8.., g)                                             pairs along the column
//   C (16 x 8)   c0, c1 (g, 2t..)  c2, c3 (g + 8, 2t..)
// Rows of a tile in shared memory are 16 bytes longer than kDim, so that the eight rows that ldmatrix reads at once
// lie in different banks.
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "runtime/cuda/attention.cuh"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kWarpRows = 16;  // queries of a warp
constexpr uint32_t kStages = 2;     // tiles in shared memory
constexpr uint32_t kChunk = 8;      // elements of 16 bytes, which are copied as one

// ---- Instructions ---------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, or zeros (then `source` is not read). Done when wait_for_copies() says so.
__device__ __forceinline__ void copy_16(void* destination, const void* source, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(destination)), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(destination) = valid ? *static_cast<const uint4*>(source) : uint4{};
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Four 8 x 8 matrices; lanes 8 i .. 8 i + 7 hold the addresses of the rows of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// Two of them; the addresses are of the lanes below 16.
__device__ __forceinline__ void load_two_matrices_transposed(uint32_t (&to)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b
template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else  // two halves of the 16 columns; bf16 is not launched here
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
  }
#endif
}

// 1 / x within 1 unit in the last place, of an x that is no subnormal number.
__device__ __forceinline__ float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The largest, or sum, over the four lanes that share a fragment's row.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// ---- Sequences of any length ----------------------------------------------------------------------------------------

template <uint32_t dim, uint32_t row_warps, uint32_t key_warps, uint32_t keys>
struct Tiling {
  static constexpr uint32_t kDim = dim, kRowWarps = row_warps, kKeyWarps = key_warps, kKeys = keys;
  static constexpr uint32_t kRows = kWarpRows * kRowWarps;
  static constexpr uint32_t kWarps = kRowWarps * kKeyWarps, kThreads = kWarps * kWarp;
  // Two large blocks of small heads share a multiprocessor: at most 128 registers a thread.
  static constexpr uint32_t kMinBlocks = kRowWarps == 8 && kDim <= 64 ? 2 : 1;
  static constexpr uint32_t kPitch = kDim + kChunk;         // of a row in shared memory, in elements
  static constexpr uint32_t kTile = kKeys * kPitch;         // elements of a tile of keys, and of one of values
  static constexpr uint32_t kWarpKeys = kKeys / kKeyWarps;  // of a tile
  static constexpr uint32_t kSharedBytes = kStages * 2 * kTile * 2;
  // Warps of the same queries exchange their accumulators and each row's largest score and sum of weights there too.
  static constexpr uint32_t kExchangeBytes = kKeyWarps == 1 ? 0 : kWarps * kWarpRows * (kDim * 4 + 8);
  static_assert(kWarpKeys % 16 == 0 && kDim % 16 == 0 && kExchangeBytes <= kSharedBytes);
  static_assert(kKeys * kDim / kChunk % kThreads == 0);
};

extern __shared__ uint4 shared_memory[];

// What a warp has of its 16 queries. Index 0 stands for row g of the fragments, 1 for row g + 8.
template <uint32_t kDim>
struct Rows {
  uint32_t q[kDim / 16][4];
  float sum[kDim / 8][4] = {};  // of weights x values
  float largest[2];             // score x log2 e
  float weights[2] = {};        // their sum, over this lane's keys
};

template <class T, class Tile, uint32_t kDim>
__device__ __forceinline__ void load_queries(Rows<kDim>& rows, const AttentionOperands& o, size_t base, uint32_t first,
                                             uint32_t length) {
  const uint32_t lane = threadIdx.x % kWarp, width = o.heads * o.head_dim;
#pragma unroll
  for (uint32_t step = 0; step < kDim / 16; ++step) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t row = first + lane / 4 + 8 * (i % 2), dim = 16 * step + 8 * (i / 2) + 2 * (lane % 4);
      rows.q[step][i] = 0;
      if (row < length && dim < o.head_dim)
        rows.q[step][i] =
            *reinterpret_cast<const uint32_t*>(static_cast<const T*>(o.q) + base + size_t(row) * width + dim);
    }
  }
}

// Starts the copies of keys and values first .. first + kKeys of the sequence; zeros at `length` and beyond.
template <class T, class Tile>
__device__ __forceinline__ void load_tile(T* to, const AttentionOperands& o, size_t base, uint32_t first,
                                          uint32_t length) {
  constexpr uint32_t kChunks = Tile::kDim / kChunk;  // of a row
  const size_t width = size_t(o.heads) * o.head_dim;
#pragma unroll
  for (uint32_t i = 0; i < Tile::kKeys * kChunks / Tile::kThreads; ++i) {
    const uint32_t index = i * Tile::kThreads + threadIdx.x, row = index / kChunks, dim = index % kChunks * kChunk;
    const bool valid = first + row < length && dim < o.head_dim;
    const size_t from = valid ? base + (first + row) * width + dim : 0;
    copy_16(to + row * Tile::kPitch + dim, static_cast<const T*>(o.k) + from, valid);
    copy_16(to + Tile::kTile + row * Tile::kPitch + dim, static_cast<const T*>(o.v) + from, valid);
  }
}

// The warp's part of a tile: `k` and `v` are its first row's, `keys` says how many of its keys there are (at least
// one).
template <class T, class Tile>
__device__ __forceinline__ void attend(Rows<Tile::kDim>& rows, const T* k, const T* v, uint32_t keys) {
  constexpr uint32_t kTiles = Tile::kWarpKeys / 8;  // of 8 keys
  const uint32_t lane = threadIdx.x % kWarp;
  float scores[kTiles][4] = {};
  const T* k_row = k + (8 * (lane / 16) + lane % 8) * Tile::kPitch + 8 * (lane / 8 % 2);
#pragma unroll
  for (uint32_t step = 0; step < Tile::kDim / 16; ++step) {
#pragma unroll
    for (uint32_t tile = 0; tile < kTiles; tile += 2) {
      uint32_t b[4];
      load_matrices(b, k_row + 8 * tile * Tile::kPitch + 16 * step);
      multiply<T>(scores[tile], rows.q[step], b[0], b[1]);
      multiply<T>(scores[tile + 1], rows.q[step], b[2], b[3]);
    }
  }

  if (keys < Tile::kWarpKeys) {
#pragma unroll
    for (uint32_t tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        if (8 * tile + 2 * (lane % 4) + i % 2 >= keys) scores[tile][i] = minus_infinity();
    }
  }

#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    float largest = scores[0][2 * half];
#pragma unroll
    for (uint32_t tile = 0; tile < kTiles; ++tile)
      largest = fmaxf(largest, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    largest = fmaxf(rows.largest[half], quad_max(largest) * kLog2E);
    const float correction = power_of_two(rows.largest[half] - largest);
    rows.largest[half] = largest;
    float weights = 0;
#pragma unroll
    for (uint32_t tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 2 * half; i < 2 * half + 2; ++i) {
        scores[tile][i] = power_of_two(fmaf(scores[tile][i], kLog2E, -largest));
        weights += scores[tile][i];
      }
    }
    rows.weights[half] = fmaf(rows.weights[half], correction, weights);
#pragma unroll
    for (uint32_t tile = 0; tile < Tile::kDim / 8; ++tile) {
      rows.sum[tile][2 * half] *= correction;
      rows.sum[tile][2 * half + 1] *= correction;
    }
  }

  const T* v_row = v + lane % 16 * Tile::kPitch + 8 * (lane / 16);
#pragma unroll
  for (uint32_t step = 0; step < Tile::kWarpKeys / 16; ++step) {
    const auto& low = scores[2 * step];
    const auto& high = scores[2 * step + 1];
    const uint32_t p[4] = {pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]), pack_pair<T>(high[0], high[1]),
                           pack_pair<T>(high[2], high[3])};
#pragma unroll
    for (uint32_t tile = 0; tile < Tile::kDim / 8; tile += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, v_row + 16 * step * Tile::kPitch + 8 * tile);
      multiply<T>(rows.sum[tile], p, b[0], b[1]);
      multiply<T>(rows.sum[tile + 1], p, b[2], b[3]);
    }
  }
}

// Two columns of a fragment's tile, for both of its rows.
__device__ __forceinline__ void store(const AttentionOperands& o, size_t base, uint32_t first, uint32_t length,
                                      uint32_t tile, const float (&sum)[4], const float (&scale)[2]) {
  const uint32_t lane = threadIdx.x % kWarp, dim = 8 * tile + 2 * (lane % 4);
  if (dim >= o.head_dim) return;
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t row = first + lane / 4 + 8 * half;
    if (row < length)
      store_pair(o.out, o.out_dtype, base + size_t(row) * o.heads * o.head_dim + dim,
                 {sum[2 * half] * scale[half], sum[2 * half + 1] * scale[half]});
  }
}

// Adds up what the warps of the same queries have, in the tiles' memory, and stores it: each warp every kKeyWarps'th
// tile of 8 columns.
template <class Tile>
__device__ __forceinline__ void combine(const Rows<Tile::kDim>& rows, const AttentionOperands& o, size_t base,
                                        uint32_t first, uint32_t length) {
  constexpr uint32_t kTiles = Tile::kDim / 8;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  float4* sums = reinterpret_cast<float4*>(shared_memory);  // [warp][tile][lane]
  float4* of_rows = sums + Tile::kWarps * kTiles * kWarp;   // [warp][8]: largest and weights of rows g and g + 8
  __syncthreads();                                          // the last tile has been used
#pragma unroll
  for (uint32_t tile = 0; tile < kTiles; ++tile) {
    const auto& sum = rows.sum[tile];
    sums[(warp * kTiles + tile) * kWarp + lane] = {sum[0], sum[1], sum[2], sum[3]};
  }
  const float weights[2] = {quad_sum(rows.weights[0]), quad_sum(rows.weights[1])};
  if (lane % 4 == 0) of_rows[warp * 8 + lane / 4] = {rows.largest[0], rows.largest[1], weights[0], weights[1]};
  __syncthreads();

  const uint32_t first_warp = warp / Tile::kKeyWarps * Tile::kKeyWarps;
  float4 parts[Tile::kKeyWarps];
  float largest[2] = {minus_infinity(), minus_infinity()}, all_weights[2] = {};
#pragma unroll
  for (uint32_t i = 0; i < Tile::kKeyWarps; ++i) {
    parts[i] = of_rows[(first_warp + i) * 8 + lane / 4];
    largest[0] = fmaxf(largest[0], parts[i].x);
    largest[1] = fmaxf(largest[1], parts[i].y);
  }
#pragma unroll
  for (uint32_t i = 0; i < Tile::kKeyWarps; ++i) {  // from here on .x and .y are the factors of a part
    parts[i].x = power_of_two(parts[i].x - largest[0]);
    parts[i].y = power_of_two(parts[i].y - largest[1]);
    all_weights[0] = fmaf(parts[i].z, parts[i].x, all_weights[0]);
    all_weights[1] = fmaf(parts[i].w, parts[i].y, all_weights[1]);
  }
  const float scale[2] = {1 / all_weights[0], 1 / all_weights[1]};
  for (uint32_t tile = warp % Tile::kKeyWarps; tile < kTiles; tile += Tile::kKeyWarps) {
    float sum[4] = {};
#pragma unroll
    for (uint32_t i = 0; i < Tile::kKeyWarps; ++i) {
      const float4 part = sums[((first_warp + i) * kTiles + tile) * kWarp + lane];
      sum[0] = fmaf(part.x, parts[i].x, sum[0]);
      sum[1] = fmaf(part.y, parts[i].x, sum[1]);
      sum[2] = fmaf(part.z, parts[i].y, sum[2]);
      sum[3] = fmaf(part.w, parts[i].y, sum[3]);
    }
    store(o, base, first, length, tile, sum, scale);
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks) mma_attention(AttentionOperands o) {
  T* tiles = reinterpret_cast<T*>(shared_memory);  // [kStages][keys, values][kKeys][kPitch]
  let_next_start();
  wait_for_inputs();
  const uint32_t begin = uint32_t(o.cu_seqlens[blockIdx.z]);
  const uint32_t length = uint32_t(o.cu_seqlens[blockIdx.z + 1]) - begin;
  if (blockIdx.x * Tile::kRows >= length) return;                           // the whole block
  const size_t base = (size_t(begin) * o.heads + blockIdx.y) * o.head_dim;  // of the sequence's first row
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t first = blockIdx.x * Tile::kRows + warp / Tile::kKeyWarps * kWarpRows;  // query of the warp
  const uint32_t first_key = warp % Tile::kKeyWarps * Tile::kWarpKeys;                   // of the warp in a tile

  load_tile<T, Tile>(tiles, o, base, 0, length);
  Rows<Tile::kDim> rows;
  rows.largest[0] = rows.largest[1] = minus_infinity();
  load_queries<T, Tile>(rows, o, base, first, length);

  for (uint32_t key = 0, stage = 0; key < length; key += Tile::kKeys, stage ^= 1) {
    wait_for_copies();
    __syncthreads();  // this tile is there for all warps, and the other stage has been used by all
    if (key + Tile::kKeys < length)
      load_tile<T, Tile>(tiles + (stage ^ 1) * 2 * Tile::kTile, o, base, key + Tile::kKeys, length);
    if (first >= length || key + first_key >= length) continue;  // the whole warp
    const T* k = tiles + stage * 2 * Tile::kTile + first_key * Tile::kPitch;
    attend<T, Tile>(rows, k, k + Tile::kTile, length - key - first_key);
  }

  if constexpr (Tile::kKeyWarps > 1) {
    combine<Tile>(rows, o, base, first, length);
  } else {
    const float scale[2] = {1 / quad_sum(rows.weights[0]), 1 / quad_sum(rows.weights[1])};
#pragma unroll
    for (uint32_t tile = 0; tile < Tile::kDim / 8; ++tile) store(o, base, first, length, tile, rows.sum[tile], scale);
  }
}

// ---- Short sequences ------------------------------------------------------------------------------------------------
// Where there are few and short sequences what counts is how long one block takes, so everything is loaded at once, and
// the block's warps meet once. A block takes 16 queries of one head and sequence, or 32 (blockDim.y 16's). Every 16
// have four warps. First each has the scores of every fourth step of 16 keys: keys and queries go from global memory
// straight into fragments, since the order of the summands of a dot product is free: lane t of a quad has the dims
// kPiece (4 p + t) .. + kPiece of piece p, of A and B alike, and every step of mma takes the next two pairs of them.
// Weights go to shared memory, as fragments A, and with them each row's largest score among the warp's keys, which they
// are relative to, and each lane's sum of them. Then each warp has a quarter of the columns of the result, for all
// keys: those of each warp of the first half in a sum of its own, which the rows' factors then put together.

constexpr uint32_t kStepKeys = 16;   // of a step of mma over keys
constexpr uint32_t kShortWarps = 4;  // of 16 queries
constexpr uint32_t kShortThreads = kShortWarps * kWarp;
constexpr uint32_t kShortMostTiles = 2;  // of 16 queries, in a block
constexpr uint32_t kShortMostSteps = 4;  // of a warp's keys

template <uint32_t dim, uint32_t steps>
struct ShortTiling {
  static constexpr uint32_t kDim = dim, kSteps = steps;  // steps of 16 keys that a warp has
  static constexpr uint32_t kAllSteps = kShortWarps * kSteps, kKeys = kStepKeys * kAllSteps;
  static constexpr uint32_t kPitch = kDim + kChunk;                       // of a row of values, in elements
  static constexpr uint32_t kPairs = kDim / 8;                            // of a row's elements, that a lane multiplies
  static constexpr uint32_t kColumns = kDim < 32 ? 1 : kDim / 32;         // of 8: of the result, that a warp has
  static constexpr uint32_t kSumPitch = kShortWarps * 4 + 4;              // of a row's sums of weights: no bank twice
  static constexpr uint32_t kValueBytes = kKeys * kPitch * 2;             // [kKeys][kPitch] T
  static constexpr uint32_t kWeightBytes = kAllSteps * kWarp * 16;        // [kAllSteps][lane] fragments A
  static constexpr uint32_t kSumBytes = kWarpRows * kSumPitch * 4;        // [16][kShortWarps][lane of a quad] f32
  static constexpr uint32_t kLargestBytes = kWarpRows * kShortWarps * 4;  // [16][kShortWarps] f32
  static constexpr uint32_t kTileBytes = kWeightBytes + kSumBytes + kLargestBytes;  // of 16 queries
};

// What the lane multiplies of a row of q or k; zeros at head_dim and beyond, and where there is no row.
template <class T, uint32_t kDim>
__device__ __forceinline__ void load_row(uint32_t (&to)[kDim / 8], const T* row, bool valid, uint32_t head_dim) {
  constexpr uint32_t kPiece = kDim < 32 ? 4 : 8;  // elements that are loaded at once
  using Piece = std::conditional_t<kPiece == 4, uint2, uint4>;
#pragma unroll
  for (uint32_t p = 0; p < kDim / (4 * kPiece); ++p) {
    const uint32_t dim = kPiece * (4 * p + threadIdx.x % 4);
    Piece piece{};
    if (valid && dim < head_dim) piece = *reinterpret_cast<const Piece*>(row + dim);
    to[p * (kPiece / 2)] = piece.x;
    to[p * (kPiece / 2) + 1] = piece.y;
    if constexpr (kPiece == 8) {
      to[p * 4 + 2] = piece.z;
      to[p * 4 + 3] = piece.w;
    }
  }
}

// Calls body(row, dim) for each chunk of the values that this thread copies. A loop, since the compiler would put off
// copies until after the scores, and they take no longer than what they are issued behind.
template <class Tile, class Body>
__device__ __forceinline__ void for_chunks(const Body& body) {
  constexpr uint32_t kChunks = Tile::kDim / kChunk, kRows = kShortThreads / kChunks;
  const uint32_t dim = threadIdx.x % kChunks * kChunk;
#pragma unroll 1
  for (uint32_t row = threadIdx.y * kRows + threadIdx.x / kChunks; row < Tile::kKeys; row += blockDim.y * kRows)
    body(row, dim);
}

// The first half: the weights of the warp's keys, of which the sequence has `keys` from its first on (maybe none), and
// what goes with them.
template <class T, class Tile>
__device__ __forceinline__ void weigh(const uint32_t (&query)[2][Tile::kPairs],
                                      const uint32_t (&key)[Tile::kSteps][2][Tile::kPairs], int32_t keys,
                                      uint4* weights, float* weight_sums, float* largest) {
  constexpr uint32_t kSteps = Tile::kSteps;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  float scores[kSteps][2][4] = {};
#pragma unroll
  for (uint32_t pair = 0; pair < Tile::kPairs; pair += 2) {
    const uint32_t a[4] = {query[0][pair], query[1][pair], query[0][pair + 1], query[1][pair + 1]};
#pragma unroll
    for (uint32_t step = 0; step < kSteps; ++step) {
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half)
        multiply<T>(scores[step][half], a, key[step][half][pair], key[step][half][pair + 1]);
    }
  }

  const int32_t left = keys - int32_t(2 * (lane % 4));  // from this lane's first on
#pragma unroll
  for (uint32_t step = 0; step < kSteps; ++step) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i)
      if (int32_t(kStepKeys * kShortWarps * step + 8 * (i / 4) + i % 2) >= left)
        scores[step][i / 4][i % 4] = minus_infinity();
  }
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {  // rows g and g + 8
    float most = minus_infinity(), sum = 0;
#pragma unroll
    for (uint32_t step = 0; step < kSteps; ++step) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) most = fmaxf(most, scores[step][i / 2][2 * half + i % 2]);
    }
    most = quad_max(most) * kLog2E;
    const uint32_t row = 8 * half + lane / 4;
    if (lane % 4 == 0) largest[row * kShortWarps + warp] = most;
    if (most == minus_infinity()) most = 0;  // a warp without keys: its weights are 0
#pragma unroll
    for (uint32_t step = 0; step < kSteps; ++step) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        float& score = scores[step][i / 2][2 * half + i % 2];
        score = power_of_two(fmaf(score, kLog2E, -most));
        sum += score;
      }
    }
    weight_sums[row * Tile::kSumPitch + warp * 4 + lane % 4] = sum;
  }
#pragma unroll
  for (uint32_t step = 0; step < kSteps; ++step) {
    const auto& low = scores[step][0];
    const auto& high = scores[step][1];
    weights[(step * kShortWarps + warp) * kWarp + lane] = {pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]),
                                                           pack_pair<T>(high[0], high[1]),
                                                           pack_pair<T>(high[2], high[3])};
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(kShortThreads* kShortMostTiles, 1)
    short_attention(AttentionOperands o, uint32_t tokens) {
  constexpr uint32_t kDim = Tile::kDim, kSteps = Tile::kSteps;
  T* values = reinterpret_cast<T*>(shared_memory);
  std::byte* of_tile = reinterpret_cast<std::byte*>(shared_memory) + Tile::kValueBytes + threadIdx.y * Tile::kTileBytes;
  uint4* weights = reinterpret_cast<uint4*>(of_tile);
  float* weight_sums = reinterpret_cast<float*>(of_tile + Tile::kWeightBytes);
  float* largest = reinterpret_cast<float*>(of_tile + Tile::kWeightBytes + Tile::kSumBytes);
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint32_t first = (blockIdx.x * blockDim.y + threadIdx.y) * kWarpRows;  // query of the warp
  const uint32_t width = o.heads * o.head_dim;
  let_next_start();
  wait_for_inputs();

  // A sequence that is alone begins at row 0, and its rows are among the tensors', so that loads need not wait for its
  // length.
  const bool alone = gridDim.z == 1;
  uint32_t begin = 0, rows = tokens;  // what is loaded
  if (!alone) {
    begin = uint32_t(o.cu_seqlens[blockIdx.z]);
    rows = uint32_t(o.cu_seqlens[blockIdx.z + 1]) - begin;
  }
  if (blockIdx.x * blockDim.y * kWarpRows >= rows) return;  // the whole block
  // Not used before the scores are there.
  const uint32_t end = alone ? uint32_t(o.cu_seqlens[1]) : begin + rows;
  const size_t base = size_t(begin) * width + blockIdx.y * o.head_dim;
  const T* q = static_cast<const T*>(o.q) + base;
  const T* k = static_cast<const T*>(o.k) + base;
  const T* v = static_cast<const T*>(o.v) + base;

  uint32_t query[2][Tile::kPairs], key[kSteps][2][Tile::kPairs];
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t row = first + 8 * half + lane / 4;
    load_row<T, kDim>(query[half], q + row * width, row < rows, o.head_dim);
  }
#pragma unroll
  for (uint32_t step = 0; step < kSteps; ++step) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t row = kStepKeys * (step * kShortWarps + warp) + 8 * half + lane / 4;
      load_row<T, kDim>(key[step][half], k + row * width, row < rows, o.head_dim);
    }
  }
  for_chunks<Tile>([&](uint32_t row, uint32_t dim) {
    const bool valid = row < rows && dim < o.head_dim;
    copy_16(values + row * Tile::kPitch + dim, v + (valid ? row * width + dim : 0), valid);
  });

  if (first < rows)
    weigh<T, Tile>(query, key, int32_t(end) - int32_t(begin + kStepKeys * warp), weights, weight_sums, largest);
  wait_for_copies();
  const uint32_t length = end - begin;
  if (length < rows)  // rows that are not the sequence's may hold anything, also NaN
    for_chunks<Tile>([&](uint32_t row, uint32_t dim) {
      if (row >= length) *reinterpret_cast<uint4*>(values + row * Tile::kPitch + dim) = {};
    });
  __syncthreads();

  const uint32_t column = warp * Tile::kColumns;            // the warp's first tile of 8 columns
  if (8 * column >= o.head_dim || first >= length) return;  // the whole warp
  float sums[kShortWarps][Tile::kColumns][4] = {};
  const T* v_row = values + lane % 16 * Tile::kPitch + 8 * column + (Tile::kColumns > 1 ? 8 * (lane / 16) : 0);
#pragma unroll
  for (uint32_t step = 0; step < Tile::kAllSteps; ++step) {
    const uint4 fragment = weights[step * kWarp + lane];
    const uint32_t p[4] = {fragment.x, fragment.y, fragment.z, fragment.w};
    auto& sum = sums[step % kShortWarps];
    const T* v = v_row + step * kStepKeys * Tile::kPitch;
    if constexpr (Tile::kColumns == 1) {
      uint32_t b[2];
      load_two_matrices_transposed(b, v);
      multiply<T>(sum[0], p, b[0], b[1]);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < Tile::kColumns; i += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, v + 8 * i);
        multiply<T>(sum[i], p, b[0], b[1]);
        multiply<T>(sum[i + 1], p, b[2], b[3]);
      }
    }
  }

  float factors[2][kShortWarps];  // of the rows g and g + 8: what a warp's weights count
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t row = 8 * half + lane / 4;
    const float4 four = *reinterpret_cast<const float4*>(largest + row * kShortWarps);
    const float most = fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w));
    factors[half][0] = power_of_two(four.x - most);
    factors[half][1] = power_of_two(four.y - most);
    factors[half][2] = power_of_two(four.z - most);
    factors[half][3] = power_of_two(four.w - most);
    float all_weights = 0;
#pragma unroll
    for (uint32_t i = 0; i < kShortWarps; ++i) {
      const float4 sum = *reinterpret_cast<const float4*>(weight_sums + row * Tile::kSumPitch + 4 * i);
      all_weights = fmaf((sum.x + sum.y) + (sum.z + sum.w), factors[half][i], all_weights);
    }
    const float scale = reciprocal(all_weights);
#pragma unroll
    for (uint32_t i = 0; i < kShortWarps; ++i) factors[half][i] *= scale;
  }
  const float one[2] = {1, 1};
#pragma unroll
  for (uint32_t i = 0; i < Tile::kColumns; ++i) {
    float all[4] = {};
#pragma unroll
    for (uint32_t from_warp = 0; from_warp < kShortWarps; ++from_warp) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) all[c] = fmaf(sums[from_warp][i][c], factors[c / 2][from_warp], all[c]);
    }
    store(o, base, first, length, column + i, all, one);
  }
}

// ---- On the host ----------------------------------------------------------------------------------------------------

template <class Tile>
uint32_t blocks(const Attention& a) {
  return blocks_of(a.max_length, Tile::kRows) * a.heads * a.sequences;
}

template <class T, class Tile>
bool launch_tiling(const Attention& a, const Launch& l) {
  if (Tile::kSharedBytes > l.gpu.max_shared_bytes) return false;
  const auto kernel = mma_attention<T, Tile>;
  start(kernel, dim3(blocks_of(a.max_length, Tile::kRows), a.heads, a.sequences), Tile::kThreads, Tile::kSharedBytes, l,
        attention_operands(a));
  return true;
}

// Where a block for each 16 queries still finds a multiprocessor of its own there is one; then 32 share what they read.
constexpr uint32_t kShortBlocksPerMultiprocessor = 2;  // more, and large tilings are faster

template <class T, uint32_t kDim, uint32_t kSteps = 1>
bool launch_short(const Attention& a, const Launch& l) {
  using Tile = ShortTiling<kDim, kSteps>;
  if (a.max_length > Tile::kKeys) {
    if constexpr (kSteps < kShortMostSteps) return launch_short<T, kDim, kSteps + 1>(a, l);
    return false;
  }
  const auto blocks = [&](uint32_t tiles) {
    return uint64_t(blocks_of(a.max_length, tiles * kWarpRows)) * a.heads * a.sequences;
  };
  const uint32_t tiles = blocks(1) <= l.gpu.multiprocessors ? 1 : kShortMostTiles;
  const uint32_t bytes = Tile::kValueBytes + tiles * Tile::kTileBytes;
  if (blocks(tiles) > kShortBlocksPerMultiprocessor * l.gpu.multiprocessors || bytes > l.gpu.max_shared_bytes)
    return false;
  const auto kernel = short_attention<T, Tile>;
  start(kernel, dim3(blocks_of(a.max_length, tiles * kWarpRows), a.heads, a.sequences), dim3(kShortThreads, tiles),
        bytes, l, attention_operands(a), a.tokens);
  return true;
}

// Large query tiles read keys and values less often; small ones, whose warps share the keys, spread little work over
// the device. A tiling that needs more shared memory than there is gives way to the next.
constexpr uint32_t kBlocksPerMultiprocessor = 2;  // that a tiling must give to be taken

template <class T, uint32_t kDim>
bool launch_dim(const Attention& a, const Launch& l) {
  constexpr uint32_t kKeys = kDim <= 128 ? 64 : 32;
  using Large = Tiling<kDim, 8, 1, kDim == 16 ? 128 : kKeys>;
  using Medium = Tiling<kDim, 4, 1, kKeys>;
  using Small = Tiling<kDim, 2, kDim <= 128 ? 4 : 2, kDim <= 64 ? 128 : kKeys>;
  const uint32_t enough = kBlocksPerMultiprocessor * l.gpu.multiprocessors;
  if constexpr (kDim <= 128) {
    if (launch_short<T, kDim>(a, l)) return true;
    if (a.max_length > Medium::kRows && blocks<Large>(a) >= enough && launch_tiling<T, Large>(a, l)) return true;
  }
  if ((a.max_length <= Small::kRows || blocks<Medium>(a) < enough) && launch_tiling<T, Small>(a, l)) return true;
  return launch_tiling<T, Medium>(a, l);
}

template <class T>
bool launch_type(const Attention& a, const Launch& l) {
  if (a.head_dim <= 16) return launch_dim<T, 16>(a, l);
  if (a.head_dim <= 32) return launch_dim<T, 32>(a, l);
  if (a.head_dim <= 64) return launch_dim<T, 64>(a, l);
  if (a.head_dim <= 128) return launch_dim<T, 128>(a, l);
  return launch_dim<T, 256>(a, l);
}

}  // namespace

bool launch_mma_attention(const Attention& a, const Launch& l) {
  if (!l.gpu.matrix_cores || a.q.dtype == DType::f32) return false;
  if (l.gpu.compute_capability < (a.q.dtype == DType::f16 ? 75 : 80)) return false;
  return a.q.dtype == DType::f16 ? launch_type<__half>(a, l) : launch_type<__nv_bfloat16>(a, l);
}

}  // namespace turboesm::cuda
