// Bidirectional attention inside packed sequences that are few and short (attention_hopper.cu has the others), for
// heads of 64: all keys and values of a sequence and head are one tile, so that a softmax is done once and a block
// waits once.
//
//   q, k, v [tokens, heads, 64] f16 or bf16, cu_seqlens [sequences + 1] i32 -> out [tokens, heads, 64] any
//
// A block is a warpgroup and takes 64 queries of one head and sequence (grid: query tiles, heads, sequences). What it
// computes, how accumulators and tiles lie, and what becomes of rows beyond the sequence's end is said in
// attention_hopper.cu.
#include "runtime/cuda/attention_hopper.cuh"
#include "runtime/cuda/product_hopper_ptx.cuh"

namespace turboesm::cuda {
namespace {

using namespace hopper;

constexpr uint32_t kDim = 64;

// Blocks are placed when the kernel before leaves the first multiprocessors free, and would crowd there: each asks for
// more than half of a multiprocessor's shared memory, so that it has one to itself.
constexpr uint32_t kSharedBytes = 116 * 1024;

template <class T, uint32_t kKeys>
__global__ void __launch_bounds__(kWarpgroup, 1)
    short_attention([[maybe_unused]] const __grid_constant__ CUtensorMap q_map,
                    [[maybe_unused]] const __grid_constant__ CUtensorMap k_map,
                    [[maybe_unused]] const __grid_constant__ CUtensorMap v_map, [[maybe_unused]] AttentionOperands o,
                    [[maybe_unused]] uint32_t tokens) {
  let_next_start();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(kKeys % 16 == 0 && kSwizzleBytes + (kRows + 2 * kKeys) * 128 <= kSharedBytes);
  extern __shared__ uint8_t dynamic[];
  __shared__ alignas(8) uint64_t barriers[2];
  const uint32_t q = (shared_address(dynamic) + kSwizzleBytes - 1) & ~(kSwizzleBytes - 1);
  const uint32_t k = q + kRows * 128, v = k + kKeys * 128;
  const uint32_t scores_full = shared_address(barriers), values_full = scores_full + 8;
  const uint32_t lane = threadIdx.x % kWarp, first = blockIdx.x * kRows;
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
  const uint32_t begin = uint32_t(o.cu_seqlens[blockIdx.z]);
  const uint32_t length = uint32_t(o.cu_seqlens[blockIdx.z + 1]) - begin;
  if (first >= length) return;  // the whole block
  if (threadIdx.x == 0) {
    barrier_expect(scores_full, (kRows + kKeys) * 128);
    copy_panel(q, q_map, 0, blockIdx.y, begin + first, scores_full);
    copy_panel(k, k_map, 0, blockIdx.y, begin, scores_full);
    barrier_expect(values_full, kKeys * 128);
    copy_panel(v, v_map, 0, blockIdx.y, begin, values_full);
  }
  __syncwarp();

  float scores[kKeys / 2];
  barrier_wait(scores_full, 0);
  begin_products();
#pragma unroll
  for (uint32_t step = 0; step < kDim / 16; ++step)
    Wgmma<T, kKeys>::run(scores, matrix(q + 32 * step, 16), matrix(k + 32 * step, 16), step);
  end_products();
  wait_for_products<0>();
  pin(scores);

  // Scores become weights; index 0 stands for the thread's row g of its warp, 1 for g + 8.
  float scale[2];
#pragma unroll
  for (uint32_t i = 0; i < kKeys / 2; ++i)
    if (8 * (i / 4) + 2 * (lane % 4) + i % 2 >= length) scores[i] = minus_infinity();
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    float largest[2] = {minus_infinity(), minus_infinity()}, weights[2] = {};
#pragma unroll
    for (uint32_t i = 2 * half; i < kKeys / 2; i += 4) {
      largest[0] = fmaxf(largest[0], scores[i]);
      largest[1] = fmaxf(largest[1], scores[i + 1]);
    }
    float most = fmaxf(largest[0], largest[1]);
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2)) * kLog2E;
#pragma unroll
    for (uint32_t i = 2 * half; i < kKeys / 2; i += 4) {
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        scores[i + j] = power_of_two(fmaf(scores[i + j], kLog2E, -most));
        weights[j] += scores[i + j];
      }
    }
    float sum = weights[0] + weights[1];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    scale[half] = 1 / sum;
  }
  uint32_t p[kKeys / 16][4];
#pragma unroll
  for (uint32_t i = 0; i < kKeys / 4; ++i) p[i / 4][i % 4] = pack_pair<T>(scores[2 * i], scores[2 * i + 1]);
  pin(p);

  barrier_wait(values_full, 0);
  if (begin + length < tokens && length < kKeys) {  // the next sequence's rows; beyond the last there are zeros
    for (uint32_t i = threadIdx.x; i < (kKeys - length) * 8; i += kWarpgroup)
      store_shared4(v + length * 128 + i * 16, 0, 0, 0, 0);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  }
  float sums[kDim / 2] = {};
  pin(sums);
  begin_products();
#pragma unroll
  for (uint32_t step = 0; step < kKeys / 16; ++step)
    multiply_add<T>(sums, p[step], matrix(v + step * 16 * 128, kKeys * 128));
  end_products();
  wait_for_products<0>();
  pin(sums);

#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t row = first + threadIdx.x / kWarp * 16 + lane / 4 + 8 * half;
    if (row >= length) continue;
    const size_t index = (size_t(begin + row) * o.heads + blockIdx.y) * kDim + 2 * (lane % 4);
#pragma unroll
    for (uint32_t n = 0; n < kDim / 8; ++n)
      store_pair(o.out, o.out_dtype, index + 8 * n,
                 {sums[4 * n + 2 * half] * scale[half], sums[4 * n + 2 * half + 1] * scale[half]});
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
  start(kernel, dim3(blocks_of(a.max_length, kRows), a.heads, a.sequences), kWarpgroup, kSharedBytes, l, q, k, v,
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
