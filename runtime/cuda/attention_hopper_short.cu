// Bidirectional attention inside packed sequences that are few and short (attention_hopper.cu has the others), for
// heads of 64: all keys and values of a sequence and head are one tile, so that a softmax is done once and a block
// waits once.
//
//   q, k, v [tokens, heads, 64] f16 or bf16, cu_seqlens [sequences + 1] i32 -> out [tokens, heads, 64] any
//
// A block takes 64 queries of one head and sequence (grid: query tiles, heads, sequences). Each of its two warpgroups
// takes half of the keys, with a softmax and sums of its own; in the end they exchange halves of the sums and bring
// them to one reference. What a warpgroup computes, how accumulators and tiles lie, and what becomes of rows beyond the
// sequence's end is said in attention_hopper.cu.
#include "runtime/cuda/attention_hopper.cuh"
#include "runtime/cuda/product_hopper_ptx.cuh"

namespace turboesm::cuda {
namespace {

using namespace hopper;

constexpr uint32_t kDim = 64;
constexpr uint32_t kThreads = 2 * kWarpgroup;

// Blocks are placed when the kernel before leaves the first multiprocessors free, and would crowd there: each asks for
// more than half of a multiprocessor's shared memory, so that it has one to itself.
constexpr uint32_t kSharedBytes = 116 * 1024;

template <class T, uint32_t kKeys>
__global__ void __launch_bounds__(kThreads, 1)
    short_attention([[maybe_unused]] const __grid_constant__ CUtensorMap q_map,
                    [[maybe_unused]] const __grid_constant__ CUtensorMap k_map,
                    [[maybe_unused]] const __grid_constant__ CUtensorMap v_map, [[maybe_unused]] AttentionOperands o,
                    [[maybe_unused]] uint32_t tokens) {
  let_next_start();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr uint32_t kHalf = kKeys / 2;               // a warpgroup's keys
  constexpr uint32_t kExchanged = 5 * kThreads * 16;  // bytes: half of the sums, and two rows' references and sums
  constexpr float kLeast = -1e30f;  // below every score (q k of 16-bit values): a row without keys has weights of 0
  static_assert(kHalf % 16 == 0 && kSwizzleBytes + (kRows + 2 * kKeys) * 128 + kExchanged <= kSharedBytes);
  extern __shared__ uint8_t dynamic[];
  __shared__ alignas(8) uint64_t barriers[2];
  const uint32_t q = (shared_address(dynamic) + kSwizzleBytes - 1) & ~(kSwizzleBytes - 1);
  const uint32_t k = q + kRows * 128, v = k + kKeys * 128, exchange = v + kKeys * 128;
  const uint32_t scores_full = shared_address(barriers), values_full = scores_full + 8;
  const uint32_t lane = threadIdx.x % kWarp, first = blockIdx.x * kRows;
  const uint32_t begin = uint32_t(o.cu_seqlens[blockIdx.z]);
  const uint32_t length = uint32_t(o.cu_seqlens[blockIdx.z + 1]) - begin;
  const uint32_t group = threadIdx.x / kWarpgroup, first_key = group * kHalf;
  const bool has_others = begin + length < tokens;  // behind the sequence; beyond the last one there are zeros

  // Element i of the scores is of key key_of(i). Keys beyond the end begin with minus infinity.
  const auto key_of = [&](uint32_t i) { return first_key + 8 * (i / 4) + 2 * (lane % 4) + i % 2; };
  float scores[kHalf / 2];
#pragma unroll
  for (uint32_t i = 0; i < kHalf / 2; ++i) scores[i] = key_of(i) < length ? 0 : minus_infinity();

  if (threadIdx.x == 0) {
    prefetch(q_map);
    prefetch(k_map);
    prefetch(v_map);
    barrier_init(scores_full, 1);
    barrier_init(values_full, 1);
    barrier_init_fence();
  }
  __syncthreads();
  wait_for_inputs();
  if (first >= length) return;  // the whole block
  if (threadIdx.x == 0) {
    barrier_expect(scores_full, (kRows + kKeys) * 128);
    copy_panel(q, q_map, 0, blockIdx.y, begin + first, scores_full);
    copy_panel(k, k_map, 0, blockIdx.y, begin, scores_full);
    barrier_expect(values_full, kKeys * 128);
    copy_panel(v, v_map, 0, blockIdx.y, begin, values_full);
  }
  __syncwarp();

  barrier_wait(scores_full, 0);
  pin(scores);
  begin_products();
#pragma unroll
  for (uint32_t step = 0; step < kDim / 16; ++step)
    Wgmma<T, kHalf>::run(scores, matrix(q + 32 * step, 16), matrix(k + first_key * 128 + 32 * step, 16), 1);
  end_products();
  wait_for_products<0>();
  pin(scores);
  if (has_others) {  // whose keys may not be finite
#pragma unroll
    for (uint32_t i = 0; i < kHalf / 2; ++i)
      if (key_of(i) >= length) scores[i] = minus_infinity();
  }

  // Scores become weights, powers of two relative to the row's largest; index 0 stands for the thread's row g of its
  // warp, 1 for g + 8.
  float reference[2], weight[2];
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    float largest[2] = {kLeast, kLeast}, weights[2] = {};
#pragma unroll
    for (uint32_t i = 2 * half; i < kHalf / 2; i += 4) {
      largest[0] = fmaxf(largest[0], scores[i]);
      largest[1] = fmaxf(largest[1], scores[i + 1]);
    }
    float most = fmaxf(largest[0], largest[1]);
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2)) * kLog2E;
#pragma unroll
    for (uint32_t i = 2 * half; i < kHalf / 2; i += 4) {
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        scores[i + j] = power_of_two(fmaf(scores[i + j], kLog2E, -most));
        weights[j] += scores[i + j];
      }
    }
    float sum = weights[0] + weights[1];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    reference[half] = most, weight[half] = sum;
  }
  uint32_t p[kHalf / 16][4];
