// Attention: which kernel runs, and the plain one. AttentionMaps: the same scores, written out.
//
//   q, k, v [tokens, heads, head_dim] D, cu_seqlens [sequences + 1] i32 -> out [tokens, heads, head_dim] any:
//     out = softmax(q k^T) v for each head inside each sequence, with an online softmax (Milakov & Gimelshein 2018)
//   q, k [tokens, heads, head_dim] D -> maps [heads, length, length] f32:
//     maps[h, i, :] = softmax_j(q[begin + i, h] . k[begin + j, h])
//   head_dim is a multiple of 8, at most 256, and counts as the next kDim, with zeros; q is already scaled
//
// All in fp32, with tiles as fp32 in shared memory. A block of 16 x 16 threads takes kRows queries of one head and
// walks over the sequence's keys in tiles of kKeys, which its values then replace. Thread (x, y) computes the scores of
// kRows / 16 neighbouring queries, from y kRows / 16 on, with the keys x, x + 16 ...; and of the queries' results
// every group of four elements x, x + 16 ... (of kDim / 4). So what belongs to a query is in 16 lanes of one warp.
#include <cstdint>

#include "runtime/cuda/attention.cuh"

namespace turboesm::cuda {
namespace {

constexpr uint32_t kSide = 16;  // threads of a block: kSide x kSide
constexpr uint32_t kThreads = kSide * kSide;

template <uint32_t dim>
struct Tiling {
  static constexpr uint32_t kDim = dim;
  static constexpr uint32_t kRows = dim <= 128 ? 64 : 32, kKeys = dim <= 128 ? 32 : 16;
  static constexpr uint32_t kHeld = kRows / kSide;                   // queries of a thread
  static constexpr uint32_t kScored = kKeys / kSide;                 // keys of a thread
  static constexpr uint32_t kFours = (dim / 4 + kSide - 1) / kSide;  // groups of four of a result, of a thread
  static constexpr uint32_t kPitch = dim + 4;  // floats between rows, so that 8 of them fill all banks
  static constexpr uint32_t kWeightPitch = kKeys + 4;
  static constexpr uint32_t kQueryFloats = kRows * kPitch, kKeyFloats = kKeys * kPitch;
  static constexpr uint32_t kMapBytes = (kQueryFloats + kKeyFloats) * 4;
  static constexpr uint32_t kBytes = kMapBytes + kRows * kWeightPitch * 4;  // 62 KB at most
};

extern __shared__ float4 shared_memory[];

// Rows first .. first + kRows of a tensor of which `from` is row 0, `width` elements apart; zeros at `rows` and beyond.
template <class T, uint32_t kRows, uint32_t kDim>
__device__ __forceinline__ void load_tile(float* to, const T* from, uint32_t first, uint32_t rows, uint32_t head_dim,
                                          size_t width) {
  constexpr uint32_t kFours = kDim / 4;
  for (uint32_t i = threadIdx.x; i < kRows * kFours; i += kThreads) {
    const uint32_t row = i / kFours, dim = 4 * (i % kFours);
    float4 four = {0, 0, 0, 0};
    if (first + row < rows && dim < head_dim) four = load4(from + (first + row) * width + dim);
    *reinterpret_cast<float4*>(to + row * (kDim + 4) + dim) = four;
  }
}

__device__ __forceinline__ float4 at(const float* tile, uint32_t index) {
  return *reinterpret_cast<const float4*>(tile + index);
}

// scores[r][c] = log2 e x query y kHeld + r . key x + 16 c; -infinity from key `keys` on.
template <class Tile>
__device__ __forceinline__ void score(float (&scores)[Tile::kHeld][Tile::kScored], const float* queries,
                                      const float* tile, uint32_t keys) {
  const uint32_t x = threadIdx.x % kSide, y = threadIdx.x / kSide;
#pragma unroll
  for (uint32_t r = 0; r < Tile::kHeld; ++r) {
#pragma unroll
    for (uint32_t c = 0; c < Tile::kScored; ++c) scores[r][c] = 0;
  }
#pragma unroll 4
  for (uint32_t dim = 0; dim < Tile::kDim; dim += 4) {
    float4 key[Tile::kScored];
#pragma unroll
    for (uint32_t c = 0; c < Tile::kScored; ++c) key[c] = at(tile, (x + c * kSide) * Tile::kPitch + dim);
#pragma unroll
    for (uint32_t r = 0; r < Tile::kHeld; ++r) {
      const float4 query = at(queries, (y * Tile::kHeld + r) * Tile::kPitch + dim);
#pragma unroll
      for (uint32_t c = 0; c < Tile::kScored; ++c) {
        float& s = scores[r][c];
        s = fmaf(query.w, key[c].w, fmaf(query.z, key[c].z, fmaf(query.y, key[c].y, fmaf(query.x, key[c].x, s))));
      }
    }
  }
#pragma unroll
  for (uint32_t r = 0; r < Tile::kHeld; ++r) {
#pragma unroll
    for (uint32_t c = 0; c < Tile::kScored; ++c)
      if (x + c * kSide >= keys) scores[r][c] = minus_infinity();
  }
}

// Over the 16 lanes of a query.
__device__ __forceinline__ float side_max(float value) {
#pragma unroll
  for (uint32_t step = kSide / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}
__device__ __forceinline__ float side_sum(float value) {
#pragma unroll
  for (uint32_t step = kSide / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// ---- Attention ------------------------------------------------------------------------------------------------------

template <class T, class Tile>
__global__ void __launch_bounds__(kThreads) plain_attention(AttentionOperands o) {
  float* queries = reinterpret_cast<float*>(shared_memory);  // [kRows][kPitch]
  float* tile = queries + Tile::kQueryFloats;                // [kKeys][kPitch], keys, then values
  float* weights = tile + Tile::kKeyFloats;                  // [kRows][kWeightPitch]
  let_next_start();
  wait_for_inputs();
  const uint32_t begin = uint32_t(o.cu_seqlens[blockIdx.z]);
  const uint32_t length = uint32_t(o.cu_seqlens[blockIdx.z + 1]) - begin;
  const uint32_t first = blockIdx.x * Tile::kRows;
  if (first >= length) return;  // the whole block
  const size_t width = size_t(o.heads) * o.head_dim, base = begin * width + blockIdx.y * o.head_dim;
  const T* k = static_cast<const T*>(o.k) + base;
  const T* v = static_cast<const T*>(o.v) + base;
  const uint32_t x = threadIdx.x % kSide, y = threadIdx.x / kSide;

  load_tile<T, Tile::kRows, Tile::kDim>(queries, static_cast<const T*>(o.q) + base, first, length, o.head_dim, width);
  float4 sum[Tile::kHeld][Tile::kFours] = {};
  float largest[Tile::kHeld], weight_sum[Tile::kHeld];  // of score x log2 e; of this thread's weights
#pragma unroll
  for (uint32_t r = 0; r < Tile::kHeld; ++r) {
    largest[r] = minus_infinity();
    weight_sum[r] = 0;
  }

  for (uint32_t key = 0; key < length; key += Tile::kKeys) {
    __syncthreads();  // the last values have been used
    load_tile<T, Tile::kKeys, Tile::kDim>(tile, k, key, length, o.head_dim, width);
    __syncthreads();
    float scores[Tile::kHeld][Tile::kScored];
    score<Tile>(scores, queries, tile, length - key);
    __syncthreads();  // the keys have been used
    load_tile<T, Tile::kKeys, Tile::kDim>(tile, v, key, length, o.head_dim, width);

#pragma unroll
    for (uint32_t r = 0; r < Tile::kHeld; ++r) {
      float raised = minus_infinity();
#pragma unroll
      for (uint32_t c = 0; c < Tile::kScored; ++c) raised = fmaxf(raised, scores[r][c]);
      raised = fmaxf(largest[r], side_max(raised) * kLog2E);
      const float correction = exp2f(largest[r] - raised);
      largest[r] = raised;
      weight_sum[r] *= correction;
#pragma unroll
      for (uint32_t c = 0; c < Tile::kScored; ++c) {
        const float weight = exp2f(fmaf(scores[r][c], kLog2E, -raised));
        weight_sum[r] += weight;
        weights[(y * Tile::kHeld + r) * Tile::kWeightPitch + x + c * kSide] = weight;
      }
#pragma unroll
      for (uint32_t i = 0; i < Tile::kFours; ++i) {
        float4& s = sum[r][i];
        s = {s.x * correction, s.y * correction, s.z * correction, s.w * correction};
      }
    }
    __syncthreads();  // the values are there, and the weights

    for (uint32_t j = 0; j < Tile::kKeys; ++j) {
      float4 value[Tile::kFours];
#pragma unroll
      for (uint32_t i = 0; i < Tile::kFours; ++i)  // where kDim is 16 some threads have no element
        value[i] = at(tile, j * Tile::kPitch + (4 * (x + i * kSide)) % Tile::kDim);
#pragma unroll
      for (uint32_t r = 0; r < Tile::kHeld; ++r) {
        const float weight = weights[(y * Tile::kHeld + r) * Tile::kWeightPitch + j];
#pragma unroll
        for (uint32_t i = 0; i < Tile::kFours; ++i) {
          float4& s = sum[r][i];
          s = {fmaf(weight, value[i].x, s.x), fmaf(weight, value[i].y, s.y), fmaf(weight, value[i].z, s.z),
               fmaf(weight, value[i].w, s.w)};
        }
      }
    }
  }

#pragma unroll
  for (uint32_t r = 0; r < Tile::kHeld; ++r) {
    const uint32_t row = first + y * Tile::kHeld + r;
    const float scale = 1 / side_sum(weight_sum[r]);
#pragma unroll
    for (uint32_t i = 0; i < Tile::kFours; ++i) {
      const uint32_t dim = 4 * (x + i * kSide);
      if (row >= length || dim >= o.head_dim) continue;
      const float4 s = sum[r][i];
      store_pair(o.out, o.out_dtype, base + row * width + dim, {s.x * scale, s.y * scale});
      store_pair(o.out, o.out_dtype, base + row * width + dim + 2, {s.z * scale, s.w * scale});
    }
  }
}

// ---- AttentionMaps --------------------------------------------------------------------------------------------------

// The scores go to `maps` as they are, while each thread keeps the largest and the sum of weights of those that it
// computed; then it normalises what it wrote itself.
template <class T, class Tile>
__global__ void __launch_bounds__(kThreads) plain_maps(const T* q, const T* k, float* maps, uint32_t begin,
                                                       uint32_t length, uint32_t heads, uint32_t head_dim) {
  float* queries = reinterpret_cast<float*>(shared_memory);  // [kRows][kPitch]
  float* tile = queries + Tile::kQueryFloats;                // [kKeys][kPitch]
  let_next_start();
  wait_for_inputs();
  const uint32_t first = blockIdx.x * Tile::kRows, head = blockIdx.y;
  const size_t width = size_t(heads) * head_dim, base = begin * width + head * head_dim;
  const uint32_t x = threadIdx.x % kSide, y = threadIdx.x / kSide;

  load_tile<T, Tile::kRows, Tile::kDim>(queries, q + base, first, length, head_dim, width);
  float largest[Tile::kHeld], weight_sum[Tile::kHeld];  // of score x log2 e, over the query's keys; of this thread's
#pragma unroll
  for (uint32_t r = 0; r < Tile::kHeld; ++r) {
    largest[r] = minus_infinity();
    weight_sum[r] = 0;
  }
  float* rows[Tile::kHeld];  // of `maps`, from key x on
#pragma unroll
  for (uint32_t r = 0; r < Tile::kHeld; ++r)
    rows[r] = maps + (size_t(head) * length + first + y * Tile::kHeld + r) * length + x;
  const uint32_t held = first + y * Tile::kHeld;  // query of this thread

  for (uint32_t key = 0; key < length; key += Tile::kKeys) {
    __syncthreads();  // the last keys have been used
    load_tile<T, Tile::kKeys, Tile::kDim>(tile, k + base, key, length, head_dim, width);
    __syncthreads();
    float scores[Tile::kHeld][Tile::kScored];
    score<Tile>(scores, queries, tile, length - key);
#pragma unroll
    for (uint32_t r = 0; r < Tile::kHeld; ++r) {
      float raised = minus_infinity();
#pragma unroll
      for (uint32_t c = 0; c < Tile::kScored; ++c) raised = fmaxf(raised, scores[r][c]);
      raised = fmaxf(largest[r], side_max(raised) * kLog2E);
      weight_sum[r] *= exp2f(largest[r] - raised);
      largest[r] = raised;
#pragma unroll
      for (uint32_t c = 0; c < Tile::kScored; ++c) {
        weight_sum[r] += exp2f(fmaf(scores[r][c], kLog2E, -raised));
        if (held + r < length && key + x + c * kSide < length) rows[r][key + c * kSide] = scores[r][c];
      }
    }
  }

#pragma unroll
  for (uint32_t r = 0; r < Tile::kHeld; ++r) {
    const float scale = 1 / side_sum(weight_sum[r]);
    if (held + r >= length) continue;
    for (uint32_t key = 0; key + x < length; key += kSide)
      rows[r][key] = exp2f(fmaf(rows[r][key], kLog2E, -largest[r])) * scale;
  }
}

// ---- On the host ----------------------------------------------------------------------------------------------------

// Calls body(Tiling<kDim>{}) for the smallest kDim that holds head_dim.
template <class Body>
void with_tiling(uint32_t head_dim, Body&& body) {
  if (head_dim <= 16) return body(Tiling<16>{});
  if (head_dim <= 32) return body(Tiling<32>{});
  if (head_dim <= 64) return body(Tiling<64>{});
  if (head_dim <= 128) return body(Tiling<128>{});
  return body(Tiling<256>{});
}

void launch_plain_attention(const Attention& a, const Launch& l) {
  with_type(a.q.dtype, [&](auto type) {
    using T = decltype(type);
    with_tiling(a.head_dim, [&](auto tiling) {
      using Tile = decltype(tiling);
      const auto kernel = plain_attention<T, Tile>;
      start(kernel, dim3(blocks_of(a.max_length, Tile::kRows), a.heads, a.sequences), kThreads, Tile::kBytes, l,
            attention_operands(a));
    });
  });
}

}  // namespace

void launch(const Attention& a, const Launch& l) {
  if (a.tokens == 0 || launch_hopper_attention(a, l) || launch_mma_attention(a, l)) return;
  launch_plain_attention(a, l);
}

void launch(const AttentionMaps& a, const Launch& l) {
  with_type(a.q.dtype, [&](auto type) {
    using T = decltype(type);
    with_tiling(a.head_dim, [&](auto tiling) {
      using Tile = decltype(tiling);
      const auto kernel = plain_maps<T, Tile>;
      start(kernel, dim3(blocks_of(a.length, Tile::kRows), a.heads), kThreads, Tile::kMapBytes, l, pointer<T>(a.q),
            pointer<T>(a.k), pointer<float>(a.out), a.begin, a.length, a.heads, a.head_dim);
    });
  });
}

}  // namespace turboesm::cuda
