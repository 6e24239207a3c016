// Operations on rows of activations (runtime/operations.h): token dropout, embedding, LayerNorm, mean over residues.
#include <algorithm>

#include "runtime/cuda/kernel_tools.cuh"

namespace turboesm::cuda {
namespace {

// ---- Token dropout: scale[b] = (1 - 0.12) / (1 - share of <mask>), a block a sequence -------------------------------

constexpr float kKeptInTraining = 1.0f - 0.15f * 0.8f;
constexpr uint32_t kDropoutThreads = 256;

__global__ void token_dropout(const int32_t* ids, const int32_t* cu_seqlens, float* scale, int32_t mask_id) {
  let_next_start();
  wait_for_inputs();
  const uint32_t b = blockIdx.x;
  const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
  int32_t count = 0;
  for (int32_t first = begin; first < end; first += int32_t(kDropoutThreads)) {
    const int32_t t = first + int32_t(threadIdx.x);
    count += __syncthreads_count(t < end && ids[t] == mask_id);
  }
  const float masked = float(count), length = float(end - begin);  // exact below 2^24
  if (threadIdx.x == 0) scale[b] = masked == length ? 0.0f : kKeptInTraining / (1.0f - masked / length);
}

// ---- Embedding, a block a token -------------------------------------------------------------------------------------

constexpr uint32_t kEmbedThreads = 128;

template <class T>
__global__ void embed(const int32_t* ids, const int32_t* cu_seqlens, const float* scale, const T* table, float* out,
                      uint32_t sequences, uint32_t vocab, uint32_t width, int32_t mask_id, int32_t unk_id) {
  let_next_start();
  wait_for_inputs();
  const uint32_t t = blockIdx.x;
  const float kept = scale ? scale[sequence_of(cu_seqlens, sequences, t)] : 0;  // on its way together with the id
  const int32_t id = ids[t];
  const uint32_t row = id >= 0 && uint32_t(id) < vocab ? uint32_t(id) : uint32_t(unk_id);
  const float factor = !scale ? 1.0f : id == mask_id ? 0.0f : kept;
  for (uint32_t i = 2 * threadIdx.x; i < width; i += 2 * kEmbedThreads) {
    const float2 value = load2(table + uint64_t(row) * width + i);
    store2(out + uint64_t(t) * width + i, {value.x * factor, value.y * factor});
  }
}

// ---- LayerNorm (Ba et al. 2016) -------------------------------------------------------------------------------------
// The variance is that of the deviations: E[x^2] - mean^2 would cancel where |mean| is large. A row is kept in
// registers, HELD fours or pairs a thread, by a warp or by a block of several.

constexpr uint32_t kMostWarps = 16;  // of a row

// The sum over a block of `warps` warps, a power of two, in every thread. `shared` [kMostWarps] serves one sum.
__device__ __forceinline__ float block_sum(float value, uint32_t warps, float* shared) {
  value = warp_sum(value);
  if (warps == 1) return value;
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (warps == 2) return shared[0] + shared[1];
  float sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kMostWarps; i += 4) {
    if (i >= warps) break;
    const float4 four = load4(shared + i);
    sum += (four.x + four.y) + (four.z + four.w);
  }
  return sum;
}

template <uint32_t N>
__device__ __forceinline__ void load_values(const float* source, float (&values)[N]) {
  if constexpr (N == 4) {
    const float4 v = load4(source);
    values[0] = v.x, values[1] = v.y, values[2] = v.z, values[3] = v.w;
  } else {
    const float2 v = load2(source);
    values[0] = v.x, values[1] = v.y;
  }
}

template <uint32_t N>
__device__ __forceinline__ float total(const float (&values)[N]) {
  if constexpr (N == 4) {
    return (values[0] + values[1]) + (values[2] + values[3]);
  } else {
    return values[0] + values[1];
  }
}

template <class Y, uint32_t N, uint32_t HELD>
__global__ void layer_norm(const float* x, const float* weight, const float* bias, Y* y, uint32_t rows, uint32_t width,
                           float inverse_width, float epsilon) {
  __shared__ alignas(16) float shared[2][kMostWarps];
  const uint32_t row = blockIdx.x * blockDim.y + threadIdx.y, threads = blockDim.x;
  float w[HELD][N], b[HELD][N];
#pragma unroll
  for (uint32_t i = 0; i < HELD; ++i) {
    const uint32_t column = N * (threadIdx.x + i * threads);
    if (column >= width) continue;
    load_values<N>(weight + column, w[i]);
    load_values<N>(bias + column, b[i]);
  }
  let_next_start();
  wait_for_inputs();
  if (row >= rows) return;  // whole warps: a block of several has one row
  const float* source = x + uint64_t(row) * width;
  float held[HELD][N], sums[N] = {};  // sums of their own are not in each other's way
#pragma unroll
  for (uint32_t i = 0; i < HELD; ++i) {
    const uint32_t column = N * (threadIdx.x + i * threads);
    if (column < width) {
      load_values<N>(source + column, held[i]);
    } else {
#pragma unroll
      for (uint32_t j = 0; j < N; ++j) held[i][j] = 0;
    }
#pragma unroll
    for (uint32_t j = 0; j < N; ++j) sums[j] += held[i][j];
  }
  const float mean = block_sum(total(sums), threads / kWarp, shared[0]) * inverse_width;
  float squares[N] = {};
#pragma unroll
  for (uint32_t i = 0; i < HELD; ++i) {
    if (N * (threadIdx.x + i * threads) >= width) continue;
#pragma unroll
    for (uint32_t j = 0; j < N; ++j) {
      held[i][j] -= mean;
      squares[j] = fmaf(held[i][j], held[i][j], squares[j]);
    }
  }
  const float variance = block_sum(total(squares), threads / kWarp, shared[1]) * inverse_width;
  const float factor = rsqrtf(variance + epsilon);
#pragma unroll
  for (uint32_t i = 0; i < HELD; ++i) {
    const uint32_t column = N * (threadIdx.x + i * threads);
    if (column >= width) continue;
#pragma unroll
    for (uint32_t j = 0; j < N; ++j) held[i][j] = fmaf(held[i][j] * factor, w[i][j], b[i][j]);
    Y* destination = y + uint64_t(row) * width + column;
    if constexpr (N == 4)
      store4(destination, {held[i][0], held[i][1], held[i][2], held[i][3]});
    else
      store2(destination, {held[i][0], held[i][1]});
  }
}

// Rows that no number of registers holds are read three times.
template <class Y>
__global__ void layer_norm_wide(const float* x, const float* weight, const float* bias, Y* y, uint32_t width,
                                float epsilon) {
  __shared__ alignas(16) float shared[2][kMostWarps];
  let_next_start();
  wait_for_inputs();
  const float* source = x + uint64_t(blockIdx.x) * width;
  const uint32_t warps = blockDim.x / kWarp;
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) sum += source[i];
  const float mean = block_sum(sum, warps, shared[0]) / float(width);
  float squares = 0;
  for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
    squares = fmaf(source[i] - mean, source[i] - mean, squares);
  const float variance = block_sum(squares, warps, shared[1]) / float(width);
  const float factor = 1.0f / sqrtf(variance + epsilon);
  for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
    y[uint64_t(blockIdx.x) * width + i] = from_float<Y>(fmaf((source[i] - mean) * factor, weight[i], bias[i]));
}