#pragma unroll
  for (uint32_t i = 0; i < kHalf / 4; ++i) p[i / 4][i % 4] = pack_pair<T>(scores[2 * i], scores[2 * i + 1]);
  pin(p);

  float sums[kDim / 2] = {};
  barrier_wait(values_full, 0);
  if (has_others && length < kKeys) {  // their rows may not be finite, and 0 x infinity is not 0
    for (uint32_t i = threadIdx.x; i < (kKeys - length) * 8; i += kThreads)
      store_shared4(v + length * 128 + i * 16, 0, 0, 0, 0);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  }
  pin(sums);
  begin_products();
#pragma unroll
  for (uint32_t step = 0; step < kHalf / 16; ++step)
    multiply_held<T, true>(sums, p[step], matrix(v + (first_key + step * 16) * 128, kKeys * 128), 1);
  end_products();
  wait_for_products<0>();
  pin(sums);

  // The first warpgroup keeps the first half of the sums' columns and sends the second one; the second one does the
  // opposite.
  constexpr uint32_t kKept = kDim / 4;
  float kept[kKept], sent[kKept];
#pragma unroll
  for (uint32_t i = 0; i < kKept; ++i) {
    kept[i] = group == 0 ? sums[i] : sums[i + kKept];
    sent[i] = group == 0 ? sums[i + kKept] : sums[i];
  }
  const uint32_t to = exchange + threadIdx.x * 16;
#pragma unroll
  for (uint32_t i = 0; i < kKept / 4; ++i)
    store_shared4(to + i * (kThreads * 16), sent[4 * i], sent[4 * i + 1], sent[4 * i + 2], sent[4 * i + 3]);
  store_shared4(to + kKept / 4 * (kThreads * 16), reference[0], reference[1], weight[0], weight[1]);
  __syncthreads();
  const uint32_t from = exchange + (threadIdx.x ^ kWarpgroup) * 16;
  const float4 other = load_shared4(from + kKept / 4 * (kThreads * 16));
  const float other_reference[2] = {other.x, other.y}, other_weight[2] = {other.z, other.w};
  float scale[2], other_scale[2];
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const float most = fmaxf(reference[half], other_reference[half]);
    scale[half] = power_of_two(reference[half] - most);
    other_scale[half] = power_of_two(other_reference[half] - most);
    const float inverse = 1 / (weight[half] * scale[half] + other_weight[half] * other_scale[half]);
    scale[half] *= inverse, other_scale[half] *= inverse;
  }
  const uint32_t row = first + threadIdx.x % kWarpgroup / kWarp * 16 + lane / 4;
  const size_t index = (size_t(begin + row) * o.heads + blockIdx.y) * kDim + group * (kDim / 2) + 2 * (lane % 4);
  const size_t next = size_t(8) * o.heads * kDim;
  const bool exists[2] = {row < length, row + 8 < length};
#pragma unroll
  for (uint32_t n = 0; n < kKept / 4; ++n) {
    const float4 received = load_shared4(from + n * (kThreads * 16));
    const float2 pairs[2] = {{kept[4 * n] * scale[0] + received.x * other_scale[0],
                              kept[4 * n + 1] * scale[0] + received.y * other_scale[0]},
                             {kept[4 * n + 2] * scale[1] + received.z * other_scale[1],
                              kept[4 * n + 3] * scale[1] + received.w * other_scale[1]}};
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half)
      if (exists[half]) store_pair(o.out, o.out_dtype, index + 8 * n + half * next, pairs[half]);
  }
#else
  __trap();  // without the instructions of sm_90a: never launched (Gpu::hopper)
#endif
}

template <class T, uint32_t kKeys>
bool launch_keys(const Attention& a, const Launch& l) {
  CUtensorMap q, k, v;
  if (!describe(q, a.q, a, kRows) || !describe(k, a.k, a, kKeys) || !describe(v, a.v, a, kKeys)) return false;
  const auto kernel = short_attention<T, kKeys>;
  start(kernel, dim3(blocks_of(a.max_length, kRows), a.heads, a.sequences), kThreads, kSharedBytes, l, q, k, v,
        attention_operands(a), a.tokens);
  return true;
}

template <class T>
bool launch_type(const Attention& a, const Launch& l) {
  if (a.max_length <= 64) return launch_keys<T, 64>(a, l);
  if (a.max_length <= 128) return launch_keys<T, 128>(a, l);
  if (a.max_length <= 160) return launch_keys<T, 160>(a, l);
  return launch_keys<T, 256>(a, l);
}

}  // namespace

bool launch_short_hopper_attention(const Attention& a, const Launch& l) {
  if (a.head_dim != kDim || a.max_length > 256 || !tensor_map_encoder()) return false;
  if (uint64_t(blocks_of(a.max_length, kRows)) * a.heads * a.sequences > l.gpu.multiprocessors) return false;
  return a.q.dtype == DType::f16 ? launch_type<__half>(a, l) : launch_type<__nv_bfloat16>(a, l);
}

}  // namespace turboesm::cuda
