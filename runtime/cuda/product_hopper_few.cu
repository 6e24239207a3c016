// Products of few rows, or few outputs: y = epilogue(x weight^T), x [rows, inputs], weight [outputs, inputs], for
// Hopper. The time is that of reading the weights once, from all multiprocessors, and of what surrounds it.
//
// M is outputs, N is rows of x (tokens): a block has a tile of 64 or 128 outputs and 8 to 152 tokens, which TMA fills
// up with zeros. The blocks of a cluster sum over a part of K each. Tokens are dealt out to them in octets: block p of
// `split` adds up the octets p, p + split, .. of all parts, in the parts' order, and takes them through the epilogue.
// Sums travel as the lanes hold them, 16 bytes each (st.async), counted by a barrier of the block that they go to,
// whose lanes read what the same lanes of other blocks wrote. Only then a lane's 2 x 2 sums are exchanged within the
// warp so that it has four neighbouring outputs of a token.
//
// The first thread loads. What it can load of the weights it asks for before waiting for the kernel before this one: as
// many stages as there are, and the rest into L2. There is no warp for it alone, so that two blocks of the largest tile
// have 128 registers a thread.
#include <utility>

#include "runtime/cuda/product_hopper_epilogue.cuh"
#include "runtime/cuda/product_hopper_ptx.cuh"

namespace turboesm::cuda::hopper {
namespace {

constexpr uint32_t kTogether = 2;  // blocks on a multiprocessor, that the registers must suffice for

template <class T, uint32_t kTile, bool kVectors>
__global__ void __launch_bounds__(kFewTiles[kTile].threads, kTogether)
    few(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
        const __grid_constant__ Epilogue e, const __grid_constant__ FewPlan plan) {
  let_next_start();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr FewTile kT = kFewTiles[kTile];
  constexpr uint32_t kOutputs = kT.outputs, kTokens = kT.tokens, kStageBytes = kT.stage_bytes;
  constexpr uint32_t kWeightBytes = kOutputs * kBlockRowBytes;
  constexpr uint32_t kWarps = kT.threads / kWarp;
  constexpr uint32_t kBatch = 4;  // octets whose residuals or angles a thread asks for at once

  extern __shared__ uint8_t dynamic[];
  __shared__ alignas(8) uint64_t full_barriers[kFewStages], empty_barriers[kFewStages], arrived_barrier;
  const uint32_t stages = (shared_address(dynamic) + kSharedAlignment - 1) & ~(kSharedAlignment - 1);
  // [split][plan.octets][threads] float4: of each part of K its sums of this block's octets.
  const uint32_t all_sums = stages + (plan.apart ? plan.stages * kStageBytes : 0);
  const uint32_t full = shared_address(full_barriers), empty = shared_address(empty_barriers);
  const uint32_t arrived = shared_address(&arrived_barrier);

  const uint32_t split = plan.split, part = cluster_rank();
  const uint32_t first_output = cluster_index() * kOutputs;
  const uint32_t first_token = blockIdx.y * kTokens;
  const uint32_t first_block = plan.blocks_k * part / split;
  const uint32_t blocks = plan.blocks_k * (part + 1) / split - first_block;
  // The octets of this block, part, part + split ..: of the whole tile, and those that hold rows.
  const auto own_of = [&](uint32_t octets) { return octets > part ? (octets - part + split - 1) / split : 0; };
  const uint32_t all_octets = own_of(kT.octets), own_octets = own_of((min(kTokens, e.rows - first_token) + 7) / 8);

  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const bool loads = threadIdx.x == 0;
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
    prefetch_map(&x_map);
#pragma unroll 1
    for (uint32_t s = 0; s < early; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, kWarps);
    }
    barrier_init(arrived, 1);
    barrier_init_fence();
    barrier_expect(arrived, (split - 1) * all_octets * kT.octet_bytes);
#pragma unroll 1
    for (uint32_t b = 0; b < early; ++b) load_weights(b, b);
#pragma unroll 1
    for (uint32_t b = early; b < blocks; ++b) prefetch_box(&weight_map, (first_block + b) * kBlockInputs, first_output);
  }
  __syncthreads();
  if (split > 1) cluster_arrive_relaxed();  // what other blocks write to is ready; waited for when there are sums

  // The thread's part of the epilogue: four outputs, and one token of each of the block's octets.
  const uint32_t output = first_output + warp * 16 + quad_output(lane);
  const bool turned = e.head_dim != 0 && output < 2 * e.width;
  const uint32_t q_k_v = e.head_dim != 0 ? part_of(e, output) : 0;
  const uint32_t angle = turned ? in_head(e, output) : 0;
  float4 bias{};
  if (e.bias != nullptr) bias = load_quad(e.bias, output, e.outputs, kVectors);
  const uint32_t first_row = first_token + part * 8 + quad_token(lane);
  const auto row_of = [&](uint32_t octet) { return first_row + octet * split * 8; };

