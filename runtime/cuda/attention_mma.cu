// Bidirectional attention inside each packed sequence, for each head: out = softmax(q k^T) v, on matrix cores by
// mma.sync, with an online softmax in fp32 (Milakov & Gimelshein 2018; Dao 2023, FlashAttention-2).
//
//   q, k, v [tokens, heads, head_dim] f16 or bf16, cu_seqlens [sequences + 1] i32 -> out [tokens, heads, head_dim] any
//   head_dim is a multiple of 8, at most 256, and counts as the next kDim, with zeros; q is already scaled
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
#include <cstdint>

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

// The largest, or sum, over the four lanes that share a fragment's row.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// ---- The kernel -----------------------------------------------------------------------------------------------------

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

// ---- On the host ----------------------------------------------------------------------------------------------------

template <class Tile>
uint32_t blocks(const Attention& a) {
  return blocks_of(a.max_length, Tile::kRows) * a.heads * a.sequences;
}

template <class T, class Tile>
bool launch_tiling(const Attention& a, const Launch& l) {
  if (Tile::kSharedBytes > l.gpu.max_shared_bytes) return false;
  const auto kernel = mma_attention<T, Tile>;
  require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes),
          "cudaFuncSetAttribute");
  start(kernel, dim3(blocks_of(a.max_length, Tile::kRows), a.heads, a.sequences), Tile::kThreads, Tile::kSharedBytes, l,
        attention_operands(a));
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
