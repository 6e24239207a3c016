// Products of some tens to some hundreds of rows: y = epilogue(x weight^T), x [rows, inputs], weight [outputs, inputs],
// for Hopper. What bounds them is how fast a multiprocessor takes in its operands.
//
// M is rows of x (tokens), 64 for each warpgroup, so that a block reads all rows once; N is outputs, of which a block
// has so many that one wave of blocks covers them. The blocks of a cluster sum over a part of K each. A tile's outputs
// are dealt out to them in octets: block p of `split` adds up the octets p, p + split, .. of all parts, in the parts'
// order, and takes them through the epilogue. Sums travel as the lanes hold them, 16 bytes each (st.async), counted by
// a barrier of the block that they go to, whose lanes read what the same lanes of other blocks wrote.
//
// A kernel's code is run once by each warp and comes from memory as its operands do, so what follows the products is a
// short loop. What it reads besides (residuals, or angles) waits in shared memory, where each thread has put its own.
//
// The first thread loads. What it can load of the weights it asks for before waiting for the kernel before this one: as
// many stages as there are, and the rest into L2.
#pragma once

#include <utility>

#include "runtime/cuda/product_hopper_epilogue.cuh"
#include "runtime/cuda/product_hopper_ptx.cuh"

namespace turboesm::cuda::hopper {

template <class T, uint32_t kColumns, Kind kKind>
__global__ void __launch_bounds__(kMediumMostThreads, 1)
    medium(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
           const __grid_constant__ Epilogue e, const __grid_constant__ MediumPlan plan) {
  let_next_start();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr uint32_t kOctets = kColumns / 8, kWeightBytes = kColumns * kBlockRowBytes;
  constexpr bool kWide = kKind == Kind::wide, kRope = kKind == Kind::rope;

  extern __shared__ uint8_t dynamic[];
  __shared__ alignas(8) uint64_t full_barriers[kFewStages], empty_barriers[kFewStages], arrived_barrier;
  __shared__ alignas(16) float biases[kColumns];
  __shared__ alignas(8) int32_t positions[kRope ? 2 * kMediumMostThreads : 2];
  // Stages hold plan.box_rows of x, then the weights. The last warpgroup may multiply what lies behind its rows: that
  // makes rows of y that nobody stores.
  const uint32_t stages = (shared_address(dynamic) + kSharedAlignment - 1) & ~(kSharedAlignment - 1);
  const uint32_t stage_bytes = plan.box_rows * kBlockRowBytes + kWeightBytes;
  const uint32_t octet_bytes = blockDim.x * 16;
  const uint32_t all_sums = stages + plan.sums_at;                       // [split][plan.octets][threads] float4
  const uint32_t own_extra = stages + plan.extra_at + threadIdx.x * 16;  // [plan.octets][threads] float4
  const uint32_t full = shared_address(full_barriers), empty = shared_address(empty_barriers);
  const uint32_t arrived = shared_address(&arrived_barrier);

  const uint32_t split = plan.split, part = cluster_rank();
  const uint32_t first_output = cluster_index() * kColumns;
  const uint32_t first_token = blockIdx.y * (blockDim.x / 2);
  const uint32_t first_block = plan.blocks_k * part / split;
  const uint32_t blocks = plan.blocks_k * (part + 1) / split - first_block;
  const uint32_t own_octets = kOctets > part ? (kOctets - part + split - 1) / split : 0;

  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const bool loads = threadIdx.x == 0;
  // Warps beyond the last row multiply, but have nothing to add up.
  const uint32_t warps_with_rows = min(blockDim.x / kWarp, (e.rows - first_token + 15) / 16);
  const auto load_weights = [&](uint32_t stage, uint32_t block) {
    load_box(stages + stage * stage_bytes + plan.box_rows * kBlockRowBytes, &weight_map,
             (first_block + block) * kBlockInputs, first_output, full + 8 * stage);
  };
  const auto load_tokens = [&](uint32_t stage, uint32_t block) {
    load_box(stages + stage * stage_bytes, &x_map, (first_block + block) * kBlockInputs, first_token, full + 8 * stage);
  };
  const uint32_t early = min(blocks, plan.stages);

  if (loads) {
    prefetch_map(&x_map);
#pragma unroll 1
    for (uint32_t s = 0; s < early; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, blockDim.x / kWarp);
    }
    barrier_init(arrived, 1);
    barrier_init_fence();
    barrier_expect(arrived, (split - 1) * own_octets * warps_with_rows * (kWarp * 16));
    const uint32_t bias_bytes = e.bias != nullptr ? min(kColumns, e.outputs - first_output) * 4 : 0;
#pragma unroll 1
    for (uint32_t b = 0; b < early; ++b) {
      barrier_expect(full + 8 * b, stage_bytes + (b == 0 ? bias_bytes : 0));
      load_weights(b, b);
    }
    if (bias_bytes != 0) load_bytes(shared_address(biases), e.bias + first_output, bias_bytes, full);
#pragma unroll 1
    for (uint32_t b = early; b < blocks; ++b) prefetch_box(&weight_map, (first_block + b) * kBlockInputs, first_output);
  }
  if (e.bias == nullptr && threadIdx.x < kColumns) biases[threadIdx.x] = 0;
  __syncthreads();
  if (split > 1) cluster_arrive_relaxed();  // what other blocks write to is ready; waited for when there are sums