  float4 extra[kBatch];
  const auto load_extra = [&](uint32_t octet) {
    if (turned) {
      uint32_t position[kBatch];
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i)
        position[i] =
            octet + i < own_octets && row_of(octet + i) < e.rows ? uint32_t(e.positions[row_of(octet + i)]) : 0;
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i)
        extra[i] = load_quad(e.table + uint64_t(position[i]) * e.head_dim, angle, e.head_dim, kVectors);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i) {
        const uint32_t row = row_of(octet + i);
        extra[i] = {};
        if (e.residual != nullptr && octet + i < own_octets && row < e.rows)
          extra[i] = load_quad(e.residual + uint64_t(row) * e.outputs, output, e.outputs, kVectors);
      }
    }
  };
  wait_for_inputs();
  if (loads) {
#pragma unroll 1
    for (uint32_t b = 0; b < early; ++b) load_tokens(b, b);
  }
  __syncwarp();
  load_extra(0);

  // The products.
  float sums[kTokens / 2];
  uint32_t stage = 0, parity = 0, before = 0, parity_before = 0;
#pragma unroll 1
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
    // Only a stage that will be filled again is given back: all arrivals are waited for before the block ends.
    if (b != 0 && b - 1 + plan.stages < blocks) {
      if (lane == 0) barrier_arrive(empty + 8 * before);
      if (loads) {
        barrier_wait(empty + 8 * before, parity_before);
        load_weights(before, b - 1 + plan.stages);
        load_tokens(before, b - 1 + plan.stages);
      }
      __syncwarp();
    }
    before = stage, parity_before = parity;
    if (++stage == plan.stages) stage = 0, parity ^= 1;
  }
  wgmma_wait<0>();

  // To the blocks that add them up. The thread itself reads what stays in this one.
  if (split > 1) cluster_wait();
  if (!plan.apart) {
    if (split > 1) {
      cluster_arrive_relaxed();
      cluster_wait();
    } else {
      __syncthreads();
    }
  }
  const uint32_t thread_sums = all_sums + threadIdx.x * 16;
  const uint32_t part_bytes = plan.octets * kT.octet_bytes;
  uint32_t owner = 0, to = thread_sums + part * part_bytes;
#pragma unroll
  for (uint32_t j = 0; j < kT.octets; ++j) {
    if (owner == part)
      store_shared4(to, sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]);
    else
      store_async4(in_block(to, owner), sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3],
                   in_block(arrived, owner));
    if (++owner == split) owner = 0, to += kT.octet_bytes;
  }
  if (split > 1) barrier_wait(arrived, 0);

#pragma unroll 1
  for (uint32_t octet = 0; octet < own_octets; octet += kBatch) {
    if (octet != 0) load_extra(octet);
    float4 z[kBatch]{};
#pragma unroll 2
    for (uint32_t p = 0; p < split; ++p) {
      const uint32_t from = thread_sums + p * part_bytes + octet * kT.octet_bytes;
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i)
        if (octet + i < own_octets) z[i] = add(z[i], load_shared4(from + i * kT.octet_bytes));
    }
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      if (octet + i >= own_octets) break;
      float4 y = add(to_quad(z[i], lane), bias);
      const uint32_t row = row_of(octet + i);
      if (row >= e.rows || output >= e.outputs) continue;
      if (e.gelu) y = gelu(y);
      if (turned)
        y = turn(y, q_k_v == 0 ? e.q_scale : 1.0f, extra[i]);
      else
        y = add(y, extra[i]);
      const uint64_t at = place(e, row, output, q_k_v);
      if (kVectors) {
        if (e.y_dtype == DType::f32)
          store_wide(e, at, y);
        else
          store_narrow(e, at, y);
      } else {
        store_one(e, at, y.x);
        if (output + 1 < e.outputs) store_one(e, at + 1, y.y);
        if (output + 2 < e.outputs) store_one(e, at + 2, y.z);
        if (output + 3 < e.outputs) store_one(e, at + 3, y.w);
      }
    }
  }
#endif
}

// Only tiles of 64 outputs do without vectors.
template <class T, uint32_t kTile>
FewKernel few_of(bool vectors) {
  if constexpr (kFewTiles[kTile].groups == 1)
    if (!vectors) return few<T, kTile, false>;
  return few<T, kTile, true>;
}

template <class T, uint32_t... kTile>
FewKernel few_of(uint32_t tile, bool vectors, std::integer_sequence<uint32_t, kTile...>) {
  FewKernel kernel = nullptr;
  ((tile == kTile ? void(kernel = few_of<T, kTile>(vectors)) : void()), ...);
  return kernel;
}

}  // namespace

FewKernel few_kernel(uint32_t tile, DType dtype, bool vectors) {
  constexpr std::make_integer_sequence<uint32_t, kFewTileCount> kTiles{};
  return dtype == DType::f16 ? few_of<__half>(tile, vectors, kTiles) : few_of<__nv_bfloat16>(tile, vectors, kTiles);
}

}  // namespace turboesm::cuda::hopper
