// Products of many rows: y = epilogue(x weight^T), x [rows, inputs], weight [outputs, inputs], for Hopper.
//
// Blocks stay on their multiprocessor and walk through tiles of y. A block is three warpgroups: one thread of the first
// keeps a ring of stages filled by TMA (a stage is a tile's 64 columns of x and of weight), the other two multiply with
// wgmma, their sums in registers: M is rows of x, N is outputs.
//   ping-pong: each of the two has a tile of its own, and the right to multiply passes to and fro, so that one's
//     epilogue runs while the other multiplies.
//   cooperative: both work on one tile, each with half of its rows.
// A cluster of two blocks works on tiles one below the other, which share their weights: each loads half of them into
// both. Tiles are walked through in bands of rows, column by column, so that what runs at one time reads few different
// rows of either operand (L2).
#pragma once

#include "runtime/cuda/product_hopper_epilogue.cuh"
#include "runtime/cuda/product_hopper_ptx.cuh"

namespace turboesm::cuda::hopper {

inline constexpr uint32_t kGroup = 128;                              // threads of a warpgroup
inline constexpr uint32_t kFewRegisters = 24, kManyRegisters = 240;  // of a thread that loads, that multiplies
inline constexpr uint32_t kTurn = 1;  // the first of two named barriers: it is the warpgroup's turn to multiply

struct LargePosition {
  uint32_t row, column;  // the tile's first
};

// The tile of the n-th piece of work: a row group and a column of tiles.
template <uint32_t kRows, uint32_t kColumns>
__device__ __forceinline__ LargePosition tile_position(const LargePlan& plan, uint32_t n, uint32_t rank) {
  const uint32_t band = n / (plan.band * plan.column_tiles), first = band * plan.band;
  const uint32_t height = min(plan.band, plan.row_groups - first), in_band = n - first * plan.column_tiles;
  const uint32_t column = in_band / height, group = first + in_band - column * height;
  return {(group * plan.cluster + rank) * kRows, column * kColumns};
}

// The epilogue of a warpgroup's tile. Weights lie in shared memory in such an order (kDealt) that a lane's sums of four
// neighbouring blocks of 8 columns belong to eight neighbouring outputs: those from 32 b + 8 (lane % 4) on of the b-th
// four, which it takes through the epilogue step by step, for one of its rows after the other. What is read besides
// (`extra`) is asked for kAhead steps ahead; the first before the products.
template <class T, Kind kKind, uint32_t kSubtiles, uint32_t kColumns>
struct TileEpilogue {
  static constexpr uint32_t kRowsOfLane = 2 * kSubtiles, kSteps = kColumns / kDealt * kRowsOfLane;
  static constexpr uint32_t kAhead = kSubtiles * kColumns > 256 ? 1 : 3;  // as registers allow
  static constexpr bool kWide = kKind == Kind::wide || kKind == Kind::wide_gelu;
  static constexpr bool kRope = kKind == Kind::rope;
  static constexpr bool kGelu = kKind == Kind::wide_gelu || kKind == Kind::narrow_gelu;
  using Y = ResultOf<T, kKind>;

  const Epilogue& e;
  uint32_t row, column;                             // of the lane: its first row, its first output
  uint32_t left;                                    // outputs from there on
  uint32_t angles_of_row[kRope ? kRowsOfLane : 1];  // where its angles begin
  float4 extra[kAhead + 1][2];

  __device__ __forceinline__ TileEpilogue(const Epilogue& epilogue, uint32_t first_row, uint32_t first_column)
      : e(epilogue) {
    const uint32_t warp = threadIdx.x / kWarp % 4, lane = threadIdx.x % kWarp;
    row = first_row + warp * 16 + lane / 4;
    column = first_column + lane % 4 * 8;
    left = e.outputs > column ? e.outputs - column : 0;
    if constexpr (kRope) {
#pragma unroll
      for (uint32_t r = 0; r < kRowsOfLane; ++r)
        angles_of_row[r] = row_of(r) < e.rows ? uint32_t(e.positions[row_of(r)]) * e.head_dim : 0;
    }
#pragma unroll
    for (uint32_t n = 0; n < kAhead; ++n) load_extra(n);
  }

  // Step n takes the row n % kRowsOfLane through the outputs from column_of(n) on, counted from `column`.
  __device__ __forceinline__ uint32_t row_of(uint32_t n) const {
    const uint32_t r = n % kRowsOfLane;
    return row + r % 2 * 8 + r / 2 * 64;
  }
  static __device__ __forceinline__ constexpr uint32_t column_of(uint32_t n) { return n / kRowsOfLane * kDealt; }
  __device__ __forceinline__ bool exists(uint32_t n) const { return row_of(n) < e.rows && column_of(n) < left; }

  // Step n's place in y or in the residual, counted from the lane's first.
  __device__ __forceinline__ uint64_t place_of(uint32_t n) const {
    return uint64_t(row_of(n) - row) * e.width + column_of(n);
  }

