// Products of few rows, or few outputs: y = epilogue(x weight^T), x [rows, inputs], weight [outputs, inputs], for
// Hopper. The time is that of reading the weights once, from all multiprocessors, and of what surrounds it.
//
// M is outputs, N is rows of x (tokens): a block has a tile of 64 or 128 outputs and 8 to 256 tokens, which TMA fills
// up with zeros. The blocks of a cluster share a tile's K: each sums over its part, and writes the sums of token t into
// the shared memory of block t % split (over distributed shared memory), which adds them up in the blocks' order and
// goes through the epilogue: 16 or 32 threads have a token's outputs, four each, so that reads and writes are whole
// lines. The last warp loads. What it can load of the weights it asks for before waiting for the kernel before this
// one: as many stages as there are, and the rest into L2.
#include "runtime/cuda/product_hopper_epilogue.cuh"
#include "runtime/cuda/product_hopper_ptx.cuh"

namespace turboesm::cuda::hopper {
namespace {

template <class T, uint32_t kTile>
__global__ void __launch_bounds__(kFewTiles[kTile].threads, 1)
    few(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
        const __grid_constant__ Epilogue e, const __grid_constant__ FewPlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr FewTile kT = kFewTiles[kTile];
  constexpr uint32_t kOutputs = kT.outputs, kTokens = kT.tokens, kStageBytes = kT.stage_bytes;
  constexpr uint32_t kWeightBytes = kOutputs * kBlockRowBytes, kStride = kT.stride;
  constexpr uint32_t kWorkers = kT.groups * 128, kWorkerWarps = kWorkers / kWarp;
  constexpr uint32_t kBatch = 4;  // tokens whose residuals or angles a thread asks for at once
  constexpr uint32_t kThreadsPerToken = kOutputs / 4, kTokensPerPass = kWorkers / kThreadsPerToken;

  extern __shared__ uint8_t dynamic[];
  __shared__ alignas(8) uint64_t full_barriers[kFewStages], empty_barriers[kFewStages];
  const uint32_t padding = -shared_address(dynamic) % kSharedAlignment;
  const uint32_t stages = shared_address(dynamic) + padding;
  const uint32_t full = shared_address(full_barriers), empty = shared_address(empty_barriers);
  // [split][kTokens / split][kStride]: of each block of the cluster its sums of this block's tokens.
  const float* sums_of = reinterpret_cast<const float*>(dynamic + padding + plan.stages * kStageBytes);

  const uint32_t split = 1u << plan.log_split, rank = blockIdx.x & (split - 1);
  const uint32_t first_output = (blockIdx.x >> plan.log_split) * kOutputs, first_token = blockIdx.y * kTokens;
  const uint32_t tokens = min(kTokens, e.rows - first_token);
  const uint32_t first_block = plan.blocks_k * rank >> plan.log_split;
  const uint32_t blocks = (plan.blocks_k * (rank + 1) >> plan.log_split) - first_block;

  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const bool loads = warp == kWorkerWarps && lane == 0;
  const auto load_weights = [&](uint32_t stage, uint32_t block) {
    barrier_expect(full + 8 * stage, kStageBytes);
    load_box(stages + stage * kStageBytes, &weight_map, (first_block + block) * kBlockInputs, first_output,
             full + 8 * stage);
  };
  const auto load_tokens = [&](uint32_t stage, uint32_t block) {
    load_box(stages + stage * kStageBytes + kWeightBytes, &x_map, (first_block + block) * kBlockInputs, first_token,
             full + 8 * stage);
  };
  const uint32_t early = min(blocks, plan.stages);

  if (loads) {
    for (uint32_t s = 0; s < plan.stages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, kWorkerWarps);
    }
    barrier_init_fence();
    for (uint32_t b = 0; b < early; ++b) load_weights(b, b);
    prefetch_map(&x_map);
    for (uint32_t b = early; b < blocks; ++b) prefetch_box(&weight_map, (first_block + b) * kBlockInputs, first_output);
  }
  let_next_start();
  __syncthreads();
  if (split > 1) cluster_arrive_relaxed();  // this block has started

  if (warp == kWorkerWarps) {
    wait_for_inputs();
    if (loads) {
      for (uint32_t b = 0; b < early; ++b) load_tokens(b, b);
      uint32_t stage = 0, parity = 0;
      for (uint32_t b = early; b < blocks; ++b) {
        barrier_wait(empty + 8 * stage, parity);
        load_weights(stage, b);
        load_tokens(stage, b);
        if (++stage == plan.stages) stage = 0, parity ^= 1;
      }
    }
    __syncwarp();
    if (split > 1) {
      cluster_wait();
      cluster_arrive();
      cluster_wait();
    } else {
      __syncthreads();
    }
    return;
  }

  // The thread's part of the epilogue: four outputs, and every kTokensPerPass-th of the block's tokens.
  const uint32_t output = first_output + threadIdx.x % kThreadsPerToken * 4;
  const uint32_t first_slot = threadIdx.x / kThreadsPerToken;
  const uint32_t slots = tokens > rank ? (tokens - rank + split - 1) >> plan.log_split : 0;
  const bool turned = e.head_dim != 0 && output < 2 * e.width;
  const uint32_t part = e.head_dim != 0 ? part_of(e, output) : 0;
  const uint32_t angle = turned ? in_head(e, output) : 0;
  float4 bias{};
  if (e.bias != nullptr) bias = load_quad(e.bias, output, e.outputs, e.vectors);
  const auto row_of = [&](uint32_t slot) { return first_token + (slot << plan.log_split) + rank; };

