// The host's side of Hopper's products: which variants there are, tensor maps, grids.
#include "runtime/cuda/product_hopper.h"

#include <algorithm>
#include <cmath>

#include "runtime/cuda/kernel_tools.cuh"
#include "runtime/cuda/product_hopper_kernels.h"
#include "runtime/cuda/tensor_map.h"

namespace turboesm::cuda {
namespace {

using namespace hopper;

constexpr uint32_t kClusters = 2;                      // large: clusters of 1 or 2 blocks
constexpr uint32_t kSplits[] = {1, 2, 3, 4, 5, 6, 8};  // few, medium: blocks that share K
constexpr uint32_t kSplitCount = sizeof(kSplits) / sizeof(uint32_t);
constexpr uint32_t kDepths = 2;       // few: room for two blocks on a multiprocessor, or for one
constexpr uint32_t kBandRows = 2048;  // of x, that large walks through column by column

// Shared memory of a multiprocessor, and what it takes for itself of each block's.
constexpr uint32_t kSharedOfAll = 228 * 1024, kSharedReserved = 1024;
// Two blocks of `few` fit on a multiprocessor, which lets the next kernel's in early, if each still has kFewGoodStages.
constexpr uint32_t kFewGoodStages = 3, kFewLeastStages = 2;  // one is loaded while another is read
constexpr uint32_t kMediumStatic =
    kStaticShared + kMediumColumns[kMediumTileCount - 1] * 4 + kMediumMostThreads * 8;  // biases, positions
constexpr uint32_t kMediumRows = 1024;                                                  // of x, at most
// `few` is not tried with more blocks than this for each multiprocessor, unless there are few outputs.
constexpr uint32_t kFewWaves = 6, kFewOutputs = 64;
// `large` is tried from so many rows on, where tiles are not filled up by more than half, and not too few.
constexpr uint32_t kLargeRows = 65, kLargeBlocks = 4;  // a quarter of the multiprocessors at least

enum class Family { large, few, medium };

struct Variant {
  Family family = Family::large;
  uint32_t tile = 0;
  uint32_t cluster = 1;  // large
  uint32_t split = 1;    // few, medium
  bool deep = false;     // few: all of a multiprocessor's shared memory
};
constexpr uint32_t kLargeVariants = kLargeTileCount * kClusters;
constexpr uint32_t kFewVariants = kFewTileCount * kSplitCount * kDepths;
constexpr uint32_t kMediumVariants = kMediumTileCount * kSplitCount;

Variant variant_of(uint32_t variant) {
  if (variant < kLargeVariants) return {.tile = variant / kClusters, .cluster = 1 + variant % kClusters};
  variant -= kLargeVariants;
  if (variant < kFewVariants)
    return {.family = Family::few,
            .tile = variant / (kSplitCount * kDepths),
            .split = kSplits[variant / kDepths % kSplitCount],
            .deep = variant % kDepths == 1};
  variant -= kFewVariants;
  return {.family = Family::medium, .tile = variant / kSplitCount, .split = kSplits[variant % kSplitCount]};
}

bool aligned(const void* pointer, uint64_t bytes) { return reinterpret_cast<uint64_t>(pointer) % bytes == 0; }

// Four neighbouring outputs from a multiple of four on are one aligned access everywhere.
bool has_vectors(const Product& p) {
  return p.outputs % 4 == 0 && aligned(p.bias, 16) && aligned(p.residual, 16) && aligned(p.table, 16) &&
         aligned(p.y, 4 * size_of(p.y_dtype));
}

Epilogue epilogue_of(const Product& p) {
  Epilogue e;
  e.bias = p.bias;
  e.residual = p.residual;
  e.y = p.y;
  e.positions = p.positions;
  e.table = p.table;
  e.rows = p.rows;
  e.outputs = p.outputs;
  e.width = p.heads != 0 ? p.heads * p.head_dim : p.outputs;
  e.head_dim = p.heads != 0 ? p.head_dim : 0;
  e.head_magic = p.heads != 0 ? uint32_t(((uint64_t(1) << 32) + p.head_dim - 1) / p.head_dim) : 0;
  e.q_scale = p.q_scale;
  e.y_dtype = p.y_dtype;
  e.gelu = p.gelu;
  return e;
}

// False where no kind computes the epilogue.
bool kind_of(const Product& p, Kind& kind) {
  if (p.heads != 0) {
    kind = Kind::rope;
    return p.y_dtype == DType::f16;
  }
  if (p.y_dtype == DType::f32) {
    kind = p.gelu ? Kind::wide_gelu : Kind::wide;
    return true;
  }
  kind = p.gelu ? Kind::narrow_gelu : Kind::narrow;
  return p.y_dtype == p.dtype && p.residual == nullptr;
}

CUtensorMap tensor_map(const void* base, DType dtype, uint32_t dimensions, const cuuint64_t* sizes,
                       const cuuint64_t* strides, const cuuint32_t* box) {
  CUtensorMap map;
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  const CUtensorMapDataType type =
      dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult result = tensor_map_encoder()(&map, type, dimensions, const_cast<void*>(base), sizes, strides, box,
                                               steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
  return map;
}

// [rows, columns] row-major, in boxes of box_rows x 64; what is outside of it reads as zero.
CUtensorMap tensor_map(const void* base, DType dtype, uint32_t rows, uint32_t columns, uint32_t box_rows) {
  const cuuint64_t sizes[] = {columns, rows}, strides[] = {uint64_t(columns) * 2};
  const cuuint32_t box[] = {kBlockInputs, box_rows};
  return tensor_map(base, dtype, 2, sizes, strides, box);
}

// The same of weights that are dealt out, whose rows are a multiple of kDealt: as [rows / 32][h][t][e][columns], for
// strides need not rise from dimension to dimension.
CUtensorMap dealt_map(const void* base, DType dtype, uint32_t rows, uint32_t columns, uint32_t box_rows) {
  const uint64_t row = uint64_t(columns) * 2;  // bytes
  const cuuint64_t sizes[] = {columns, 2, 4, 4, rows / kDealt}, strides[] = {row, 8 * row, 2 * row, kDealt * row};
  const cuuint32_t box[] = {kBlockInputs, 2, 4, 4, box_rows / kDealt};
  return tensor_map(base, dtype, 5, sizes, strides, box);
}

void launch_large(const Product& p, const Variant& v, const Launch& l) {
  const LargeTile& tile = kLargeTiles[v.tile];
  Kind kind{};
  kind_of(p, kind);
  LargePlan plan;
  plan.blocks_k = blocks_of(p.inputs, kBlockInputs);
  plan.column_tiles = blocks_of(p.outputs, tile.columns);
  plan.cluster = v.cluster;
  plan.row_groups = blocks_of(p.rows, tile.rows * v.cluster);
  plan.band = std::max(kBandRows / (tile.rows * v.cluster), 1u);
  const uint32_t clusters = std::min(plan.row_groups * plan.column_tiles, l.gpu.multiprocessors / v.cluster);
  const CUtensorMap x = tensor_map(p.x, p.dtype, p.rows, p.inputs, tile.rows);
  const CUtensorMap weight = dealt_map(p.weight, p.dtype, p.outputs, p.inputs, tile.columns / 2);
  const LargeKernel kernel = p.dtype == DType::f16 ? large_kernel_f16(v.tile, kind) : large_kernel_bf16(v.tile, kind);
  start_clusters(v.cluster, kernel, clusters * v.cluster, kLargeThreads, tile.shared_bytes, l, x, weight,
                 epilogue_of(p), plan);
}

// The grid of `few`, clusters along x.
dim3 few_grid(const Product& p, const Variant& v) {
  const FewTile& tile = kFewTiles[v.tile];
  return dim3(blocks_of(p.outputs, tile.outputs) * v.split, blocks_of(p.rows, tile.tokens));
}

struct FewMemory {
  FewPlan plan;
  uint32_t bytes = 0;
};

// Stages, and sums beside them, or in their place where room is short.
FewMemory few_memory(const Product& p, const Variant& v) {
  const FewTile& tile = kFewTiles[v.tile];
  FewMemory memory;
  FewPlan& plan = memory.plan;
  plan.blocks_k = blocks_of(p.inputs, kBlockInputs);
  plan.split = v.split;
  plan.octets = blocks_of(tile.octets, v.split);
  const uint32_t wanted = std::min(blocks_of(plan.blocks_k, v.split), kFewStages);
  const uint32_t sums = v.split * plan.octets * tile.octet_bytes;
  const auto try_to = [&](uint32_t together, bool apart, uint32_t least) {
    const uint32_t room = kSharedOfAll / together - kSharedReserved - kSharedAlignment - kStaticShared;
    if (room < sums) return false;
    plan.stages = std::min(wanted, (apart ? room - sums : room) / tile.stage_bytes);
    plan.apart = apart;
    const uint32_t stages = plan.stages * tile.stage_bytes;
    memory.bytes = kSharedAlignment + (apart ? stages + sums : std::max(stages, sums));
    return plan.stages >= std::min(wanted, least);
  };
  const bool found = v.deep ? try_to(1, true, kFewGoodStages + 1) || try_to(1, false, kFewLeastStages)
                            : try_to(2, true, kFewGoodStages + 1) || try_to(2, false, kFewGoodStages);
  if (!found) plan.stages = 0;
  return memory;
}

void launch_few(const Product& p, const Variant& v, const Launch& l) {
  const FewTile& tile = kFewTiles[v.tile];
  const FewMemory memory = few_memory(p, v);
  const CUtensorMap x = tensor_map(p.x, p.dtype, p.rows, p.inputs, tile.tokens);
  const CUtensorMap weight = tensor_map(p.weight, p.dtype, p.outputs, p.inputs, tile.outputs);
  start_clusters(v.split, few_kernel(v.tile, p.dtype, has_vectors(p)), few_grid(p, v), tile.threads, memory.bytes, l, x,
                 weight, epilogue_of(p), memory.plan);
}

// Tokens of a tile: all rows, in the smallest tile that holds them, or fewer.
bool sensible_tokens(const FewTile& tile, uint32_t rows) {
  if (tile.tokens < rows) return tile.tokens >= 16;
  for (const FewTile& other : kFewTiles)
    if (other.groups == tile.groups && other.tokens >= rows && other.tokens < tile.tokens) return false;
  return true;
}

bool few_can(const Product& p, const Variant& v, const Gpu& gpu) {
  const FewTile& tile = kFewTiles[v.tile];
  const uint32_t blocks_k = blocks_of(p.inputs, kBlockInputs);
  if (v.split > blocks_k || !sensible_tokens(tile, p.rows) || (tile.groups > 1 && !has_vectors(p))) return false;
  const dim3 grid = few_grid(p, v);
  const uint64_t blocks = uint64_t(grid.x) * grid.y;
  if (v.deep) {  // only where a block has a multiprocessor to itself and more stages are of use
    const FewMemory shallow = few_memory(p, {.tile = v.tile, .split = v.split});
    if (blocks > gpu.multiprocessors || shallow.plan.stages >= blocks_of(blocks_k, v.split)) return false;
  }
  const FewMemory memory = few_memory(p, v);
  if (grid.y > 65535 || memory.plan.stages == 0 || memory.bytes + kStaticShared > gpu.max_shared_bytes) return false;
  return p.outputs <= kFewOutputs || blocks <= uint64_t(kFewWaves) * gpu.multiprocessors ||
         (v.split == 1 && grid.y == 1);
}

// ---- medium ---------------------------------------------------------------------------------------------------------

struct MediumLaunch {
  dim3 grid;
  uint32_t threads = 0, bytes = 0;
  MediumPlan plan;  // no stages: too little room
};

MediumLaunch medium_launch(const Product& p, const Variant& v) {
  MediumLaunch launch;
  MediumPlan& plan = launch.plan;
  const uint32_t columns = kMediumColumns[v.tile];
  const uint32_t blocks_y = blocks_of(p.rows, kMediumMostThreads / 2), groups = blocks_of(p.rows, blocks_y * 64);
  launch.grid = dim3(blocks_of(p.outputs, columns) * v.split, blocks_y);
  launch.threads = groups * 128;
  plan.blocks_k = blocks_of(p.inputs, kBlockInputs);
  plan.split = v.split;
  plan.box_rows = blocks_y > 1 ? groups * 64 : blocks_of(p.rows, 8) * 8;
  plan.octets = blocks_of(columns / 8, v.split);
  plan.has_extra = p.residual != nullptr || p.heads != 0;
  const uint32_t stage_bytes = (plan.box_rows + columns) * kBlockRowBytes;
  const uint32_t beyond = (groups * 64 - plan.box_rows) * kBlockRowBytes;  // that is multiplied and not stored
  const uint32_t octets = plan.octets * launch.threads * 16, sums = v.split * octets;
  const uint32_t extra = p.heads != 0 || p.y_dtype == DType::f32 ? octets : 0;
  const uint32_t wanted = std::min(blocks_of(plan.blocks_k, v.split), kFewStages);
  constexpr uint32_t kRoom = kMostShared - kSharedAlignment - kMediumStatic;
  const uint32_t others = std::max(sums + extra, beyond);
  if (kRoom < others) return launch;
  plan.stages = std::min(wanted, (kRoom - others) / stage_bytes);
  if (plan.stages < std::min(wanted, kFewGoodStages)) plan.stages = 0;
  plan.sums_at = plan.stages * stage_bytes;
  plan.extra_at = plan.sums_at + sums;
  launch.bytes = kSharedAlignment + plan.sums_at + others;
  return launch;
}

void launch_medium(const Product& p, const Variant& v, const Launch& l) {
  const MediumLaunch launch = medium_launch(p, v);
  const CUtensorMap x = tensor_map(p.x, p.dtype, p.rows, p.inputs, launch.plan.box_rows);
  const CUtensorMap weight = tensor_map(p.weight, p.dtype, p.outputs, p.inputs, kMediumColumns[v.tile]);
  Kind kind{};
  kind_of(p, kind);
  const MediumKernel kernel =
      p.dtype == DType::f16 ? medium_kernel_f16(v.tile, kind) : medium_kernel_bf16(v.tile, kind);
  start_clusters(v.split, kernel, launch.grid, launch.threads, launch.bytes, l, x, weight, epilogue_of(p), launch.plan);
}

bool medium_can(const Product& p, const Variant& v, const Gpu& gpu) {
  Kind kind{};
  if (!kind_of(p, kind) || kind == Kind::wide_gelu || v.split > blocks_of(p.inputs, kBlockInputs)) return false;
  if (p.outputs % 8 != 0 || !has_vectors(p) || p.rows > kMediumRows) return false;
  if (p.heads != 0 && p.head_dim % 8 != 0) return false;
  const MediumLaunch launch = medium_launch(p, v);
  if (launch.plan.stages == 0 || launch.bytes + kMediumStatic > gpu.max_shared_bytes) return false;
  // One wave of blocks, that leaves few multiprocessors without any.
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y;
  return blocks <= gpu.multiprocessors && (blocks * 3 > gpu.multiprocessors || kMediumColumns[v.tile] <= 24);
}

bool large_can(const Product& p, const Variant& v, const Gpu& gpu) {
  Kind kind{};
  const LargeTile& tile = kLargeTiles[v.tile];
  if (p.rows < kLargeRows || !has_vectors(p) || !kind_of(p, kind)) return false;
  if (p.outputs % kDealt != 0 || !aligned(p.y, 16)) return false;
  const uint64_t row_tiles = uint64_t(blocks_of(p.rows, tile.rows * v.cluster)) * v.cluster;
  const uint64_t tiles = row_tiles * blocks_of(p.outputs, tile.columns);
  if (tiles >> 31 != 0) return false;
  return row_tiles * tile.rows * 2 <= uint64_t(p.rows) * 3 && tiles * kLargeBlocks >= gpu.multiprocessors;
}

}  // namespace

uint32_t hopper_variants() { return kLargeVariants + kFewVariants + kMediumVariants; }

bool hopper_can(const Product& p, uint32_t variant, const Gpu& gpu) {
  if (!gpu.hopper || !gpu.matrix_cores || !tensor_map_encoder() || variant >= hopper_variants()) return false;
  if (p.dtype != DType::f16 && p.dtype != DType::bf16) return false;
  if (p.rows == 0 || p.outputs == 0 || p.inputs == 0) return false;
  if (p.inputs % 8 != 0 || !aligned(p.x, 16) || !aligned(p.weight, 16)) return false;
  const Variant v = variant_of(variant);
  switch (v.family) {
    case Family::large: return large_can(p, v, gpu);
    case Family::few: return few_can(p, v, gpu);
    default: return medium_can(p, v, gpu);
  }
}

void launch_hopper(const Product& product, uint32_t variant, const Launch& l) {
  const Variant v = variant_of(variant);
  switch (v.family) {
    case Family::large: return launch_large(product, v, l);
    case Family::few: return launch_few(product, v, l);
    default: return launch_medium(product, v, l);
  }
}

}  // namespace turboesm::cuda