  __device__ __forceinline__ void load_extra(uint32_t n) {
    float4(&to)[2] = extra[n % (kAhead + 1)];
    const auto load = [&](const float* from) {
      to[0] = reinterpret_cast<const float4*>(from)[0], to[1] = reinterpret_cast<const float4*>(from)[1];
    };
    if constexpr (kWide) {
      to[0] = to[1] = {};
      if (e.residual != nullptr && exists(n)) load(e.residual + (uint64_t(row) * e.width + column) + place_of(n));
    } else if constexpr (kRope) {
      const uint32_t at = column + column_of(n);
      to[0] = to[1] = {1, 0, 1, 0};  // v is not turned
      if (at < 2 * e.width) load(e.table + angles_of_row[n % kRowsOfLane] + in_head(e, at));
    }
  }

  __device__ __forceinline__ void run(const float (&sums)[kSubtiles][kColumns / 2]) {
    Y* const y = static_cast<Y*>(e.y) + (uint64_t(row) * e.width + column);
    float4 bias[2];
    float scale = 1;
    uint64_t before = 0;  // elements of y that the parts before the outputs' take besides
#pragma unroll
    for (uint32_t n = 0; n < kSteps; ++n) {
      const uint32_t r = n % kRowsOfLane, at = column + column_of(n);
      if (r == 0) {
        bias[0] = bias[1] = {};
        if (e.bias != nullptr && column_of(n) < left) {
          bias[0] = __ldg(reinterpret_cast<const float4*>(e.bias + at));
          bias[1] = __ldg(reinterpret_cast<const float4*>(e.bias + at) + 1);
        }
        if constexpr (kRope) {
          const uint32_t part = part_of(e, at);
          scale = part == 0 ? e.q_scale : 1.0f;
          before = uint64_t(part) * (e.rows - 1) * e.width;
        }
      }
      if (n + kAhead < kSteps) load_extra(n + kAhead);
      float4 z[2];
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const float* const sum = &sums[r / 2][column_of(n) / 2 + i * 8 + r % 2 * 2];
        z[i] = add({sum[0], sum[1], sum[4], sum[5]}, bias[i]);
        if constexpr (kGelu) z[i] = gelu(z[i]);
        if constexpr (kWide) z[i] = add(z[i], extra[n % (kAhead + 1)][i]);
        if constexpr (kRope) z[i] = turn(z[i], scale, extra[n % (kAhead + 1)][i]);
      }
      if (exists(n)) store8(y + before + place_of(n), z[0], z[1]);
    }
  }
};

