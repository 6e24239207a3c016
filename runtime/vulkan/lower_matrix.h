#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "runtime/vulkan/lower.h"
#include "runtime/vulkan/product.h"

namespace turboesm::vulkan {

// The kernels on matrix units (cooperative matrices), fp16 and bf16: shaders/linear_coopmat.comp,
// shaders/linear_many_coopmat.comp, shaders/linear_short_coopmat.comp, shaders/attention_coopmat.comp and, with
// VK_NV_cooperative_matrix2, shaders/attention_coopmat2.comp. Nothing is returned when the device has no matrix unit
// for the operation's dtype, or the shapes do not fit; the plain kernels then do the work.
//
// A product's result depends on its tile in the last bits only, by the order of summation: tiles with wk = 1
// and without splits agree to the bit. Attention agrees to the bit whatever else is in the batch.

// Needs inputs % 8 == 0, and outputs % 4 == 0 unless y is f32. Sums of few products, with enough tiles to occupy the
// device, are linear_short_coopmat.comp's; all others go by the rates of LinearTile.
std::optional<Dispatch> lower_matrix_product(const Product& op, const Traits& traits);

// Needs head_dim <= 128 and a 16-bit `out`.
std::optional<Dispatch> lower_matrix_attention(const Attention& op, const Traits& traits);

// How linear_coopmat.comp cuts up its work; the names are those of its specialization constants. Sizes in elements. The
// tile of 128 x 128 by four subgroups is linear_many_coopmat.comp's where that kernel can.
struct LinearTile {
  uint32_t bm, bn, bk;        // rows and outputs of a workgroup's tile, inputs of a step
  uint32_t wm, wn, wk;        // its grid of subgroups; each sums (bm / wm) x (bn / wn) over bk / wk of a step
  uint32_t stages, prefetch;  // buffers in shared memory (1 or 2); steps between a global load and its use
  uint32_t drain;             // times 16 rows of a subgroup's sums that pass through shared memory at a time

  std::string name() const;  // as in the files of rates/
};

// All tiles; and the operation by one of them, which must fit, with the inputs split over `splits` workgroups a tile.
// Splits need scratch memory: at most max_splits() of it.
std::span<const LinearTile> linear_tiles();
bool fits(const LinearTile& tile, const Traits& traits);
uint32_t max_splits(const Product& op, const Traits& traits, const LinearTile& tile);
Dispatch lower_matrix_product_with(const Product& op, const Traits& traits, const LinearTile& tile, uint32_t splits);

// How the kernels of attention cut up their work: `rows` times 16 queries for each subgroup, against blocks of `keys`
// keys. attention_coopmat.comp takes one row, attention_coopmat2.comp one or two.
struct AttentionTile {
  bool matrix2;  // attention_coopmat2.comp
  uint32_t subgroups, rows, keys;
};

std::span<const AttentionTile> attention_tiles();
bool fits(const AttentionTile& tile, const Attention& op, const Traits& traits);
Dispatch lower_matrix_attention_with(const Attention& op, const Traits& traits, const AttentionTile& tile);

// All of them, with their splits, that could compute the operation.
std::vector<Variant> matrix_variants(const Product& op, const Traits& traits);
std::vector<ProductTile> matrix_tiles(const Product& op, const Traits& traits);  // without splits
std::vector<Variant> matrix_variants(const Attention& op, const Traits& traits);

}  // namespace turboesm::vulkan