constexpr uint32_t kMostHeld = 5;
constexpr uint32_t kFewHeld = 4;        // that a warp takes by itself, also of few rows
constexpr uint32_t kFewRows = 4;        // of a multiprocessor
constexpr uint32_t kWideThreads = 512;  // of a row that is not held
static_assert(kWideThreads <= kMostWarps * kWarp);

template <class Y, uint32_t N, uint32_t HELD = 1>
void launch_layer_norm(const LayerNorm& a, const Launch& l, uint32_t warps, uint32_t held) {
  if constexpr (HELD < kMostHeld) {
    if (held > HELD) return launch_layer_norm<Y, N, HELD + 1>(a, l, warps, held);
  }
  const uint32_t rows_of_block = warps == 1 && a.rows > l.gpu.multiprocessors ? 4 : 1;
  start(layer_norm<Y, N, HELD>, blocks_of(a.rows, rows_of_block), dim3(warps * kWarp, rows_of_block), 0, l,
        pointer<const float>(a.x), pointer<const float>(a.weight), pointer<const float>(a.bias), pointer<Y>(a.y),
        a.rows, a.width, 1.0f / float(a.width), a.epsilon);
}

// ---- Mean over residues ---------------------------------------------------------------------------------------------
// A block takes 32 columns of one sequence; 8 warps take every eighth row, so that the order of the additions depends
// on the sequence alone.