template <class T, uint32_t kTile, Kind kKind>
__global__ void __launch_bounds__(kLargeThreads, 1)
    large(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
          const __grid_constant__ Epilogue e, const __grid_constant__ LargePlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr LargeTile kT = kLargeTiles[kTile];
  constexpr uint32_t kSubtiles = kT.subtiles, kRows = kT.rows, kColumns = kT.columns, kStages = kT.stages;
  constexpr uint32_t kStageBytes = kT.stage_bytes, kXBytes = kRows * kBlockRowBytes;
  constexpr uint32_t kHalf = kColumns / 2 / kDealt, kHalfBytes = kColumns / 2 * kBlockRowBytes;
  constexpr bool kPingPong = kT.ping_pong;

  extern __shared__ uint8_t dynamic[];
  __shared__ alignas(8) uint64_t full_barriers[kStages], empty_barriers[kStages];
  const uint32_t stages = (shared_address(dynamic) + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
  const uint32_t full = shared_address(full_barriers), empty = shared_address(empty_barriers);
  const uint32_t rank = plan.cluster == 1 ? 0 : cluster_rank();

  if (threadIdx.x == 0) {
    prefetch_map(&x_map);
    prefetch_map(&weight_map);
    for (uint32_t s = 0; s < kStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, (kPingPong ? 4 : 8) * plan.cluster);  // every warp that reads the stage
    }
    barrier_init_fence();
  }
  let_next_start();
  if (plan.cluster > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
  const uint32_t work = plan.row_groups * plan.column_tiles;
  const uint32_t first = blockIdx.x / plan.cluster, step = gridDim.x / plan.cluster;
  const uint32_t group = threadIdx.x / kGroup;

  const auto load_weights = [&](uint32_t stage, const LargePosition& tile, uint32_t k) {
    const uint32_t to = stages + stage * kStageBytes + kXBytes, barrier = full + 8 * stage, column = k * kBlockInputs;
    barrier_expect(barrier, kStageBytes);
    if (plan.cluster > 1) {
      load_dealt_all(to + rank * kHalfBytes, &weight_map, column, tile.column / kDealt + rank * kHalf, barrier, 3);
    } else {
      load_dealt(to, &weight_map, column, tile.column / kDealt, barrier);
      load_dealt(to + kHalfBytes, &weight_map, column, tile.column / kDealt + kHalf, barrier);
    }
  };
  // The first tile's weights are on their way while the kernel before still runs.
  const uint32_t early = first < work ? min(kStages, plan.blocks_k) : 0;
  if (threadIdx.x == 0 && early > 0) {
    const LargePosition tile = tile_position<kRows, kColumns>(plan, first, rank);
    for (uint32_t k = 0; k < early; ++k) load_weights(k, tile, k);
  }
  wait_for_inputs();

  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kFewRegisters));
    if (threadIdx.x == 0) {
      uint32_t stage = 0, parity = 1;  // an empty ring: the phase before the first counts as over
      for (uint32_t n = first; n < work; n += step) {
        const LargePosition tile = tile_position<kRows, kColumns>(plan, n, rank);
        for (uint32_t k = 0; k < plan.blocks_k; ++k) {
          if (n != first || k >= early) {
            barrier_wait(empty + 8 * stage, parity);
            load_weights(stage, tile, k);
          }
          load_box(stages + stage * kStageBytes, &x_map, k * kBlockInputs, tile.row, full + 8 * stage);
          if (++stage == kStages) stage = 0, parity ^= 1;
        }
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kManyRegisters));
    const uint32_t consumer = group - 1, lane = threadIdx.x % kWarp;
    const uint32_t tiles = first < work ? (work - first + step - 1) / step : 0;
    const uint32_t turns = kPingPong ? (tiles + 1) / 2 : tiles;
    if (kPingPong && consumer == 1 && turns != 0) named_arrive(kTurn, 2 * kGroup);

    for (uint32_t t = 0; t < turns; ++t) {
      const uint32_t n = kPingPong ? 2 * t + consumer : t;  // of the block's tiles
      const bool exists = n < tiles;
      const LargePosition tile = tile_position<kRows, kColumns>(plan, first + (exists ? n : 0) * step, rank);
      const uint32_t first_row = tile.row + (kPingPong ? 0 : consumer * 64 * kSubtiles);
      TileEpilogue<T, kKind, kSubtiles, kColumns> epilogue(e, exists ? first_row : e.rows, tile.column);
      float sums[kSubtiles][kColumns / 2];

      if constexpr (kPingPong) named_sync(kTurn + consumer, 2 * kGroup);
      if (exists) {
        const uint32_t loads = n * plan.blocks_k;  // of the ring, before this tile
        uint32_t stage = loads % kStages, parity = loads / kStages % 2, before = 0;
        const uint32_t x_offset = kPingPong ? 0 : consumer * kSubtiles * 64 * kBlockRowBytes;
        for (uint32_t k = 0; k < plan.blocks_k; ++k) {
          barrier_wait(full + 8 * stage, parity);
          const uint64_t x = descriptor(stages + stage * kStageBytes + x_offset);
          const uint64_t weight = descriptor(stages + stage * kStageBytes + kXBytes);
          wgmma_fence();
#pragma unroll
          for (uint32_t i = 0; i < kBlockInputs / 16; ++i) {
#pragma unroll
            for (uint32_t s = 0; s < kSubtiles; ++s)
              Wgmma<T, kColumns>::run(sums[s], x + s * (64 * kBlockRowBytes >> 4) + i * kStepDescriptor,
                                      weight + i * kStepDescriptor, k + i);
          }
          wgmma_commit();
          wgmma_wait<1>();
          if (k != 0 && lane < plan.cluster) barrier_arrive_at(empty + 8 * before, lane);
          before = stage;
          if (++stage == kStages) stage = 0, parity ^= 1;
        }
        if (kPingPong && (consumer == 0 || t + 1 < turns)) named_arrive(kTurn + 1 - consumer, 2 * kGroup);
        wgmma_wait<0>();
        if (lane < plan.cluster) barrier_arrive_at(empty + 8 * before, lane);
        epilogue.run(sums);
      }
    }
  }
  // The other block of the cluster may still write to this one's shared memory or arrive at its barriers.
  if (plan.cluster > 1) {
    cluster_arrive();
    cluster_wait();
  }
#endif
}

template <class T, uint32_t kTile>
LargeKernel large_of(Kind kind) {
  switch (kind) {
    case Kind::wide: return large<T, kTile, Kind::wide>;
    case Kind::wide_gelu: return large<T, kTile, Kind::wide_gelu>;
    case Kind::narrow: return large<T, kTile, Kind::narrow>;
    case Kind::narrow_gelu: return large<T, kTile, Kind::narrow_gelu>;
    default: return large<T, kTile, Kind::rope>;
  }
}

template <class T>
LargeKernel large_of(uint32_t tile, Kind kind) {
  static_assert(kLargeTileCount == 4);
  switch (tile) {
    case 0: return large_of<T, 0>(kind);
    case 1: return large_of<T, 1>(kind);
    case 2: return large_of<T, 2>(kind);
    default: return large_of<T, 3>(kind);
  }
}

}  // namespace turboesm::cuda::hopper
