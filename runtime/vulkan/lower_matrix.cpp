#include "runtime/vulkan/lower_matrix.h"

#include <algorithm>
#include <limits>

namespace turboesm::vulkan {
namespace {

constexpr uint32_t kMatrix = 16;  // rows, columns and depth of a cooperative matrix
constexpr uint32_t kEights = 8;   // 16-bit elements in 16 bytes, the unit of all copies
constexpr uint32_t kFours = 4;    // fp32 elements in 16 bytes
constexpr uint32_t kVectorBytes = 16;
constexpr uint32_t kBand = 8;                  // tile rows that run side by side: shared rows in the level-two cache
constexpr uint32_t kGuaranteedGroups = 65535;  // per dimension, on any device
constexpr uint32_t kTypicalUnits = 64;         // compute units of a device that does not say

// Shared memory decides the large tiles: 48 KiB a workgroup is what NVIDIA reports, 32 KiB what is common to all. Of
// tiles with equal prospects the first is taken, so the order is one of preference. The rates are estimates from the
// shared-memory traffic of a product, not measurements.
constexpr LinearTile kLinearTiles[] = {
    // bm, bn, bk, wm, wn, wk, stages, prefetch, rate
    // Thousands of rows. 64 x 64 a subgroup: below that, shared memory feeds the matrix units too slowly.
    {128, 256, 32, 2, 4, 1, 1, 1, 100},
    {256, 128, 32, 4, 2, 1, 1, 1, 100},
    {128, 256, 16, 2, 4, 1, 2, 1, 100},
    {128, 128, 32, 2, 2, 1, 1, 1, 92},
    {128, 128, 32, 2, 2, 1, 2, 1, 92},
    {128, 256, 32, 2, 4, 1, 2, 1, 92},
    {128, 128, 64, 2, 4, 1, 1, 1, 85},
    // Hundreds of rows: more workgroups than compute units before anything else.
    {64, 128, 64, 2, 2, 1, 1, 1, 70},
    {128, 64, 64, 2, 2, 1, 1, 1, 70},
    {64, 64, 64, 2, 2, 2, 2, 2, 55},
    {64, 64, 128, 1, 2, 4, 1, 2, 55},
    {64, 64, 128, 2, 2, 2, 1, 1, 50},
    {64, 64, 64, 2, 2, 1, 2, 1, 50},
    {64, 64, 64, 2, 2, 1, 1, 1, 50},
    {80, 64, 128, 1, 2, 4, 1, 2, 55},
    {80, 64, 64, 1, 2, 2, 2, 2, 55},
    {32, 64, 128, 1, 2, 4, 1, 2, 38},
    {32, 64, 128, 2, 2, 2, 1, 2, 38},
    {32, 64, 64, 1, 2, 2, 2, 2, 36},
    // Tens of rows: bound by the weights' way from memory, so that loads in flight count.
    {32, 32, 128, 1, 1, 8, 1, 2, 22},
    {32, 32, 256, 1, 1, 8, 1, 1, 22},
    {32, 32, 128, 1, 1, 4, 1, 2, 21},
    {16, 64, 128, 1, 2, 4, 1, 2, 20},
    {16, 32, 256, 1, 1, 8, 1, 1, 11},
};

// The first that fits decides the keys of a block; how many queries share a block does not change any result.
constexpr AttentionTile kAttentionTiles[] = {{4, 64}, {8, 32}, {4, 32}, {2, 32}, {2, 64}};

constexpr uint32_t divide_up(uint32_t value, uint32_t divisor) { return value / divisor + (value % divisor != 0); }

// A count that the kernels index with 32 bits.
bool addressable(uint64_t elements, uint32_t per_vector) {
  return elements / per_vector <= std::numeric_limits<uint32_t>::max();
}

uint32_t units(const Traits& traits) { return traits.compute_units != 0 ? traits.compute_units : kTypicalUnits; }

bool has_matrix_unit(DType dtype, const Traits& traits) {
  return (dtype == DType::f16 && traits.matrix_f16) || (dtype == DType::bf16 && traits.matrix_bf16);
}

// 32 where it can be had (NVIDIA; AMD's wave32), else 64; 0: neither.
uint32_t matrix_subgroup_size(const Traits& traits) {
  for (const uint32_t size : {32u, 64u}) {
    if (traits.min_subgroup_size <= size && size <= traits.max_subgroup_size) return size;
  }
  return 0;
}

uint32_t shared_bytes(const LinearTile& tile) {
  const uint32_t steps = tile.stages * (tile.bm + tile.bn) * (tile.bk / kEights + 1);
  const uint32_t slices = tile.wm * tile.wn * tile.wk * kMatrix * (tile.bn / tile.wn / kFours + 1);
  return std::max(steps, slices) * kVectorBytes;
}

uint32_t shared_bytes(const AttentionTile& tile, uint32_t head_dim) {
  const uint32_t row = divide_up(head_dim, kMatrix) * (kMatrix / kEights) + 1;
  const uint32_t queries = tile.subgroups * kMatrix * row;
  const uint32_t blocks = 2 * tile.keys * row + tile.subgroups * kMatrix * (tile.keys / kFours + 1);
  return std::max(queries, blocks) * kVectorBytes;
}

bool suits(const Linear& op, const Traits& traits) {
  const bool f32_result = op.y.dtype == DType::f32;
  return has_matrix_unit(op.x.dtype, traits) && op.weight.dtype == op.x.dtype && op.inputs % kEights == 0 &&
         (f32_result || op.outputs % kFours == 0) &&
         addressable(uint64_t(op.rows) * op.inputs, kEights) &&
         addressable(uint64_t(op.outputs) * op.inputs, kEights) &&
         addressable(uint64_t(op.rows) * op.outputs, op.outputs % kFours == 0 ? kFours : 1);
}

bool suits(const Attention& op, const Traits& traits) {
  constexpr uint32_t kMaxHeadDim = 128;  // beyond, the sums no longer fit in registers
  return has_matrix_unit(op.q.dtype, traits) && op.out.dtype != DType::f32 && op.head_dim % kEights == 0 && op.head_dim <= kMaxHeadDim &&
         op.heads <= kGuaranteedGroups && op.sequences <= kGuaranteedGroups &&
         addressable(uint64_t(op.tokens) * op.heads * op.head_dim, kEights);
}

// Time of the whole product in tile areas at full rate: rounds of tiles over all compute units, each a tile long.
double cost(const Linear& op, const Traits& traits, const LinearTile& tile) {
  const uint64_t tiles = uint64_t(divide_up(op.rows, tile.bm)) * divide_up(op.outputs, tile.bn);
  const uint64_t rounds = (tiles + units(traits) - 1) / units(traits);
  return double(rounds) * tile.bm * tile.bn / tile.rate;
}

uint64_t workgroups(const Attention& op, const AttentionTile& tile) {
  return uint64_t(divide_up(op.max_length, tile.subgroups * kMatrix)) * op.heads * op.sequences;
}

// The largest workgroups that still occupy every compute unit twice over. All tiles considered have equally many keys,
// a choice by the device and head_dim alone: so that a result does not depend on the batch.
const AttentionTile* choose_tile(const Attention& op, const Traits& traits) {
  const AttentionTile* chosen = nullptr;
  for (const AttentionTile& tile : kAttentionTiles) {
    if (!fits(tile, op.head_dim, traits) || (chosen && chosen->keys != tile.keys)) continue;
    if (!chosen || workgroups(op, *chosen) < 2 * uint64_t(units(traits))) chosen = &tile;
  }
  return chosen;
}

}  // namespace

std::span<const LinearTile> linear_tiles() { return kLinearTiles; }

bool fits(const LinearTile& tile, const Traits& traits) {
  const uint32_t threads = tile.wm * tile.wn * tile.wk * matrix_subgroup_size(traits);
  const uint32_t row_step = threads / (tile.bk / kEights);  // rows that the threads copy at a time
  return threads != 0 && threads <= traits.max_workgroup_invocations && shared_bytes(tile) <= traits.max_shared_bytes &&
         threads % (tile.bk / kEights) == 0 && tile.bm % row_step == 0 && tile.bn % row_step == 0;
}

Dispatch lower_matrix_linear_with(const Linear& op, const Traits& traits, const LinearTile& tile) {
  struct Push {
    uint64_t x, weight, bias, residual, y;
    uint32_t rows, inputs, outputs, flags;
  };
  enum : uint32_t { kHasBias = 1, kHasResidual = 2, kHasGelu = 4, kResultIsF32 = 8 };  // as in the shader
  const uint32_t flags = (op.bias ? kHasBias : 0u) | (op.residual ? kHasResidual : 0u) | (op.gelu ? kHasGelu : 0u) |
                         (op.y.dtype == DType::f32 ? kResultIsF32 : 0u);
  const uint32_t subgroup = matrix_subgroup_size(traits);

  Dispatch dispatch;
  dispatch.shader = op.x.dtype == DType::bf16 ? "linear_coopmat_bf16" : "linear_coopmat";
  dispatch.constants = {uint32_t(op.y.dtype),
                        tile.wm * tile.wn * tile.wk * subgroup,
                        subgroup,
                        tile.bm,
                        tile.bn,
                        tile.bk,
                        tile.wm,
                        tile.wn,
                        tile.wk,
                        tile.stages,
                        tile.prefetch,
                        kBand};
  dispatch.subgroup_size = subgroup;
  dispatch.groups = {divide_up(op.outputs, tile.bn), divide_up(op.rows, tile.bm), 1};
  dispatch.set_push(Push{address_of(op.x), address_of(op.weight), address_of(op.bias), address_of(op.residual),
                         address_of(op.y), op.rows, op.inputs, op.outputs, flags});
  return dispatch;
}

std::optional<Dispatch> lower_matrix_linear(const Linear& op, const Traits& traits) {
  if (!suits(op, traits)) return std::nullopt;
  const LinearTile* best = nullptr;
  for (const LinearTile& tile : kLinearTiles) {
    if (!fits(tile, traits) || divide_up(op.rows, tile.bm) > kGuaranteedGroups) continue;
    if (!best || cost(op, traits, tile) < cost(op, traits, *best)) best = &tile;
  }
  if (!best) return std::nullopt;
  return lower_matrix_linear_with(op, traits, *best);
}

std::span<const AttentionTile> attention_tiles() { return kAttentionTiles; }

bool fits(const AttentionTile& tile, uint32_t head_dim, const Traits& traits) {
  const uint32_t subgroup = matrix_subgroup_size(traits);
  return subgroup != 0 && tile.subgroups * subgroup <= traits.max_workgroup_invocations &&
         shared_bytes(tile, head_dim) <= traits.max_shared_bytes;
}

Dispatch lower_matrix_attention_with(const Attention& op, const Traits& traits, const AttentionTile& tile) {
  struct Push {
    uint64_t q, k, v, cu_seqlens, out;
    uint32_t heads;
  };
  const uint32_t subgroup = matrix_subgroup_size(traits);

  Dispatch dispatch;
  dispatch.shader = op.q.dtype == DType::bf16 ? "attention_coopmat_bf16" : "attention_coopmat";
  dispatch.constants = {uint32_t(op.out.dtype), tile.subgroups * subgroup, subgroup, op.head_dim, tile.keys,
                        uint32_t(op.q.dtype)};
  dispatch.subgroup_size = subgroup;
  dispatch.groups = {divide_up(op.max_length, tile.subgroups * kMatrix), op.heads, op.sequences};
  dispatch.set_push(Push{address_of(op.q), address_of(op.k), address_of(op.v), address_of(op.cu_seqlens),
                         address_of(op.out), op.heads});
  return dispatch;
}

std::optional<Dispatch> lower_matrix_attention(const Attention& op, const Traits& traits) {
  if (!suits(op, traits)) return std::nullopt;
  const AttentionTile* tile = choose_tile(op, traits);
  if (!tile) return std::nullopt;
  return lower_matrix_attention_with(op, traits, *tile);
}

}  // namespace turboesm::vulkan
