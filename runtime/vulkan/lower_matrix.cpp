#include "runtime/vulkan/lower_matrix.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "runtime/vulkan/linear_rates.h"
#include "runtime/vulkan/lower_tools.h"

namespace turboesm::vulkan {
namespace {

constexpr uint32_t kMatrix = 16;  // rows, columns and depth of a cooperative matrix
constexpr uint32_t kEights = 8;   // 16-bit elements in 16 bytes, the unit of all copies
constexpr uint32_t kFours = 4;    // fp32 elements in 16 bytes
constexpr uint32_t kVectorBytes = 16;
constexpr uint32_t kBand = 8;           // tile rows that run side by side: shared rows in the level-two cache
constexpr uint32_t kTypicalUnits = 64;  // compute units of a device that does not say

// What remained of 36 tiles, compared on an H200 over 34 shapes (rows 34 to 16384, the layers of 8M to 3B), as long as
// each tile taken away cost nothing: with the cost below the choice is 2 to 3 % slower than the best of all on average.
// And of 21 more for many rows, the one of four subgroups of 64 x 64: the fewest reads of shared memory for a product,
// and two workgroups on a compute unit, which do not wait for each other's barriers. Their rates are in rates/;
// `turboesm bench linear --variants` compares all of them for one shape.
constexpr LinearTile kLinearTiles[] = {
    // bm, bn, bk, wm, wn, wk, stages, prefetch, drain
    {16, 32, 256, 1, 1, 8, 1, 1, 1},  {32, 32, 256, 1, 1, 8, 1, 1, 2},  {32, 64, 128, 2, 2, 2, 1, 2, 1},
    {64, 64, 64, 2, 2, 1, 1, 1, 2},   {64, 64, 128, 2, 2, 2, 1, 1, 2},  {64, 128, 64, 2, 2, 1, 1, 1, 1},
    {80, 64, 128, 1, 2, 4, 1, 1, 2},  {128, 128, 64, 2, 4, 1, 1, 1, 2}, {160, 128, 64, 2, 4, 1, 1, 1, 2},
    {128, 128, 64, 2, 2, 1, 1, 1, 1},
};
constexpr uint32_t kSplits[] = {1, 2, 3, 4, 6, 8};

// The first that fits decides the kernel and the keys of a block; how many queries share a block does not change any
// result.
constexpr AttentionTile kAttentionTiles[] = {
    // matrix2, subgroups, rows, keys
    {true, 4, 2, 32},  {true, 4, 1, 32},  {false, 4, 1, 32}, {false, 8, 1, 32},
    {false, 2, 1, 32}, {false, 4, 1, 64}, {false, 2, 1, 64},
};

constexpr uint32_t divide_up(uint32_t value, uint32_t divisor) { return value / divisor + (value % divisor != 0); }

// A count that the kernels index with 32 bits.
bool addressable(uint64_t elements, uint32_t per_vector) {
  return elements / per_vector <= std::numeric_limits<uint32_t>::max();
}

uint64_t workgroups(const Product& op, const LinearTile& tile, uint32_t splits) {
  return uint64_t(divide_up(op.rows, tile.bm)) * divide_up(op.outputs, tile.bn) * splits;
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
  const uint32_t slices = tile.wm * tile.wn * tile.wk * tile.drain * kMatrix * (tile.bn / tile.wn / kFours + 1);
  // And the rows' places in RoPE's table, and the count of workgroups that were there before.
  return (std::max(steps, slices) + divide_up(tile.bm, kFours) + 1) * kVectorBytes;
}

uint32_t shared_bytes(const AttentionTile& tile, uint32_t head_dim) {
  const uint32_t row = divide_up(head_dim, kMatrix) * (kMatrix / kEights) + 1;
  if (tile.matrix2) return 2 * 2 * tile.keys * row * kVectorBytes;
  const uint32_t queries = tile.subgroups * kMatrix * row;
  const uint32_t blocks = 2 * tile.keys * row + tile.subgroups * kMatrix * (tile.keys / kFours + 1);
  return std::max(queries, blocks) * kVectorBytes;
}

bool suits(const Product& op, const Traits& traits) {
  const bool f32_result = op.y.dtype == DType::f32;
  return has_matrix_unit(op.x.dtype, traits) && op.rows > 0 && op.outputs > 0 && op.weight.dtype == op.x.dtype &&
         op.inputs % kEights == 0 && (f32_result || op.outputs % kFours == 0) &&
         addressable(uint64_t(op.rows) * op.inputs, kEights) &&
         addressable(uint64_t(op.outputs) * op.inputs, kEights) &&
         addressable(uint64_t(op.rows) * op.outputs, op.outputs % kFours == 0 ? kFours : 1);
}

bool suits(const Attention& op, const Traits& traits) {
  constexpr uint32_t kMaxHeadDim = 128;  // beyond, the sums no longer fit in registers
  return has_matrix_unit(op.q.dtype, traits) && op.out.dtype != DType::f32 && op.head_dim % kEights == 0 &&
         op.head_dim <= kMaxHeadDim && op.heads <= kMaxGroups && op.sequences <= kMaxGroups &&
         addressable(uint64_t(op.tokens) * op.heads * op.head_dim, kEights);
}

// linear_many_coopmat.comp's tile, subgroups, and inputs of a step.
constexpr uint32_t kManyTile = 128, kManySubgroups = 4, kManyInputs = 64;

bool takes_many(const Product& op, const Traits& traits) {
  constexpr uint32_t kSharedBytes = 2 * kManyTile * (kManyInputs / kEights + 1) * kVectorBytes + kManyTile * 4;
  const uint32_t threads = kManySubgroups * matrix_subgroup_size(traits);
  return suits(op, traits) && op.inputs > 0 && op.inputs % kManyInputs == 0 && op.rows >= kManyTile &&
         op.outputs >= kManyTile && op.outputs % kFours == 0 && threads != 0 &&
         threads <= traits.max_workgroup_invocations && kSharedBytes <= traits.max_shared_bytes;
}

bool is_many(const LinearTile& tile) {
  return tile.bm == kManyTile && tile.bn == kManyTile && tile.bk == kManyInputs &&
         tile.wm * tile.wn * tile.wk == kManySubgroups;
}

// Microseconds that the product takes by a tile of this rate. Where workgroups share a tile, their partial sums go
// through memory.
double cost(const Product& op, const Traits& traits, const LinearTile& tile, const TileRate& rate, uint32_t splits) {
  constexpr double kJoin = 0.95, kPerPartialByte = 0.55e-6;  // the last workgroup's additions, on an H200
  // The rate of that tile is linear_many_coopmat.comp's, which takes it where it can.
  constexpr double kWithoutMany = 1.25;
  const double slower = is_many(tile) && (splits > 1 || !takes_many(op, traits)) ? kWithoutMany : 1;
  const uint32_t steps = divide_up(divide_up(op.inputs, tile.bk), splits);
  const double time = slower * tile_microseconds(linear_rates(traits.device_class).launch, rate,
                                                 workgroups(op, tile, splits), units(traits), steps);
  return splits == 1 ? time : time + kJoin + kPerPartialByte * 8.0 * op.rows * op.outputs * splits;
}

// linear_short_coopmat.comp's tile: as many rows as outputs, by so many subgroups, and all inputs at once.
constexpr uint32_t kShortTile = 128, kShortSubgroups = 4;

uint32_t short_shared_bytes(uint32_t inputs) {
  const uint32_t operand = kShortTile * (inputs / kEights + 1);
  const uint32_t slices = kShortSubgroups * kMatrix * (kShortTile / kShortSubgroups / kFours + 2);
  return (operand + std::max(operand, slices)) * kVectorBytes;
}

uint64_t short_workgroups(const Product& op) {
  return uint64_t(divide_up(op.rows, kShortTile)) * divide_up(op.outputs, kShortTile);
}

// Whether that kernel can: a product without an epilogue, of whole matrices of inputs, and at least a tile. Beyond 64
// inputs it has not been compared with the others, whose rates know nothing of the way of y to memory.
bool takes_short(const Product& op, const Traits& traits) {
  constexpr uint32_t kMostInputs = 64;
  const uint32_t threads = kShortSubgroups * matrix_subgroup_size(traits);
  return suits(op, traits) && op.y.dtype == DType::f32 && !op.bias && !op.residual && !op.gelu && op.head_dim == 0 &&
         op.inputs > 0 && op.inputs % kMatrix == 0 && op.inputs <= kMostInputs && op.rows >= kShortTile &&
         op.outputs >= kShortTile && op.outputs % kFours == 0 && divide_up(op.rows, kShortTile) <= kMaxGroups &&
         threads != 0 && threads <= traits.max_workgroup_invocations &&
         short_shared_bytes(op.inputs) <= traits.max_shared_bytes;
}

Dispatch lower_short(const Product& op, const Traits& traits) {
  struct Push {
    uint64_t x, weight, y;
    uint32_t rows, outputs;
  };
  const uint32_t subgroup = matrix_subgroup_size(traits);
  Dispatch dispatch;
  dispatch.shader = op.x.dtype == DType::bf16 ? "linear_short_coopmat_bf16" : "linear_short_coopmat";
  dispatch.constants = {id_of(op.y.dtype), kShortSubgroups * subgroup, subgroup, op.inputs};
  dispatch.subgroup_size = subgroup;
  dispatch.groups = {divide_up(op.outputs, kShortTile), divide_up(op.rows, kShortTile), 1};
  dispatch.set_push(Push{address_of(op.x), address_of(op.weight), address_of(op.y), op.rows, op.outputs});
  return dispatch;
}

// In linear_coopmat.comp and linear_many_coopmat.comp.
uint32_t flags_of(const Product& op) {
  enum : uint32_t { kHasBias = 1, kHasResidual = 2, kHasGelu = 4, kResultIsF32 = 8 };
  return (op.bias ? kHasBias : 0u) | (op.residual ? kHasResidual : 0u) | (op.gelu ? kHasGelu : 0u) |
         (op.y.dtype == DType::f32 ? kResultIsF32 : 0u);
}

Dispatch lower_many(const Product& op, const Traits& traits) {
  struct Push {
    uint64_t x, weight, bias, residual, y, positions, table;
    uint32_t rows, outputs;
    float q_scale;
  };
  const uint32_t subgroup = matrix_subgroup_size(traits);
  Dispatch dispatch;
  dispatch.shader = op.x.dtype == DType::bf16 ? "linear_many_coopmat_bf16" : "linear_many_coopmat";
  dispatch.constants = {id_of(op.y.dtype), kManySubgroups * subgroup, subgroup, op.inputs, kBand, op.head_dim,
                        flags_of(op)};
  dispatch.subgroup_size = subgroup;
  dispatch.groups = {divide_up(op.outputs, kManyTile), divide_up(op.rows, kManyTile), 1};
  dispatch.set_push(Push{address_of(op.x), address_of(op.weight), address_of(op.bias), address_of(op.residual),
                         address_of(op.y), address_of(op.positions), address_of(op.table), op.rows, op.outputs,
                         op.q_scale});
  return dispatch;
}

uint64_t workgroups(const Attention& op, const AttentionTile& tile) {
  return uint64_t(divide_up(op.max_length, tile.subgroups * tile.rows * kMatrix)) * op.heads * op.sequences;
}

// The first tile that occupies every compute unit twice over, or the last one. All tiles considered are of one kernel
// and have equally many keys, a choice by the device, head_dim and types alone: so that a result does not depend on the
// batch.
const AttentionTile* choose_tile(const Attention& op, const Traits& traits) {
  const AttentionTile* chosen = nullptr;
  for (const AttentionTile& tile : kAttentionTiles) {
    const bool agrees = !chosen || (tile.matrix2 == chosen->matrix2 && tile.keys == chosen->keys);
    if (!agrees || !fits(tile, op, traits)) continue;
    chosen = &tile;
    if (workgroups(op, tile) >= 2 * uint64_t(units(traits))) break;
  }
  return chosen;
}

}  // namespace

std::string LinearTile::name() const { return fmt::format("{}x{}x{}, {} subgroups", bm, bn, bk, wm * wn * wk); }

std::span<const LinearTile> linear_tiles() { return kLinearTiles; }

bool fits(const LinearTile& tile, const Traits& traits) {
  const uint32_t threads = tile.wm * tile.wn * tile.wk * matrix_subgroup_size(traits);
  const uint32_t row_step = threads / (tile.bk / kEights);  // rows that the threads copy at a time
  return threads != 0 && threads <= traits.max_workgroup_invocations && shared_bytes(tile) <= traits.max_shared_bytes &&
         threads % (tile.bk / kEights) == 0 && threads % (tile.bn / kFours) == 0 &&
         tile.wk * matrix_subgroup_size(traits) % (tile.bn / tile.wn / kFours) == 0 && tile.bm % row_step == 0 &&
         tile.bn % row_step == 0;
}

uint32_t max_splits(const Product& op, const Traits& traits, const LinearTile& tile) {
  const uint64_t tiles = workgroups(op, tile, 1);
  if (tiles > kScratchCounters || traits.scratch_bytes <= kScratchCounters * sizeof(uint32_t)) return 1;
  const uint64_t room =
      (traits.scratch_bytes - kScratchCounters * sizeof(uint32_t)) / (tiles * tile.bm * tile.bn * sizeof(float));
  const uint32_t steps = divide_up(op.inputs, tile.bk);
  return uint32_t(std::clamp<uint64_t>(room, 1, std::max(1u, steps / 2)));
}

Dispatch lower_matrix_product_with(const Product& op, const Traits& traits, const LinearTile& tile, uint32_t splits) {
  struct Push {
    uint64_t x, weight, bias, residual, y, positions, table, partials, counters;
    uint32_t rows, inputs, outputs;
    float q_scale;
  };
  if (is_many(tile) && splits == 1 && takes_many(op, traits)) return lower_many(op, traits);
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
                        kBand,
                        splits,
                        tile.drain,
                        op.head_dim,
                        flags_of(op)};
  dispatch.subgroup_size = subgroup;
  dispatch.uses_scratch = splits > 1;
  dispatch.groups = {divide_up(op.outputs, tile.bn), divide_up(op.rows, tile.bm), splits};
  dispatch.set_push(Push{address_of(op.x), address_of(op.weight), address_of(op.bias), address_of(op.residual),
                         address_of(op.y), address_of(op.positions), address_of(op.table),
                         traits.scratch_address + kScratchCounters * sizeof(uint32_t), traits.scratch_address, op.rows,
                         op.inputs, op.outputs, op.q_scale});
  return dispatch;
}

