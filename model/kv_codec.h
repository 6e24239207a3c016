#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "runtime/kv_operations.h"

// What a quantized KV cache is made of: presets by name or by specification, what they take, and how to read them back.
namespace turboesm {

// What is taken off before the transform. `mean`: the head's mean (of K after RoPE, where it cancels in the softmax; of
// V, where it is added back once). `position_mean`, K only: the mean before RoPE, turned to the token's position, and
// then the mean of what is left.
enum class KvCentre : uint32_t { none, mean, position_mean };

// The linear map before quantization; all but `balanced` are orthogonal. svd: principal axes of what is left after
// centring, largest first. hadamard: signed_hadamard. random_orthogonal: seeded, uniform over all rotations. balanced:
// balanced_transform, then signed_hadamard.
enum class KvTransform : uint32_t { none, svd, hadamard, random_orthogonal, balanced };

// exact: 16 or 32 bits, no codebook. integer: -2^(b-1) .. 2^(b-1) - 1. gaussian: Lloyd-Max for N(0, 1). kmeans:
// fitted for each head to its centred, transformed (and scaled) calibration values.
enum class KvCentroids : uint32_t { exact, integer, gaussian, kmeans };

// How K or V gets from a model's values to what `side` stores.
struct KvSideRecipe {
  KvSide side;
  KvCentre centre = KvCentre::none;
  KvTransform transform = KvTransform::none;
  KvCentroids centroids = KvCentroids::exact;
  bool channel_scale = false;  // a calibrated scale of each transformed channel, part of the transform
  // The last of side.bits[0] is the sign of the residual: decoded to the centroid of the other bits -/+ mean
  // |residual|.
  bool sign = false;

  bool operator==(const KvSideRecipe&) const = default;

  // Whether each head's transform carries a calibrated factor that makes the average scale (of a segment) 1: for 8-bit
  // scales, whose range is small, and for a Gaussian codebook without scales.
  bool has_factor() const;
  bool needs_calibration() const;
};

struct KvPreset {
  std::string name;  // as asked for: a preset's name or a specification
  std::string spec;  // in the grammar of parse_kv_preset
  std::string what;  // one line for people; empty for a specification
  KvSideRecipe k, v;

  KvFormat format() const { return {k.side, v.side}; }
  bool needs_calibration() const { return k.needs_calibration() || v.needs_calibration(); }
};

struct KvPresetRow {
  std::string_view name, spec, what;
};
std::span<const KvPresetRow> kv_presets();  // the published schemes, the baselines and our own
inline constexpr std::string_view kDefaultKvPreset = "turbo";

// A preset by name, or one put together from parts joined by ',' or '+':
//   kBITS vBITS    both needed: 1, 2, 3, 4; A/B, 2/1 to 4/3 (the half of the channels with more energy has A bits, the
//                  other B; 1.5, 2.5 and 3.5 are 2/1, 3/2 and 4/3); 8; 16, 32 (f16, f32, as they are)
//   post | pre     centre: K's mean after, or before RoPE (KvCentre::mean, position_mean); V's mean with either
//   svd | hadamard | random | balanced      transform
//   norm | correct | search | absmax        scale of a token and head (KvScale); without: none
//   s8 | s16       bits of a scale; 16 if not said
//   channel        calibrated per-channel scale inside the transform, in place of a token's scale
//   gauss | kmeans | int                    codebook; gauss if not said; int and 8 bits go with absmax only
//   sign           K: one bit more, the sign of the residual
//   qjl            K: signs of a random projection of the residual, and its norm (QJL)
// A part applies to K and V; "k:" or "v:" before it limits it to one side and overrides the general one ("k3,v3,svd,
// v:hadamard"). Sides of 16 or 32 bits ignore general parts. Errors (usage) name the part, or list the presets.
KvPreset parse_kv_preset(std::string_view text);

// Presets and specifications (joined by '+' inside) separated by commas: "f16,turbo,k4/3+v4/2+pre+balanced+search+s8".
std::vector<KvPreset> parse_kv_presets(std::string_view list);

// Bits of K and V that one value takes on average as stored: codes, scales, signs, residual norms.
double kv_bits_per_value(const KvFormat& format, uint32_t head_dim);
double kv_bits_per_value(const KvSide& side, uint32_t head_dim);

// Bytes of K and V of one token in one layer. Blocks of 32 tokens are whole words, so this may be no whole number.
double kv_token_layer_bytes(const KvFormat& format, uint32_t heads, uint32_t head_dim);

// Tokens that a cache for `tokens` of them is allocated for: the next multiple of KV_BLOCK.
uint32_t kv_capacity(uint32_t tokens);

// Device memory of the cache itself, of one layer and of all: `capacity` tokens (kv_capacity of it) for each sequence.
uint64_t kv_layer_bytes(const KvFormat& format, const Esm2Config& config, uint32_t sequences, uint32_t capacity);
uint64_t kv_cache_bytes(const KvFormat& format, const Esm2Config& config, uint32_t sequences, uint32_t capacity);

// How many times smaller than a cache of 16 (32) bits a value.
double kv_ratio_to_f16(const KvFormat& format, uint32_t head_dim);
double kv_ratio_to_f32(const KvFormat& format, uint32_t head_dim);

// The host's plain reading of one side of a block (KV_BLOCK tokens), straight from kv_layout.h.
struct KvDecodedBlock {
  std::vector<uint32_t> codes;        // [KV_BLOCK, head_dim]: codes, two's complement bytes, f16 or f32 bits
  std::vector<float> scales;          // [KV_BLOCK, segments]; empty without
  std::vector<float> values;          // [KV_BLOCK, head_dim]: decoded y
  std::vector<float> signs;           // [KV_BLOCK, head_dim] +1 or -1; empty without qjl
  std::vector<float> residual_norms;  // [KV_BLOCK]; empty without qjl
};

// `words` are side.block_words(head_dim) words (V's follow K's in a block); `codebook` is the head's part of
// KvSideTensors::codebook, empty where the side has none.
KvDecodedBlock decode_kv_block(const KvSide& side, uint32_t head_dim, std::span<const uint32_t> words,
                               std::span<const float> codebook);

// The reverse of its codes: puts `code` where value i of token t belongs into words that are 0 there.
void deposit_kv_code(const KvSide& side, uint32_t head_dim, std::span<uint32_t> words, uint32_t t, uint32_t i,
                     uint32_t code);

}  // namespace turboesm