  float4 extra[kBatch];
  const auto load_extra = [&](uint32_t slot) {
    if (turned) {
      uint32_t position[kBatch];
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i) {
        const uint32_t at = slot + i * kTokensPerPass;
        position[i] = at < slots ? uint32_t(e.positions[row_of(at)]) : 0;
      }
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i)
        extra[i] = load_quad(e.table + uint64_t(position[i]) * e.head_dim, angle, e.head_dim, e.vectors);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i) {
        const uint32_t at = slot + i * kTokensPerPass;
        extra[i] = {};
        if (e.residual != nullptr && at < slots)
          extra[i] = load_quad(e.residual + uint64_t(row_of(at)) * e.outputs, output, e.outputs, e.vectors);
      }
    }
  };
  wait_for_inputs();
  load_extra(first_slot);

  // The products.
  float sums[kTokens / 2];
  uint32_t stage = 0, parity = 0, before = 0;
  for (uint32_t b = 0; b < blocks; ++b) {
    barrier_wait(full + 8 * stage, parity);
    const uint64_t weight = descriptor(stages + stage * kStageBytes + threadIdx.x / 128 * (64 * kBlockRowBytes));
    const uint64_t x = descriptor(stages + stage * kStageBytes + kWeightBytes);
    wgmma_fence();
#pragma unroll
    for (uint32_t i = 0; i < kBlockInputs / 16; ++i)
      Wgmma<T, kTokens>::run(sums, weight + i * kStepDescriptor, x + i * kStepDescriptor, b + i);
    wgmma_commit();
    wgmma_wait<1>();
    if (b != 0 && lane == 0) barrier_arrive(empty + 8 * before);
    before = stage;
    if (++stage == plan.stages) stage = 0, parity ^= 1;
  }
  wgmma_wait<0>();

  // To the block that adds them up: a lane's tokens are 8 j + 2 (lane % 4) and the next, whose blocks do not depend on
  // j, as split divides 8.
  if (split > 1) cluster_wait();  // all blocks have started
#pragma unroll
  for (uint32_t next = 0; next < 2; ++next) {
    const uint32_t token = lane % 4 * 2 + next, owner = token & (split - 1);
    const uint32_t slot = rank * (kTokens >> plan.log_split) + (token >> plan.log_split);
    const uint32_t at = shared_address(sums_of) + (slot * kStride + warp * 16 + lane / 4) * 4;
    const uint32_t to = split > 1 ? in_block(at, owner) : at, step = (8 >> plan.log_split) * kStride * 4;
#pragma unroll
    for (uint32_t j = 0; j < kTokens / 8; ++j) {
      if (j * 8 + token < tokens) {
        store_cluster(to + j * step, sums[j * 4 + next]);
        store_cluster(to + j * step + 8 * 4, sums[j * 4 + 2 + next]);
      }
    }
  }
  if (split > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }

  for (uint32_t slot = first_slot; slot < slots; slot += kBatch * kTokensPerPass) {
    if (slot != first_slot) load_extra(slot);
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t at = slot + i * kTokensPerPass;
      if (at >= slots || output >= e.outputs) continue;
      float4 z = bias;
      for (uint32_t s = 0; s < split; ++s)
        z = add(z, *reinterpret_cast<const float4*>(sums_of + (s * (kTokens >> plan.log_split) + at) * kStride +
                                                    (output - first_output)));
      if (e.gelu) z = gelu(z);
      if (turned)
        z = turn(z, part == 0 ? e.q_scale : 1.0f, extra[i]);
      else
        z = add(z, extra[i]);
      const uint64_t to = place(e, row_of(at), output, part);
      if (e.vectors) {
        if (e.y_dtype == DType::f32)
          store_wide(e, to, z);
        else
          store_narrow(e, to, z);
      } else {
        store_one(e, to, z.x);
        if (output + 1 < e.outputs) store_one(e, to + 1, z.y);
        if (output + 2 < e.outputs) store_one(e, to + 2, z.z);
        if (output + 3 < e.outputs) store_one(e, to + 3, z.w);
      }
    }
  }
#endif
}

template <class T>
FewKernel few_of(uint32_t tile) {
  static_assert(kFewTileCount == 14);
  constexpr FewKernel kKernels[] = {few<T, 0>, few<T, 1>, few<T, 2>, few<T, 3>,  few<T, 4>,  few<T, 5>,  few<T, 6>,
                                    few<T, 7>, few<T, 8>, few<T, 9>, few<T, 10>, few<T, 11>, few<T, 12>, few<T, 13>};
  return kKernels[tile];
}

}  // namespace

FewKernel few_kernel(uint32_t tile, DType dtype) {
  return dtype == DType::f16 ? few_of<__half>(tile) : few_of<__nv_bfloat16>(tile);
}

}  // namespace turboesm::cuda::hopper