constexpr uint32_t kPoolWarps = 8;

__global__ void pool_mean(const float* x, const int32_t* cu_seqlens, float* out, uint32_t width) {
  __shared__ float partial[kPoolWarps][kWarp];
  let_next_start();
  wait_for_inputs();
  const uint32_t column = blockIdx.x * kWarp + threadIdx.x, b = blockIdx.y;
  const uint32_t begin = uint32_t(cu_seqlens[b]), end = uint32_t(cu_seqlens[b + 1]);
  const uint32_t residues = end - begin > 2 ? end - begin - 2 : 0;
  float sum = 0;
  if (column < width)
    for (uint32_t i = threadIdx.y; i < residues; i += kPoolWarps) sum += x[uint64_t(begin + 1 + i) * width + column];
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (uint32_t i = 1; i < kPoolWarps; ++i) sum += partial[i][threadIdx.x];
  out[uint64_t(b) * width + column] = residues == 0 ? 0.0f : sum / float(residues);
}

}  // namespace

void launch(const TokenDropout& a, const Launch& l) {
  start(token_dropout, a.sequences, kDropoutThreads, 0, l, pointer<const int32_t>(a.ids),
        pointer<const int32_t>(a.cu_seqlens), pointer<float>(a.scale), a.mask_id);
}

void launch(const Embed& a, const Launch& l) {
  with_type(a.table.dtype, [&](auto type) {
    using T = decltype(type);
    start(embed<T>, a.tokens, kEmbedThreads, 0, l, pointer<const int32_t>(a.ids), pointer<const int32_t>(a.cu_seqlens),
          pointer<const float>(a.scale), pointer<const T>(a.table), pointer<float>(a.out), a.sequences, a.vocab,
          a.width, a.mask_id, a.unk_id);
  });
}

void launch(const LayerNorm& a, const Launch& l) {
  with_type(a.y.dtype, [&](auto type) {
    using Y = decltype(type);
    const uint32_t n = a.width % 4 == 0 ? 4 : 2, items = a.width / n;
    // Few rows: more threads a row, since what counts is how long one takes; but a warp needs no barriers.
    const bool few = a.rows < kFewRows * l.gpu.multiprocessors;
    const uint32_t least = few && items > kFewHeld * kWarp ? 4 : 1;
    uint32_t warps = 1;
    while (warps < 8 && (warps < least || items > kMostHeld * warps * kWarp) && items > warps * kWarp) warps *= 2;
    const uint32_t held = blocks_of(items, warps * kWarp);
    if (held > kMostHeld)
      return start(layer_norm_wide<Y>, a.rows, kWideThreads, 0, l, pointer<const float>(a.x),
                   pointer<const float>(a.weight), pointer<const float>(a.bias), pointer<Y>(a.y), a.width, a.epsilon);
    if (n == 4)
      launch_layer_norm<Y, 4>(a, l, warps, held);
    else
      launch_layer_norm<Y, 2>(a, l, warps, held);
  });
}

void launch(const PoolMean& a, const Launch& l) {
  start(pool_mean, dim3(blocks_of(a.width, kWarp), a.sequences), dim3(kWarp, kPoolWarps), 0, l,
        pointer<const float>(a.x), pointer<const int32_t>(a.cu_seqlens), pointer<float>(a.out), a.width);
}

}  // namespace turboesm::cuda