  // A thread has two rows, and of each of the block's octets two neighbouring outputs.
  const uint32_t first_row = first_token + warp * 16 + lane / 4;
  const uint32_t in_octet = lane % 4 * 2;
  wait_for_inputs();
  if (loads) {
#pragma unroll 1
    for (uint32_t b = 0; b < early; ++b) load_tokens(b, b);
  }
  __syncwarp();
  // What is read besides is asked for with the last products, and is there when they have been added up. The rows'
  // positions are on their way until then.
  const uint32_t own_positions = shared_address(positions + threadIdx.x * 2);
  if constexpr (kRope) {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i)
      copy_4(own_positions + 4 * i, e.positions + first_row + 8 * i, first_row + 8 * i < e.rows);
  }
  const auto copy_extra = [&] {
    const float* from[2] = {e.residual + uint64_t(first_row) * e.outputs,
                            e.residual + uint64_t(first_row + 8) * e.outputs};
    if constexpr (kRope) {
      wait_for_copies();
      const uint2 at = load_shared_words2(own_positions);
      from[0] = e.table + at.x * e.head_dim, from[1] = e.table + at.y * e.head_dim;
    }
#pragma unroll 1
    for (uint32_t octet = 0; octet < own_octets; ++octet) {
      const uint32_t output = first_output + (part + octet * split) * 8 + in_octet;
      const uint32_t at = kRope ? in_head(e, output) : output;
      const bool is_output = output < (kRope ? 2 * e.width : e.outputs);
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const bool exists = first_row + 8 * i < e.rows && is_output && plan.has_extra;
        copy_8(own_extra + octet * octet_bytes + i * 8, from[i] + at, exists);
      }
    }
  };

  // The products.
  float sums[kColumns / 2];
  uint32_t stage = 0, parity = 0, before = 0, parity_before = 0;