std::optional<Dispatch> lower_matrix_product(const Product& op, const Traits& traits) {
  if (!suits(op, traits)) return std::nullopt;
  if (takes_short(op, traits) && short_workgroups(op) >= units(traits)) return lower_short(op, traits);
  const LinearTile* best = nullptr;
  uint32_t best_splits = 1;
  double least = 0;
  for (const LinearTile& tile : kLinearTiles) {
    const TileRate* rate = find_rate(traits.device_class, tile.name());
    if (!rate || !fits(tile, traits) || divide_up(op.rows, tile.bm) > kMaxGroups) continue;
    for (const uint32_t splits : kSplits) {
      if (splits > max_splits(op, traits, tile)) break;
      const double time = cost(op, traits, tile, *rate, splits);
      if (best && time >= least) continue;
      best = &tile;
      best_splits = splits;
      least = time;
    }
  }
  if (!best) return std::nullopt;
  return lower_matrix_product_with(op, traits, *best, best_splits);
}

std::span<const AttentionTile> attention_tiles() { return kAttentionTiles; }

bool fits(const AttentionTile& tile, const Attention& op, const Traits& traits) {
  constexpr uint32_t kMaxTwoRows = 64;  // head_dim beyond which the sums of two rows no longer fit in registers
  const uint32_t subgroup = matrix_subgroup_size(traits);
  const bool suits_kernel = !tile.matrix2 || (traits.matrix2 && (tile.rows == 1 || op.head_dim <= kMaxTwoRows));
  return suits_kernel && subgroup != 0 && tile.subgroups * subgroup <= traits.max_workgroup_invocations &&
         shared_bytes(tile, op.head_dim) <= traits.max_shared_bytes;
}

