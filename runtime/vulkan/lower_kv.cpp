#include "runtime/vulkan/lower_kv.h"

#include <bit>

#include "runtime/vulkan/lower_tools.h"

namespace turboesm::vulkan {
namespace {

constexpr uint32_t kTypicalUnits = 64;  // compute units of a device that does not say

uint32_t units(const Traits& traits) { return traits.compute_units != 0 ? traits.compute_units : kTypicalUnits; }

// Whether each head has a tensor of `size` elements of its own.
bool is_per_head(const Tensor& tensor, uint64_t size) { return tensor.count > size; }

uint64_t square(uint32_t n) { return uint64_t(n) * n; }

// How kv_attention.comp divides a block of the cache: the names are those of its specialization constants.
struct KvTile {
  uint32_t threads, tokens, parts;
};

// A token's values go to as many invocations as whole units of 32 of each segment allow; where a segment is no multiple
// of a unit, an invocation takes the tokens that share one.
KvTile kv_tile(const KvAttention& a, const Traits& traits) {
  const uint32_t k = a.head_dim / a.format.k.segments, v = a.head_dim / a.format.v.segments;
  KvTile tile{.threads = 0, .tokens = std::max(kv_group_tokens(k), kv_group_tokens(v)), .parts = 1};
  while (tile.tokens == 1 && k % (64 * tile.parts) == 0 && v % (64 * tile.parts) == 0 &&
         2 * tile.parts <= traits.min_subgroup_size)
    tile.parts *= 2;
  tile.threads = std::max(traits.software ? 32u : 128u, KV_BLOCK / tile.tokens * tile.parts);
  return tile;
}

// kv_attention_rows.comp's.
KvTile kv_rows_tile(const Traits& traits) { return {.threads = traits.software ? 32u : 128u, .tokens = 4, .parts = 4}; }

// Whether that kernel is wanted and can: codes, in segments of whole units, and no more queries than registers have
// room for.
bool takes_rows(const KvAttention& a, const Traits& traits) {
  constexpr uint32_t kUnit = 32, kMostHeld = 64, kQuad = 4;
  const auto has_rows = [&](const KvSide& side) {
    return side.has_codebook() && a.head_dim / side.segments % kUnit == 0;
  };
  return !traits.stable_sums && has_rows(a.format.k) && has_rows(a.format.v) &&
         a.queries * a.head_dim / kQuad <= kMostHeld && kQuad <= traits.min_subgroup_size;
}

constexpr std::string_view kKvAttentionShaders[2][2][2] = {  // [in rows][rolled][split]
    {{"kv_attention_whole", "kv_attention_split"}, {"kv_attention_whole_rolled", "kv_attention_split_rolled"}},
    {{"kv_attention_rows_whole", "kv_attention_rows_split"},
     {"kv_attention_rows_whole_rolled", "kv_attention_rows_split_rolled"}}};

// Workgroups that share a head of a sequence: enough to occupy the device several times over, for they do not all take
// equally long, but with runs of tokens that are worth merging, and no more than scratch memory has room for.
uint32_t kv_splits(const KvAttention& a, const KvTile& tile, const Traits& traits) {
  constexpr uint32_t kGroupsPerUnit = 16, kFewestTokens = 256;
  const uint64_t tiles = uint64_t(a.sequences) * a.heads;
  if (tiles == 0 || tiles > kScratchCounters || traits.scratch_bytes <= kScratchCounters * sizeof(uint32_t)) return 1;
  const uint64_t room = (traits.scratch_bytes / sizeof(uint32_t) - kScratchCounters) /
                        (tiles * a.queries * (a.head_dim + 2));  // a score, a sum of weights, sums of values
  const uint64_t wanted = ceil_div(uint64_t(kGroupsPerUnit) * units(traits), tiles);
  return uint32_t(
      std::max<uint64_t>(std::min({wanted, uint64_t(a.capacity / kFewestTokens), room, uint64_t(tile.threads)}), 1));
}

// UNIT and THREADS of kv_append_many.comp.
constexpr uint32_t kUnit = 32, kManyThreads = 128;

bool takes_many(const KvSide& side, const KvSideTensors& t, uint32_t head_dim) {
  const bool scale =
      side.scale == KvScale::none ||
      (side.gaussian && side.scale != KvScale::absmax);  // scaled codes of other codebooks it cannot find
  const bool codes = side.has_codebook() && !side.qjl && scale;
  const bool copy = side.bits[0] == 16 && !t.mean && !t.position_mean && !t.transform;
  return (codes || copy) && head_dim / side.segments % kUnit == 0;
}

bool takes_many(const KvAppend& a) {
  return a.k.dtype == DType::f16 && a.v.dtype == DType::f16 && a.max_count >= KV_BLOCK && a.head_dim <= kManyThreads &&
         kManyThreads % a.head_dim == 0 && takes_many(a.format.k, a.k_side, a.head_dim) &&
         takes_many(a.format.v, a.v_side, a.head_dim);
}

// Of the variant on matrix units.
uint32_t many_shared_bytes(const KvAppend& a) {
  constexpr uint32_t kVector = 16, kEights = 8;
  const uint32_t columns = a.head_dim / kEights, turned = a.k_side.position_mean ? 1 : 0;
  const uint32_t tokens = kManyThreads / a.head_dim * KV_BLOCK;
  const uint32_t x = tokens * (columns + 1), y = kManyThreads * (kUnit / kEights + 1);
  const uint32_t transform = a.head_dim * ((1 + turned) * columns + 1);
  return (std::max(x, y) + turned * x + transform) * kVector +
         (2 * kManyThreads + 2 * 16 + 4) * uint32_t(sizeof(uint32_t));
}

Dispatch lower_many(const KvAppend& a, const Traits& traits) {
  struct Push {
    uint64_t k, v, appends, table, cache;
    uint64_t k_mean, position_mean, k_transform, k_codebook, v_mean, v_transform, v_codebook;
    uint32_t blocks, table_rows, sequences, steps, run;
  };
  const auto flags = [&](const KvSide& side, const KvSideTensors& t) {  // as in the shader
    return uint32_t(bool(t.mean)) | uint32_t(bool(t.position_mean)) << 1 | uint32_t(bool(t.transform)) << 2 |
           uint32_t(is_per_head(t.transform, square(a.head_dim))) << 3 |
           uint32_t(is_per_head(t.codebook, side.codebook_size())) << 4 | uint32_t(side.gaussian) << 5;
  };
  const KvSide &k = a.format.k, &v = a.format.v;
  const bool matrix = traits.matrix_f16 && traits.min_subgroup_size <= kUnit && kUnit <= traits.max_subgroup_size &&
                      many_shared_bytes(a) <= traits.max_shared_bytes;
  // Runs long enough to prepare a transform for, and short enough to occupy the device several times over. An append
  // may begin in the middle of a block.
  constexpr uint32_t kGroupsPerUnit = 4;
  const uint32_t slots = kManyThreads / a.head_dim, blocks = ceil_div(a.max_count - 1, KV_BLOCK) + 1;
  const uint32_t steps = ceil_div(blocks, slots) * a.sequences;
  const uint32_t runs = std::clamp(ceil_div(uint64_t(kGroupsPerUnit) * units(traits), 2ull * std::max(a.heads, 1u)), 1u,
                                   std::max(steps, 1u));
  const uint32_t run = std::max(ceil_div(steps, runs), 1u);
  Dispatch result =
      dispatch(matrix            ? "kv_append_many_coopmat"
               : traits.software ? "kv_append_many_plain_rolled"
                                 : "kv_append_many_plain",
               {id_of(DType::f16), kManyThreads, kUnit, a.head_dim, k.segments, k.bits[0], k.bits[1], k.scale_bits,
                uint32_t(k.scale), v.segments, v.bits[0], v.bits[1], v.scale_bits, uint32_t(v.scale),
                flags(k, a.k_side), flags(v, a.v_side)},
               {ceil_div(steps, run), a.heads, 2},
               Push{address_of(a.k), address_of(a.v), address_of(a.appends), address_of(a.table), address_of(a.cache),
                    address_of(a.k_side.mean), address_of(a.k_side.position_mean), address_of(a.k_side.transform),
                    address_of(a.k_side.codebook), address_of(a.v_side.mean), address_of(a.v_side.transform),
                    address_of(a.v_side.codebook), a.capacity / KV_BLOCK, a.table_rows, a.sequences, steps, run});
  if (matrix) result.subgroup_size = kUnit;
  return result;
}

}  // namespace

Dispatch lower_kv(const KvAppend& a, const Traits& traits) {
  if (takes_many(a)) return lower_many(a, traits);
  struct Push {
    uint64_t k, v, appends, table, cache;
    uint64_t k_mean, position_mean, k_transform, k_codebook, projection, v_mean, v_transform, v_codebook;
    uint32_t k_side, v_side, blocks;
  };
  const auto describe = [&](const KvSide& side, const KvSideTensors& t) {  // as in the shader
    return uint32_t(bool(t.mean)) | uint32_t(bool(t.position_mean)) << 1 | uint32_t(bool(t.transform)) << 2 |
           uint32_t(is_per_head(t.transform, square(a.head_dim))) << 3 |
           uint32_t(side.has_codebook() && is_per_head(t.codebook, side.codebook_size())) << 4 |
           uint32_t(side.qjl) << 5 | side.segments << 6 | side.bits[0] << 8 | side.bits[1] << 14 |
           side.scale_bits << 20 | uint32_t(side.scale) << 25;
  };
  // Tokens of a workgroup: as many as shared memory takes at a time, but no fewer than have words in common.
  constexpr uint32_t kTile = 8;  // TILE in the shader
  const uint32_t tokens = std::clamp(std::bit_floor(1024 / a.head_dim), kTile, KV_BLOCK);
  const uint32_t threads = a.head_dim <= 128 ? 128 : 256;
  return dispatch("kv_append", {threads, id_of(a.k.dtype), a.head_dim, tokens},
                  {capped(1 + ceil_div(a.max_count - 1, tokens)), 2 * a.heads, a.sequences},
                  Push{address_of(a.k), address_of(a.v), address_of(a.appends), address_of(a.table),
                       address_of(a.cache), address_of(a.k_side.mean), address_of(a.k_side.position_mean),
                       address_of(a.k_side.transform), address_of(a.k_side.codebook), address_of(a.k_side.projection),
                       address_of(a.v_side.mean), address_of(a.v_side.transform), address_of(a.v_side.codebook),
                       describe(a.format.k, a.k_side), describe(a.format.v, a.v_side), a.capacity / KV_BLOCK});
}

Dispatch lower_kv(const KvQuery& a, const Traits& traits) {
  struct Push {
    uint64_t q, transform, projection, position_mean, out, projected, position;
    uint32_t rows;
  };
  enum : uint32_t { kHasTransform = 1, kOfEachHead = 2, kHasProjection = 4, kHasPosition = 8 };  // as in the shader
  const uint32_t flags = (a.transform ? kHasTransform : 0u) |
                         (is_per_head(a.transform, square(a.head_dim)) ? kOfEachHead : 0u) |
                         (a.projection ? kHasProjection : 0u) | (a.position_mean ? kHasPosition : 0u);
  // Rows share what is read of a matrix once there are enough to occupy the device.
  const uint32_t rows = uint64_t(a.rows) * a.heads >= 8 * uint64_t(units(traits)) ? 2 : 1;
  return dispatch("kv_query", {id_of(a.q.dtype), a.head_dim, rows, flags, id_of(a.position.dtype)},
                  {a.heads, capped(ceil_div(a.rows, rows)), 1},
                  Push{address_of(a.q), address_of(a.transform), address_of(a.projection), address_of(a.position_mean),
                       address_of(a.out), address_of(a.projected), address_of(a.position), a.rows});
}

namespace {

// By kv_attention_rows.comp, which must be able to, or kv_attention.comp.
Dispatch lower_attention(const KvAttention& a, const Traits& traits, bool rows) {
  struct Push {
    uint64_t q, projected, bias, cache, lengths, k_codebook, v_codebook, transform, mean, out, scratch;
    uint32_t blocks, ones[2] = {7, 15}, shifts[7] = {2, 6, 10, 14, 18, 22, 26};
  };
  enum : uint32_t {  // as in the shader
    kHasBias = 1,
    kHasTransform = 2,
    kTransformOfHead = 4,
    kHasMean = 8,
    kKCodebookOfHead = 16,
    kVCodebookOfHead = 32
  };
  const KvSide &k = a.format.k, &v = a.format.v;
  const uint32_t flags = (a.bias ? kHasBias : 0u) | (a.transform ? kHasTransform : 0u) |
                         (is_per_head(a.transform, square(a.head_dim)) ? kTransformOfHead : 0u) |
                         (a.mean ? kHasMean : 0u) |
                         (k.has_codebook() && is_per_head(a.k_codebook, k.codebook_size()) ? kKCodebookOfHead : 0u) |
                         (v.has_codebook() && is_per_head(a.v_codebook, v.codebook_size()) ? kVCodebookOfHead : 0u);
  const KvTile tile = rows ? kv_rows_tile(traits) : kv_tile(a, traits);
  const uint32_t splits = kv_splits(a, tile, traits);
  const uint32_t merged = a.head_dim / tile.parts % 16 == 0 ? 16 : 8;
  Dispatch result =
      dispatch(kKvAttentionShaders[rows][traits.software][splits > 1],
               {tile.threads, a.head_dim, a.queries, tile.tokens, tile.parts, k.segments, k.bits[0], k.bits[1],
                k.scale_bits, k.qjl, v.segments, v.bits[0], v.bits[1], v.scale_bits, flags, id_of(a.out.dtype), merged},
               {a.heads, a.sequences, splits},
               Push{address_of(a.q), address_of(a.projected), address_of(a.bias), address_of(a.cache),
                    address_of(a.lengths), address_of(a.k_codebook), address_of(a.v_codebook), address_of(a.transform),
                    address_of(a.mean), address_of(a.out), traits.scratch_address, a.capacity / KV_BLOCK});
  result.uses_scratch = splits > 1;
  return result;
}

}  // namespace

Dispatch lower_kv(const KvAttention& a, const Traits& traits) {
  return lower_attention(a, traits, takes_rows(a, traits));
}

std::vector<Variant> kv_variants(const KvAttention& a, const Traits& traits) {
  if (!takes_rows(a, traits)) return {};
  return {{"rows of 8 codes", lower_attention(a, traits, true)},
          {"units of 32 codes", lower_attention(a, traits, false)}};
}

Dispatch lower_kv(const Sample& a, const Traits&) {
  struct Push {
    uint64_t logits, candidates, limits, tokens, log_probability, ids, positions, appends, lengths, active;
    uint32_t vocab, candidate_count, capacity, seed, first_stream;
    float temperature, top_p;
    int32_t stop_id;
  };
  return dispatch("sample", {}, {a.sequences, 1, 1},
                  Push{address_of(a.logits), address_of(a.candidates), address_of(a.limits), address_of(a.tokens),
                       address_of(a.log_probability), address_of(a.ids), address_of(a.positions), address_of(a.appends),
                       address_of(a.lengths), address_of(a.active), a.vocab, a.candidate_count, a.capacity, a.seed,
                       a.first_stream, a.temperature, a.top_p, a.stop_id});
}

}  // namespace turboesm::vulkan
