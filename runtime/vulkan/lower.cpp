#include "runtime/vulkan/lower.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include <fmt/format.h>

#include "runtime/vulkan/linear_rates.h"
#include "runtime/vulkan/lower_kv.h"
#include "runtime/vulkan/lower_matrix.h"
#include "runtime/vulkan/lower_tools.h"

// One function per operation: which shader, which variant, how many workgroups. The struct Push in each is the shader's
// push constant block, member for member: device addresses first, then 32-bit values, so that C++ and GLSL's scalar
// layout agree without padding in between. Where a grid could need more workgroups than Vulkan guarantees, it is capped
// and the kernel loops.
namespace turboesm::vulkan {
namespace {

Dispatch lower_one(const TokenDropout& a, const Traits&) {
  struct Push {
    uint64_t ids, cu_seqlens, scale;
    uint32_t sequences;
    int32_t mask_id;
  };
  return dispatch("token_dropout", {}, {capped(a.sequences), 1, 1},
                  Push{address_of(a.ids), address_of(a.cu_seqlens), address_of(a.scale), a.sequences, a.mask_id});
}

Dispatch lower_one(const Embed& a, const Traits&) {
  struct Push {
    uint64_t ids, cu_seqlens, scale, table, out;
    uint32_t tokens, sequences, vocab, width;
    int32_t mask_id, unk_id;
    uint32_t has_scale;
  };
  return dispatch("embed", {id_of(a.table.dtype)}, {capped(a.tokens), 1, 1},
                  Push{address_of(a.ids), address_of(a.cu_seqlens), address_of(a.scale), address_of(a.table),
                       address_of(a.out), a.tokens, a.sequences, a.vocab, a.width, a.mask_id, a.unk_id, bool(a.scale)});
}

Dispatch lower_one(const LayerNorm& a, const Traits& traits) {
  struct Push {
    uint64_t x, weight, bias, y;
    uint32_t rows, width;
    float epsilon;
  };
  const uint32_t threads = traits.software ? traits.subgroup_size : a.width <= 1024 ? 128 : 256;
  return dispatch(
      "layer_norm", {threads, id_of(a.y.dtype), ceil_div(a.width, 2 * threads), traits.software},
      {capped(a.rows), 1, 1},
      Push{address_of(a.x), address_of(a.weight), address_of(a.bias), address_of(a.y), a.rows, a.width, a.epsilon});
}

// bm x bn outputs per workgroup, bk inputs per step, tm x tn outputs per invocation: linear.comp says more.
struct PlainTile {
  uint32_t bm, bn, bk, tm, tn;
  constexpr uint32_t threads() const { return bm / tm * (bn / tn); }
  constexpr uint32_t shared_bytes() const { return (bm + bn) * (bk / 4 + 1) * 16; }
  std::string name() const { return fmt::format("plain {}x{}x{}", bm, bn, bk); }
};
// All sum in the same order.
constexpr PlainTile kPlainTiles[] = {
    {16, 64, 64, 2, 2},  // not to compute 64 rows where there are 16
    {64, 64, 32, 4, 4},
    {128, 128, 16, 8, 8},  // more products per shared load, once there is work for everyone
    {32, 64, 16, 8, 8},    // few invocations: a software driver pays for each that a barrier waits for
};
static_assert(std::ranges::all_of(kPlainTiles, [](const PlainTile& tile) {
  return tile.threads() <= 256 && tile.shared_bytes() <= 32768;
}));

uint32_t plain_units(const Traits& traits) {
  constexpr uint32_t kUnknownUnits = 32;
  if (traits.software) return 1;  // its workgroups take turns on few cores: time grows with their number
  return traits.compute_units ? traits.compute_units : kUnknownUnits;
}

// The one that takes least by the rates of the device's class.
const PlainTile& plain_tile(const Product& a, const Traits& traits) {
  const PlainTile* best = kPlainTiles;
  double least = INFINITY;
  for (const PlainTile& tile : kPlainTiles) {
    const TileRate* rate = find_rate(traits.device_class, tile.name());
    if (!rate) continue;
    const uint64_t workgroups = uint64_t(ceil_div(a.rows, tile.bm)) * ceil_div(a.outputs, tile.bn);
    const double time = tile_microseconds(0, *rate, workgroups, plain_units(traits), ceil_div(a.inputs, tile.bk));
    if (time < least) least = time, best = &tile;
  }
  return *best;
}

// Few outputs of few rows: a subgroup for each output instead of tiles.
bool is_narrow(const Linear& a) {
  constexpr uint32_t kMaxRows = 1024, kMaxOutputs = 64, kMaxInputs = 8192;  // a row of x takes at most 32 KiB
  return a.rows <= kMaxRows && a.outputs <= kMaxOutputs && a.inputs <= kMaxInputs && a.inputs % 4 == 0 && !a.gelu &&
         !a.residual && a.y.dtype == DType::f32;
}

Dispatch lower_narrow(const Linear& a) {
  struct Push {
    uint64_t x, weight, bias, y;
    uint32_t outputs, has_bias;
  };
  constexpr uint32_t kOutputs = 16;  // of a workgroup
  return dispatch(
      "linear_narrow", {id_of(a.x.dtype), a.inputs / 4, kOutputs}, {a.rows, ceil_div(a.outputs, kOutputs), 1},
      Push{address_of(a.x), address_of(a.weight), address_of(a.bias), address_of(a.y), a.outputs, bool(a.bias)});
}

// A few rows, of whole 16 bytes: the weights' way from memory is all that counts. Matrix units, whose tiles have 16
// rows, are as good from the third row on.
constexpr uint32_t kFewRowsMost = 8, kFewRowsBesideMatrixUnits = 2;

bool is_few(const Product& a, uint32_t most_rows) {
  return a.rows >= 1 && a.rows <= most_rows && a.inputs % (a.x.dtype == DType::f32 ? 4 : 8) == 0 &&
         (a.y.dtype == DType::f32 || a.outputs % 2 == 0) && ceil_div(a.outputs, 2) <= kMaxGroups;
}

Dispatch lower_few(const Product& a) {
  struct Push {
    uint64_t x, weight, bias, residual, y, positions, table;
    uint32_t inputs, outputs, has_bias, has_residual, has_gelu;
    float q_scale;
    uint32_t head_dim;
  };
  const uint32_t columns = a.inputs / (a.x.dtype == DType::f32 ? 4 : 8);  // of 16 bytes
  const uint32_t threads = columns <= 320 ? 64 : 128;
  return dispatch("linear_few", {threads, id_of(a.x.dtype), id_of(a.y.dtype), a.rows, a.head_dim != 0},
                  {ceil_div(a.outputs, 2), 1, 1},
                  Push{address_of(a.x), address_of(a.weight), address_of(a.bias), address_of(a.residual),
                       address_of(a.y), address_of(a.positions), address_of(a.table), a.inputs, a.outputs, bool(a.bias),
                       bool(a.residual), a.gelu, a.q_scale, a.head_dim});
}

// Whether the kernels for software drivers (include/lanes.glsl) take rows of this many values: each lane 8 bytes a
// step.
bool takes_direct(DType dtype, uint32_t values, const Traits& traits) {
  return traits.lanes && values * size_of(dtype) % (8 * traits.subgroup_size) == 0;
}

// Of linear.comp and linear_direct.comp.
struct ProductPush {
  uint64_t x, weight, bias, residual, y, positions, table;
  uint32_t rows, inputs, outputs, has_bias, has_residual, has_gelu;
  float q_scale;
  uint32_t head_dim;
};
ProductPush push_of(const Product& a) {
  return {address_of(a.x),
          address_of(a.weight),
          address_of(a.bias),
          address_of(a.residual),
          address_of(a.y),
          address_of(a.positions),
          address_of(a.table),
          a.rows,
          a.inputs,
          a.outputs,
          bool(a.bias),
          bool(a.residual),
          a.gelu,
          a.q_scale,
          a.head_dim};
}

std::optional<Dispatch> lower_direct(const Product& a, const Traits& traits) {
  if (!takes_direct(a.x.dtype, a.inputs, traits)) return std::nullopt;
  // Large for few loads, small because such a driver's compile time grows with the unrolled loops.
  const uint32_t rows = size_of(a.x.dtype) == 2 ? 16 : 32;
  constexpr uint32_t kColumns = 4;  // of an invocation
  return dispatch(
      "linear_direct", {traits.subgroup_size, id_of(a.x.dtype), id_of(a.y.dtype), rows, kColumns, a.head_dim != 0},
      {ceil_div(a.outputs, traits.subgroup_size * kColumns), capped(ceil_div(a.rows, rows)), 1}, push_of(a));
}

Dispatch lower_tiled(const Product& a, const PlainTile& tile) {
  const bool by_fours = a.inputs % 4 == 0;
  return dispatch("linear",
                  {tile.threads(), id_of(a.x.dtype), id_of(a.y.dtype), by_fours, tile.bm, tile.bn, tile.bk, tile.tm,
                   tile.tn, a.head_dim != 0},
                  {ceil_div(a.outputs, tile.bn), capped(ceil_div(a.rows, tile.bm)), 1}, push_of(a));
}

Dispatch lower_product(const Product& a, const Traits& traits) {
  if (auto direct = lower_direct(a, traits)) return *direct;
  // Sums of f32 are taken in one order, however many rows there are; 16-bit types round more than the order matters.
  const bool any_order = a.x.dtype != DType::f32;
  if (any_order && is_few(a, kFewRowsBesideMatrixUnits)) return lower_few(a);
  if (auto matrix = lower_matrix_product(a, traits)) return *matrix;
  return any_order && is_few(a, kFewRowsMost) ? lower_few(a) : lower_tiled(a, plain_tile(a, traits));
}

std::vector<Variant> product_variants(const Product& a, const Traits& traits) {
  std::vector<Variant> all = matrix_variants(a, traits);
  all.push_back({"plain", lower_tiled(a, plain_tile(a, traits))});
  if (auto direct = lower_direct(a, traits)) all.push_back({"direct", *direct});
  if (is_few(a, kFewRowsMost)) all.push_back({"few rows", lower_few(a)});
  return all;
}

Dispatch lower_one(const Linear& a, const Traits& traits) {
  return is_narrow(a) ? lower_narrow(a) : lower_product(Product(a), traits);
}

Dispatch lower_one(const QkvRope& a, const Traits& traits) { return lower_product(Product(a), traits); }

// How attention.comp divides its work, for one head_dim.
struct AttentionTile {
  uint32_t slice, slices, lanes, queries, keys;
};

// Slices of at most 32 elements, so that q and the sum of two queries stay in registers; fewer keys per tile as rows
// get longer, so that two tiles and the scores' shares take at most 24 KiB. A CPU pays for invocations and barriers and
// has a cache that is nearly as good as registers: fewer invocations with more queries there, and small tiles, because
// its driver's compile time grows with the unrolled loops.
AttentionTile attention_tile(uint32_t head_dim, const Traits& traits) {
  constexpr uint32_t kMaxSlice = 32;
  const uint32_t threads = traits.software ? 32 : 128;
  const uint32_t slices = std::bit_ceil(ceil_div(head_dim, kMaxSlice));
  return {.slice = ceil_div(head_dim, 4 * slices) * 4,
          .slices = slices,
          .lanes = threads / slices,
          .queries = traits.software ? 4u : 2u,
          .keys = traits.software  ? 4u
                  : head_dim <= 64 ? 16u
                                   : 8u};
}

Dispatch lower_one(const Attention& a, const Traits& traits) {
  if (auto matrix = lower_matrix_attention(a, traits)) return *matrix;
  struct Push {
    uint64_t q, k, v, cu_seqlens, out;
    uint32_t heads;
  };
  const Push push{address_of(a.q),          address_of(a.k),   address_of(a.v),
                  address_of(a.cu_seqlens), address_of(a.out), a.heads};
  if (takes_direct(a.q.dtype, a.head_dim, traits)) {
    const uint32_t queries = std::clamp(512 / a.head_dim, 4u, 8u);
    constexpr uint32_t kKeys = 4;  // of an invocation
    return dispatch("attention_direct",
                    {traits.subgroup_size, id_of(a.q.dtype), a.head_dim, queries, kKeys, id_of(a.out.dtype)},
                    {ceil_div(a.max_length, queries), a.heads, a.sequences}, push);
  }
  const AttentionTile tile = attention_tile(a.head_dim, traits);
  return dispatch("attention",
                  {tile.lanes * tile.slices, id_of(a.q.dtype), a.head_dim, tile.slice, tile.slices, tile.lanes,
                   tile.queries, tile.keys, id_of(a.out.dtype)},
                  {ceil_div(a.max_length, tile.lanes * tile.queries), a.heads, a.sequences}, push);
}

Dispatch lower_one(const PoolMean& a, const Traits&) {
  struct Push {
    uint64_t x, cu_seqlens, out;
    uint32_t width;
  };
  constexpr uint32_t kColumns = 32;  // per workgroup
  return dispatch("pool_mean", {}, {ceil_div(a.width, kColumns), a.sequences, 1},
                  Push{address_of(a.x), address_of(a.cu_seqlens), address_of(a.out), a.width});
}

Dispatch lower_one(const AttentionMaps& a, const Traits&) {
  struct Push {
    uint64_t q, k, out;
    uint32_t begin, length, heads, head_dim;
  };
  constexpr uint32_t kQueries = 8;  // per workgroup
  return dispatch("attention_maps", {id_of(a.q.dtype)}, {ceil_div(a.length, kQueries), capped(a.heads), 1},
                  Push{address_of(a.q), address_of(a.k), address_of(a.out), a.begin, a.length, a.heads, a.head_dim});
}

Dispatch lower_one(const ContactSums& a, const Traits&) {
  struct Push {
    uint64_t maps, sums;
    uint32_t heads, length;
  };
  return dispatch("contact_sums", {}, {capped(a.heads), 1, 1},
                  Push{address_of(a.maps), address_of(a.sums), a.heads, a.length});
}

Dispatch lower_one(const ContactAccumulate& a, const Traits&) {
  struct Push {
    uint64_t maps, sums, weight, logits;
    uint32_t heads, length;
  };
  constexpr uint32_t kSide = 16;  // a workgroup's square of logits
  const uint32_t blocks = ceil_div(a.length - 2, kSide);
  return dispatch(
      "contact_accumulate", {}, {blocks, blocks, 1},
      Push{address_of(a.maps), address_of(a.sums), address_of(a.weight), address_of(a.logits), a.heads, a.length});
}

// The bits of `value` in a 32-bit word of that type: once, or twice for a 16-bit type.
uint32_t word_of(DType dtype, float value) {
  const auto twice = [](uint16_t bits) { return uint32_t(bits) << 16 | bits; };
  switch (dtype) {
    case DType::f16: return twice(f16_from_f32(value));
    case DType::bf16: return twice(bf16_from_f32(value));
    default: return std::bit_cast<uint32_t>(value);
  }
}

Dispatch lower_one(const Fill& a, const Traits&) {
  struct Push {
    uint64_t out;
    uint32_t words, pattern;
  };
  constexpr uint32_t kWordsPerGroup = 256 * 4;
  const uint32_t words = uint32_t(a.out.bytes() / 4);
  return dispatch("fill", {}, {capped(ceil_div(words, kWordsPerGroup)), 1, 1},
                  Push{address_of(a.out), words, word_of(a.out.dtype, a.value)});
}

Dispatch lower_one(const RandomNormal& a, const Traits&) {
  struct Push {
    uint64_t out;
    uint32_t pairs, seed;
    float stddev;
  };
  constexpr uint32_t kThreads = 256;
  const uint32_t pairs = uint32_t(a.out.count / 2);
  return dispatch("random_normal", {id_of(a.out.dtype)}, {capped(ceil_div(pairs, kThreads)), 1, 1},
                  Push{address_of(a.out), pairs, a.seed, a.stddev});
}

Dispatch lower_one(const Copy& a, const Traits&) {
  struct Push {
    uint64_t source, destination;
    uint32_t words;
  };
  constexpr uint32_t kCopyInFlight = 4;  // kInFlight in copy.comp
  constexpr uint32_t kWordsPerGroup = 256 * 4 * kCopyInFlight;
  const uint32_t words = uint32_t(a.destination.bytes() / 4);
  return dispatch("copy", {}, {capped(ceil_div(words, kWordsPerGroup)), 1, 1},
                  Push{address_of(a.source), address_of(a.destination), words});
}

Dispatch lower_one(const KvAppend& a, const Traits& traits) { return lower_kv(a, traits); }
Dispatch lower_one(const KvQuery& a, const Traits& traits) { return lower_kv(a, traits); }
Dispatch lower_one(const KvAttention& a, const Traits& traits) { return lower_kv(a, traits); }
Dispatch lower_one(const Sample& a, const Traits& traits) { return lower_kv(a, traits); }

}  // namespace

Dispatch lower(const Operation& operation, const Traits& traits) {
  return std::visit([&](const auto& a) { return lower_one(a, traits); }, operation);
}

std::vector<Variant> variants(const Operation& operation, const Traits& traits) {
  if (const auto* a = std::get_if<Linear>(&operation)) return product_variants(Product(*a), traits);
  if (const auto* a = std::get_if<QkvRope>(&operation)) return product_variants(Product(*a), traits);
  if (const auto* a = std::get_if<Attention>(&operation)) return matrix_variants(*a, traits);
  if (const auto* a = std::get_if<KvAttention>(&operation)) return kv_variants(*a, traits);
  return {};
}

std::vector<ProductTile> product_tiles(const Linear& op, const Traits& traits) {
  const Product product(op);
  std::vector<ProductTile> all = matrix_tiles(product, traits);
  if (op.x.dtype != DType::f32) return all;
  for (const PlainTile& tile : kPlainTiles)
    all.push_back({tile.name(), plain_units(traits), ceil_div(op.inputs, tile.bk), lower_tiled(product, tile)});
  return all;
}

}  // namespace turboesm::vulkan
