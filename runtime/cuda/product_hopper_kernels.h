// What the host's side of Hopper's products (product_hopper.cu) and the kernels agree upon.
#pragma once

#include <cstdint>

#include <cuda.h>

#include "runtime/dtype.h"

namespace turboesm::cuda::hopper {

// Both operands are cut into blocks of 64 along K: rows of 128 bytes, what the 128-byte swizzle spans. TMA fills with
// zeros what lies beyond the tensor.
inline constexpr uint32_t kBlockInputs = 64;
inline constexpr uint32_t kBlockRowBytes = 128;
inline constexpr uint32_t kSharedAlignment = 1024;   // of a swizzled block
inline constexpr uint32_t kMostShared = 227 * 1024;  // that a block may have
inline constexpr uint32_t kStaticShared = 512;       // of it, for barriers

// Everything behind the product itself: z = x weight^T becomes y (Product in product.h).
struct Epilogue {
  const float* bias = nullptr;      // [outputs] or null
  const float* residual = nullptr;  // [rows, outputs] or null
  void* y = nullptr;
  const int32_t* positions = nullptr;  // [rows]
  const float* table = nullptr;        // [table_rows, head_dim]
  uint32_t rows = 0, outputs = 0;
  uint32_t width = 0;       // of a row of y: outputs, or heads x head_dim
  uint32_t head_dim = 0;    // 0 but for QkvRope
  uint32_t head_magic = 0;  // ceil(2^32 / head_dim): column / head_dim = high half of column x head_magic
  float q_scale = 1;
  DType y_dtype = DType::f32;
  bool gelu = false;
};

// The compile-time part of the epilogue of `large` and `medium`, so that the loop over a tile is free of choices.
enum class Kind : uint32_t {
  wide,         // y f32, perhaps a residual
  wide_gelu,    // the same, with GELU before
  narrow,       // y of the operands' type
  narrow_gelu,  // the same, with GELU
  rope,         // QkvRope, y f16, as attention takes it
};

// ---- large ----------------------------------------------------------------------------------------------------------

// Weights of so many outputs are dealt out to a stage's rows: output 32 b + 8 t + 2 h + e becomes row 32 b + 8 h + 2 t
// + e, with t, h < 4 and e < 2. So a lane's sums, which wgmma leaves with it in pairs 8 columns apart, are of
// neighbours.
inline constexpr uint32_t kDealt = 32;

struct LargeTile {
  uint32_t subtiles;  // of 64 rows of x, for each of the two warpgroups that multiply
  uint32_t columns;   // outputs
  bool ping_pong;     // the warpgroups take turns, each with a tile of its own; or both work on one tile
  uint32_t rows = 64 * subtiles * (ping_pong ? 1 : 2);
  uint32_t stage_bytes = (rows + columns) * kBlockRowBytes;
  uint32_t stages = (kMostShared - kSharedAlignment - kStaticShared) / stage_bytes;
  uint32_t shared_bytes = stages * stage_bytes + kSharedAlignment;
};
inline constexpr LargeTile kLargeTiles[] = {{2, 128, true}, {2, 192, true}, {1, 256, false}, {1, 128, true}};
inline constexpr uint32_t kLargeTileCount = sizeof(kLargeTiles) / sizeof(LargeTile);

inline constexpr uint32_t kLargeThreads = 3 * 128;

struct LargePlan {
  uint32_t blocks_k = 0;      // of kBlockInputs
  uint32_t column_tiles = 0;  // over the outputs
  uint32_t row_groups = 0;    // of `cluster` tiles, one below the other
  uint32_t cluster = 1;       // blocks that share a tile of weights: 1 or 2
  uint32_t band = 1;          // row groups that are walked through column by column
};

using LargeKernel = void (*)(CUtensorMap x, CUtensorMap weight, Epilogue, LargePlan);
LargeKernel large_kernel_f16(uint32_t tile, Kind kind);
LargeKernel large_kernel_bf16(uint32_t tile, Kind kind);

// ---- few ------------------------------------------------------------------------------------------------------------

struct FewTile {
  uint32_t groups;  // warpgroups that multiply, with 64 outputs each
  uint32_t tokens;  // rows of x
  uint32_t outputs = 64 * groups;
  uint32_t stage_bytes = (outputs + tokens) * kBlockRowBytes;
  uint32_t octets = tokens / 8;            // eight tokens: what a block adds up and finishes as one
  uint32_t octet_bytes = outputs * 8 * 4;  // of an octet's sums
  uint32_t threads = groups * 128;
};
inline constexpr FewTile kFewTiles[] = {{1, 8},   {1, 16}, {1, 24}, {1, 40}, {1, 64}, {1, 80},  {1, 96}, {1, 128},
                                        {1, 152}, {2, 40}, {2, 64}, {2, 80}, {2, 96}, {2, 128}, {2, 152}};
inline constexpr uint32_t kFewTileCount = sizeof(kFewTiles) / sizeof(FewTile);
inline constexpr uint32_t kFewStages = 24;  // at most

// A cluster is `split` blocks, of a part of K each.
struct FewPlan {
  uint32_t blocks_k = 0;
  uint32_t split = 1;  // parts of K, whose sums are added up
  uint32_t stages = 0;
  uint32_t octets = 0;  // ceil(octets of the tile / split): that a block adds up at most
  bool apart = false;   // sums have memory of their own; otherwise that of the stages
};

using FewKernel = void (*)(CUtensorMap x, CUtensorMap weight, Epilogue, FewPlan);
FewKernel few_kernel(uint32_t tile, DType dtype, bool vectors);  // without vectors: tiles of one group

// ---- medium ---------------------------------------------------------------------------------------------------------

inline constexpr uint32_t kMediumColumns[] = {16, 32, 48, 64, 80, 88};  // outputs of a tile
inline constexpr uint32_t kMediumTileCount = sizeof(kMediumColumns) / sizeof(uint32_t);
inline constexpr uint32_t kMediumMostThreads = 512;

// A cluster is `split` blocks, of a part of K each. A block has 64 rows for each of its warpgroups.
struct MediumPlan {
  uint32_t blocks_k = 0;
  uint32_t split = 1;
  uint32_t stages = 0;
  uint32_t box_rows = 0;  // of x, that are loaded: a multiple of 8, all that the block has where there are fewer
  uint32_t octets = 0;    // ceil(octets of the tile / split): that a block adds up at most
  uint32_t sums_at = 0;   // bytes behind the first stage
  uint32_t extra_at = 0;
  bool has_extra = false;  // there is a residual, or angles
};

using MediumKernel = void (*)(CUtensorMap x, CUtensorMap weight, Epilogue, MediumPlan);
MediumKernel medium_kernel_f16(uint32_t tile, Kind kind);  // not Kind::wide_gelu
MediumKernel medium_kernel_bf16(uint32_t tile, Kind kind);

}  // namespace turboesm::cuda::hopper
