// What the kernels of KvAttention (runtime/kv_operations.h) share: their arguments, how many blocks of threads share a
// context, and how what they have summed becomes the output.
//
// A block of threads takes one head of one sequence, and of its context one of `splits` shares; or, of the kernels that
// can, one head of several sequences, with some of its warps for each. What it has summed of one query is a triple
// (largest, total, sums[head_dim]): with s_j the scores in units of log 2 and v_j the values,
//   total = sum_j 2^(s_j - largest),   sums = sum_j 2^(s_j - largest) v_j
// Triples merge by bringing them to one `largest`. Each warp has one; finish() merges those of a sequence, and through
// scratch memory those of all splits, in the block that arrives last; then
//   out = transform (sums / total) + mean
#pragma once

#include "runtime/cuda/kernel_tools.cuh"
#include "shaders/include/kv_layout.h"

namespace turboesm::cuda {

inline constexpr uint32_t kKvThreads = 128;  // of a block, in every kernel of KvAttention
inline constexpr uint32_t kKvWarps = kKvThreads / kWarp;
inline constexpr uint32_t kKvQueries = 4;  // at most
inline constexpr uint32_t kMaxKvSplits = 128;
inline constexpr float kLowestScore = -1e30f;  // below every score; finite, so that differences are numbers

// Addresses on the device; shapes are those of KvAttention.
struct KvArguments {
  const float* q;
  const float* projected;
  const float* bias;
  const uint32_t* cache;
  const int32_t* lengths;
  const float* k_codebook;
  const float* v_codebook;
  const float* transform;
  const float* mean;
  void* out;
  uint32_t* scratch;
  DType out_dtype;
  uint32_t sequences, queries, heads, head_dim;
  uint32_t blocks;  // of KV_BLOCK tokens that a head of a sequence has room for
  uint32_t block_words;
  uint32_t splits;
  uint32_t log2_together;  // of a block's sequences, which have at most kKvQueries queries; 0 where there are splits
  // Elements from one head's tensor to the next head's; 0 where all share one.
  uint32_t k_codebook_step, v_codebook_step, transform_step;
};

// What `blocks` blocks of threads take, in units of what as many as fit on all multiprocessors take together;
// `resident` fit on one.
double kv_waves(uint64_t blocks, uint32_t resident, const Gpu& gpu);

// Splits that are expected to take the least time, for kernels whose warps take a block of the cache at a time and of
// which `resident` blocks of threads fit on a multiprocessor.
// `whole_waves`: a last wave of few blocks takes as long as any other, as where reading the cache is what takes time.
// `merge`: how long merging splits takes, in units of what a warp of a full multiprocessor takes for a block.
uint32_t kv_splits(const KvAttention& a, const Launch& l, uint32_t resident, bool whole_waves, double merge);

// Shared memory of finish(). A block of threads has rows [query][sequence of the block].
struct KvTail {
  float largest[kKvQueries * kKvWarps], total[kKvQueries * kKvWarps];  // of [query][part], written before finish()
  float all_largest[kKvQueries], all_total[kKvQueries];                // of each row
  float share[kMaxKvSplits];                                           // what a split's sums are multiplied with
  alignas(16) float slices[4 * kKvThreads];                            // [slice][head_dim] of sums over some splits
  uint32_t is_last;
};

// What launches of a grid of (heads, sequences / 2^log2_together, splits) blocks mean by a block.
struct KvPlace {
  uint32_t head, sequence, split;  // `sequence` is the block's first
  __device__ explicit KvPlace(const KvArguments& a)
      : head(blockIdx.x), sequence(blockIdx.y << a.log2_together), split(blockIdx.z) {}
  __device__ uint32_t tile(const KvArguments& a) const { return sequence * a.heads + head; }
  // Of query `query`, in tensors [sequences x queries, heads, ...].
  __device__ uint64_t row(const KvArguments& a, uint32_t query) const {
    return (uint64_t(sequence) * a.queries + query) * a.heads + head;
  }
};

__device__ __forceinline__ void store_as(DType dtype, void* destination, uint64_t index, float value) {
  switch (dtype) {
    case DType::f16: static_cast<__half*>(destination)[index] = from_float<__half>(value); break;
    case DType::bf16: static_cast<__nv_bfloat16*>(destination)[index] = from_float<__nv_bfloat16>(value); break;
    default: static_cast<float*>(destination)[index] = value;
  }
}

// Merges the triples of all splits to sums [queries][head_dim], `step_of_sums` apart, and tail.all_total. Returns
// false, in every thread, in all blocks but the last.
__device__ inline bool merge_splits(const KvArguments& a, const KvPlace& place, KvTail& tail, float* sums,
                                    uint32_t step_of_sums, uint32_t head_dim) {
  const uint32_t thread = threadIdx.x, lane = thread % kWarp, stride = head_dim + 4;
  float* partials =
      reinterpret_cast<float*>(a.scratch) + kCounters;  // [tile][split][query] of largest, total, -, -, sums
  partials += uint64_t(place.tile(a)) * a.splits * a.queries * stride;
  float* own = partials + place.split * a.queries * stride;
  for (uint32_t i = thread; i < a.queries * head_dim; i += kKvThreads)
    own[i / head_dim * stride + 4 + i % head_dim] = sums[i / head_dim * step_of_sums + i % head_dim];
  if (thread < a.queries) {
    own[thread * stride] = tail.all_largest[thread];
    own[thread * stride + 1] = tail.all_total[thread];
  }
  __threadfence();
  __syncthreads();  // all of this block's sums are there before it is counted
  if (thread == 0) {
    uint32_t* counter = a.scratch + place.tile(a);
    tail.is_last = atomicAdd(counter, 1u) == a.splits - 1 ? 1 : 0;
    if (tail.is_last != 0) *counter = 0;
  }
  __syncthreads();
  if (tail.is_last == 0) return false;
  __threadfence();

  const uint32_t columns = head_dim / 4,
                 slices = kKvThreads / columns;  // a thread has 4 values and one slice of splits
  const uint32_t column = thread % columns, slice = thread / columns;
  for (uint32_t query = 0; query < a.queries; ++query) {
    const float* of_query = partials + query * stride;
    const uint32_t step = a.queries * stride;
    float largest = kLowestScore, total = 0;
    for (uint32_t s = lane; s < a.splits; s += kWarp) largest = fmaxf(largest, __ldcg(of_query + s * step));
    largest = warp_max(largest);
    for (uint32_t s = lane; s < a.splits; s += kWarp) {
      const float share = exp2f(__ldcg(of_query + s * step) - largest);
      total += share * __ldcg(of_query + s * step + 1);
      if (thread < kWarp) tail.share[s] = share;
    }
    total = warp_sum(total);
    if (thread == 0) tail.all_total[query] = total;
    __syncthreads();
    if (slice < slices) {
      float4 sum{0, 0, 0, 0};
#pragma unroll 4
      for (uint32_t s = slice; s < a.splits; s += slices) {
        const float4 x = __ldcg(reinterpret_cast<const float4*>(of_query + s * step + 4 + 4 * column));
        const float share = tail.share[s];
        sum.x += share * x.x, sum.y += share * x.y, sum.z += share * x.z, sum.w += share * x.w;
      }
      store4(tail.slices + slice * head_dim + 4 * column, sum);
    }
    __syncthreads();
    for (uint32_t i = thread; i < head_dim; i += kKvThreads) {
      float sum = 0;
      for (uint32_t k = 0; k < slices; ++k) sum += tail.slices[k * head_dim + i];
      sums[query * step_of_sums + i] = sum;
    }
    __syncthreads();
  }
  return true;
}

// Element `element` of d of a row's output, from its sum. A sequence without tokens has no total, and zeros.
__device__ __forceinline__ void store_element(const KvArguments& a, KvPlace place, const KvTail& tail, uint32_t row,
                                              uint32_t element, uint32_t d, float sum) {
  const uint32_t query = row >> a.log2_together;
  place.sequence += row - (query << a.log2_together);
  if (place.sequence >= a.sequences) return;
  const float total = tail.all_total[row], mean = a.mean != nullptr ? a.mean[place.head * d + element] : 0.0f;
  store_as(a.out_dtype, a.out, place.row(a, query) * d + element, total == 0 ? 0.0f : sum / total + mean);
}

// From sums [row], `step` apart. Rows of the transform: eight lanes share one, so that neighbours read neighbouring
// vectors, and each has some rows at once, whose loads do not wait for one another.
template <uint32_t kHeadDim>
__device__ void transform_and_store(const KvArguments& a, const KvPlace& place, const KvTail& tail, const float* sums,
                                    uint32_t step) {
  constexpr uint32_t kLanes = 8, kRows = kKvThreads / kLanes, kAtOnce = 4;
  const uint32_t d = kHeadDim != 0 ? kHeadDim : a.head_dim, lane = threadIdx.x % kLanes;
  const uint32_t rows = a.queries << a.log2_together;
  const float* transform = a.transform + uint64_t(place.head) * a.transform_step;
  for (uint32_t first = threadIdx.x / kLanes; first < (d + kRows - 1) / kRows * kRows; first += kRows * kAtOnce) {
    float dots[kAtOnce][kKvQueries] = {};
#pragma unroll 2
    for (uint32_t c = 4 * lane; c < d; c += 4 * kLanes) {
      float4 x[kAtOnce];
#pragma unroll
      for (uint32_t k = 0; k < kAtOnce; ++k)
        x[k] = __ldg(reinterpret_cast<const float4*>(transform + min(first + k * kRows, d - 1) * d + c));
#pragma unroll
      for (uint32_t r = 0; r < kKvQueries; ++r) {
        if (r >= rows) break;
        const float4 y = load4(sums + r * step + c);
#pragma unroll
        for (uint32_t k = 0; k < kAtOnce; ++k) dots[k][r] += x[k].x * y.x + x[k].y * y.y + x[k].z * y.z + x[k].w * y.w;
      }
    }
#pragma unroll
    for (uint32_t k = 0; k < kAtOnce; ++k) {
      const uint32_t row = first + k * kRows;
#pragma unroll
      for (uint32_t r = 0; r < kKvQueries; ++r) {
        if (r >= rows) break;
#pragma unroll
        for (uint32_t i = 1; i < kLanes; i *= 2) dots[k][r] += __shfl_xor_sync(kAllLanes, dots[k][r], i);
        if (lane == r && row < d) store_element(a, place, tail, r, row, d, dots[k][r]);  // lane r stores row r
      }
    }
  }
}

// parts [queries][kParts][head_dim] are the sums of as many warps, kParts / 2^log2_together for each sequence, whose
// other numbers are in `tail`; both in shared memory, which this synchronizes. kHeadDim is head_dim, or 0 where only
// `a` knows it.
template <uint32_t kHeadDim, uint32_t kParts>
__device__ void finish(const KvArguments& a, const KvPlace& place, KvTail& tail, float* parts) {
  const uint32_t d = kHeadDim != 0 ? kHeadDim : a.head_dim, end = (a.queries << a.log2_together) * d;
  const uint32_t team = kParts >> a.log2_together;  // parts of a row, which follow one another
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < end; i += kKvThreads) {
    const uint32_t row = i / d, first = row * team;
    float* const sums = parts + first * d + i % d;  // which nobody else reads or writes
    float largest = tail.largest[first], total = 0, sum = 0;
    for (uint32_t w = 1; w < team; ++w) largest = fmaxf(largest, tail.largest[first + w]);
#pragma unroll
    for (uint32_t w = 0; w < kParts; ++w) {
      if (w >= team) break;
      const float share = exp2f(tail.largest[first + w] - largest);
      total += share * tail.total[first + w];
      sum += share * sums[w * d];
    }
    *sums = sum;
    if (i % d == 0) {
      tail.all_largest[row] = largest;
      tail.all_total[row] = total;
    }
  }
  __syncthreads();
  const uint32_t step = team * d;
  if (a.splits > 1 && !merge_splits(a, place, tail, parts, step, d)) return;
  if (a.transform != nullptr) return transform_and_store<kHeadDim>(a, place, tail, parts, step);
  for (uint32_t i = threadIdx.x; i < end; i += kKvThreads)
    store_element(a, place, tail, i / d, i % d, d, parts[i / d * step + i % d]);
}

}  // namespace turboesm::cuda