Dispatch lower_matrix_attention_with(const Attention& op, const Traits& traits, const AttentionTile& tile) {
  struct Push {
    uint64_t q, k, v, cu_seqlens, out;
    uint32_t heads;
  };
  const uint32_t subgroup = matrix_subgroup_size(traits);

  const bool bf16 = op.q.dtype == DType::bf16;

  Dispatch dispatch;
  dispatch.shader = tile.matrix2 ? (bf16 ? "attention_coopmat2_bf16" : "attention_coopmat2")
                                 : (bf16 ? "attention_coopmat_bf16" : "attention_coopmat");
  dispatch.constants = {id_of(op.out.dtype), tile.subgroups * subgroup, subgroup, op.head_dim, tile.keys};
  if (tile.matrix2) dispatch.constants.push_back(tile.rows);
  dispatch.constants.push_back(id_of(op.q.dtype));
  dispatch.subgroup_size = subgroup;
  dispatch.groups = {divide_up(op.max_length, tile.subgroups * tile.rows * kMatrix), op.heads, op.sequences};
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

std::vector<Variant> matrix_variants(const Product& op, const Traits& traits) {
  std::vector<Variant> all;
  if (!suits(op, traits)) return all;
  if (takes_short(op, traits))
    all.push_back({fmt::format("short {0}x{0}, {1} subgroups", kShortTile, kShortSubgroups), lower_short(op, traits)});
  for (const LinearTile& tile : kLinearTiles) {
    if (!fits(tile, traits) || divide_up(op.rows, tile.bm) > kMaxGroups) continue;
    for (const uint32_t splits : kSplits) {
      if (splits > max_splits(op, traits, tile)) break;
      all.push_back(
          {fmt::format("{}, 1/{}", tile.name(), splits), lower_matrix_product_with(op, traits, tile, splits)});
    }
  }
  return all;
}

std::vector<ProductTile> matrix_tiles(const Product& op, const Traits& traits) {
  std::vector<ProductTile> all;
  if (!suits(op, traits)) return all;
  for (const LinearTile& tile : kLinearTiles)
    if (fits(tile, traits) && divide_up(op.rows, tile.bm) <= kMaxGroups)
      all.push_back(
          {tile.name(), units(traits), divide_up(op.inputs, tile.bk), lower_matrix_product_with(op, traits, tile, 1)});
  return all;
}

std::vector<Variant> matrix_variants(const Attention& op, const Traits& traits) {
  std::vector<Variant> all;
  if (!suits(op, traits)) return all;
  for (const AttentionTile& tile : kAttentionTiles) {
    if (!fits(tile, op, traits)) continue;
    all.push_back({fmt::format("{}{}x{}, {} subgroups", tile.matrix2 ? "matrix2 " : "",
                               tile.subgroups * tile.rows * kMatrix, tile.keys, tile.subgroups),
                   lower_matrix_attention_with(op, traits, tile)});
  }
  return all;
}

}  // namespace turboesm::vulkan