#pragma unroll 1
  for (uint32_t b = 0; b < blocks; ++b) {
    barrier_wait(full + 8 * stage, parity);
    const uint64_t x = descriptor(stages + stage * stage_bytes + threadIdx.x / 128 * (64 * kBlockRowBytes));
    const uint64_t weight = descriptor(stages + stage * stage_bytes + plan.box_rows * kBlockRowBytes);
    wgmma_fence();
#pragma unroll
    for (uint32_t i = 0; i < kBlockInputs / 16; ++i)
      Wgmma<T, kColumns>::run(sums, x + i * kStepDescriptor, weight + i * kStepDescriptor, b + i);
    wgmma_commit();
    if ((kWide || kRope) && b + 1 == blocks) copy_extra();
    wgmma_wait<1>();
    // Only a stage that will be filled again is given back: all arrivals are waited for before the block ends.
    if (b != 0 && b - 1 + plan.stages < blocks) {
      if (lane == 0) barrier_arrive(empty + 8 * before);
      if (loads) {
        barrier_wait(empty + 8 * before, parity_before);
        barrier_expect(full + 8 * before, stage_bytes);
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
  if (warp >= warps_with_rows) return;
  const uint32_t thread_sums = all_sums + threadIdx.x * 16;
  const uint32_t part_bytes = plan.octets * octet_bytes;
  uint32_t owner = 0, to = thread_sums + part * part_bytes;
#pragma unroll
  for (uint32_t j = 0; j < kOctets; ++j) {
    if (owner == part)
      store_shared4(to, sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]);
    else
      store_async4(in_block(to, owner), sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3],
                   in_block(arrived, owner));
    if (++owner == split) owner = 0, to += octet_bytes;
  }
  wait_for_copies();
  if (split > 1) barrier_wait(arrived, 0);

  // All that the loop needs is at hand: it is run a few times, by few warps, which cannot hide each other's waiting.
  constexpr uint32_t kBytes = kWide ? 4 : 2;  // of an element of y
  const uint32_t first_own = part * 8 + in_octet, step = split * 8;
  const bool first_exists = first_row < e.rows, second_exists = first_row + 8 < e.rows;
  const uint64_t next_row = uint64_t(e.width) * 8 * kBytes, next_part = uint64_t(e.rows - 1) * e.width * kBytes;
  std::byte* y = static_cast<std::byte*>(e.y) + (uint64_t(first_row) * e.width + first_output + first_own) * kBytes;
  uint32_t sums_at = thread_sums, extra_at = own_extra, output = first_output + first_own;
  uint32_t bias_at = shared_address(biases + first_own);
#pragma unroll 2
  for (uint32_t octet = 0; octet < own_octets; ++octet) {
    float4 z = load_shared4(sums_at);
    const float2 bias = load_shared2(bias_at);
#pragma unroll 1
    for (uint32_t p = 1, at = sums_at + part_bytes; p < split; ++p, at += part_bytes) z = add(z, load_shared4(at));
    z = add(z, {bias.x, bias.y, bias.x, bias.y});
    if constexpr (kKind == Kind::narrow_gelu) z = gelu(z);
    if constexpr (kWide) z = add(z, load_shared4(extra_at));
    std::byte* to = y;
    if constexpr (kRope) {
      const float4 angles = load_shared4(extra_at);
      if (output < 2 * e.width) z = turn(z, output < e.width ? e.q_scale : 1.0f, angles);
      to += part_of(e, output) * next_part;
    }
    const bool is_output = output < e.outputs;
    if constexpr (kWide) {
      if (is_output && first_exists) *reinterpret_cast<float2*>(to) = {z.x, z.y};
      if (is_output && second_exists) *reinterpret_cast<float2*>(to + next_row) = {z.z, z.w};
    } else {
      if (is_output && first_exists) *reinterpret_cast<uint32_t*>(to) = pack_pair<ResultOf<T, kKind>>(z.x, z.y);
      if (is_output && second_exists)
        *reinterpret_cast<uint32_t*>(to + next_row) = pack_pair<ResultOf<T, kKind>>(z.z, z.w);
    }
    sums_at += octet_bytes, extra_at += octet_bytes, bias_at += step * 4, output += step, y += step * kBytes;
  }
#endif
}

template <class T, Kind kKind, uint32_t... kTile>
MediumKernel medium_of(uint32_t tile, std::integer_sequence<uint32_t, kTile...>) {
  MediumKernel kernel = nullptr;
  ((tile == kTile ? void(kernel = medium<T, kMediumColumns[kTile], kKind>) : void()), ...);
  return kernel;
}

template <class T>
MediumKernel medium_of(uint32_t tile, Kind kind) {
  constexpr std::make_integer_sequence<uint32_t, kMediumTileCount> kTiles{};
  switch (kind) {
    case Kind::wide: return medium_of<T, Kind::wide>(tile, kTiles);
    case Kind::narrow: return medium_of<T, Kind::narrow>(tile, kTiles);
    case Kind::narrow_gelu: return medium_of<T, Kind::narrow_gelu>(tile, kTiles);
    case Kind::rope: return medium_of<T, Kind::rope>(tile, kTiles);
    default: return nullptr;
  }
}

}  // namespace turboesm::cuda::hopper
