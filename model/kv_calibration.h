#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/kv_codec.h"

// From a model's own queries, keys and values to the operands of a preset. d = head_dim.
namespace turboesm {

// One layer's K and V of a few tokens, drawn at random, for fitting codebooks.
struct KvSamples {
  std::vector<int32_t> positions;  // [tokens]
  std::vector<float> k, v;         // [tokens, heads, d], k after RoPE
};

// What calibration knows of one layer. Symmetric matrices are upper triangles by rows: d (d + 1) / 2 values.
struct KvLayerStatistics {
  std::vector<float> k_mean_before_rope;  // [heads, d]
  std::vector<float> k_mean;              // [heads, d], after RoPE
  std::vector<float> k_rest_mean;         // [heads, d], after RoPE, of what the turned mean before RoPE leaves
  std::vector<float> v_mean;              // [heads, d]
  std::vector<float> q_moment;            // [heads, triangle], E q q^T after RoPE
  std::vector<float> k_covariance;        // [heads, triangle], after RoPE
  std::vector<float> k_rest_covariance;   // [heads, triangle], of what the turned mean before RoPE leaves
  std::vector<float> v_covariance;        // [heads, triangle]

  // Fitted by k-means: for each head and segment the centroids, then the mean |residual|. By kv_codebook_key.
  std::map<std::string, std::vector<float>, std::less<>> codebooks;
  KvSamples samples;  // only where they were just collected, not in the file
};

struct KvStatistics {
  std::string model;  // Checkpoint::hash()
  uint32_t heads = 0, head_dim = 0;
  uint64_t sequences = 0, tokens = 0;
  uint64_t seed = 0;
  std::vector<float> rope_table;  // [rows, d] as QkvRope reads it; only where samples are
  std::vector<KvLayerStatistics> layers;

  // Share of K's energy that its mean before RoPE carries, in 0 .. 1.
  double position_mean_share(uint32_t layer, uint32_t head) const;
  double position_mean_share(uint32_t layer) const;  // of all heads together
};

// What names the fitted codebooks of K or V of a recipe with KvCentroids::kmeans: all that the values to fit depend on.
std::string kv_codebook_key(const KvSideRecipe& recipe, bool is_k);

// Bits of a segment's codes without that of the residual's sign.
uint32_t kv_centroid_bits(const KvSideRecipe& recipe, uint32_t segment);

// Values of a head in KvLayerStatistics::codebooks.
uint32_t kv_codebook_values(const KvSideRecipe& recipe);

// Indices, ascending, of `count` sequences whose lengths spread evenly between the shortest and the longest
// (PTQ4Protein): bins of equal width, emptied in turn, at random within a bin. All of them if there are no more than
// `count`.
std::vector<size_t> choose_calibration(std::span<const uint32_t> lengths, size_t count, uint64_t seed);

// Collects statistics in one pass; memory does not grow with the number of tokens.
class KvCalibrator {
 public:
  struct Options {
    uint64_t seed = 0;
    uint32_t sample_tokens = 512;  // of each layer, kept for fitting codebooks
  };

  // `rope_table` [rows, d] is what turned the keys: rope_table(rows, d) with a row for each position that will come.
  KvCalibrator(const Esm2Config& config, std::vector<float> rope_table, Options options);
  KvCalibrator(const Esm2Config& config, std::vector<float> rope_table)
      : KvCalibrator(config, std::move(rope_table), Options{}) {}
  KvCalibrator(KvCalibrator&&) noexcept;
  KvCalibrator& operator=(KvCalibrator&&) noexcept;
  ~KvCalibrator();

  // Tokens of one layer: q, k (after RoPE) and v [tokens, heads, d], positions [tokens]. Layers in any order; every
  // layer gets the same tokens.
  void add(uint32_t layer, std::span<const float> q, std::span<const float> k, std::span<const float> v,
           std::span<const int32_t> positions);

  // The statistics, with codebooks fitted for every named preset that has such. Errors: usage when layers got different
  // numbers of tokens or none; input when values are not finite.
  KvStatistics finish(std::string model_hash, uint64_t sequences) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A layer's attention output projection [H, H] in f32, row-major [outputs, inputs]; asked for at most once a layer.
using OutputWeights = std::function<std::vector<float>(uint32_t layer)>;
OutputWeights checkpoint_output_weights(const Checkpoint& checkpoint);  // which must outlive it

// Host side of KvSideTensors, ready to be uploaded; empty where the operand is left out. "heads or 1" as there.
struct KvSideTables {
  std::vector<float> mean, position_mean;  // [heads, d]
  std::vector<float> transform;            // [heads or 1, d, d]
  std::vector<float> codebook;             // [heads or 1, codebook_size]
  std::vector<float> projection;           // [d, d]
};

struct KvLayerTables {
  KvSideTables k, v;
  std::vector<float> query_transform;  // [heads or 1, d, d], KvQuery::transform: k.transform's inverse, transposed
  std::vector<float> out_transform;    // [heads or 1, d, d], KvAttention::transform: v.transform's inverse
};

// All operands of a preset for one model.
struct KvTables {
  KvPreset preset;
  uint32_t heads = 0, head_dim = 0;
  bool shared = false;                // nothing is calibrated: layers holds one element, which serves every layer
  std::vector<KvLayerTables> layers;  // one for each layer, or one

  const KvLayerTables& of(uint32_t layer) const { return layers[shared ? 0 : layer]; }
};

// Values of each table that a layer of this preset has, from the preset alone.
std::vector<uint64_t> kv_table_sizes(const KvPreset& preset, uint64_t heads, uint64_t head_dim);

// Fits the k-means codebooks of a preset that the statistics, which have samples, lack. Errors as make_kv_tables.
void fit_kv_codebooks(KvStatistics& statistics, const KvPreset& preset, const OutputWeights& output_weights);

// The operands of a preset. `statistics` may be null for a preset that needs none. Errors (usage): calibration is
// needed and not there, or a codebook has to be fitted and the statistics, read from a file, have no samples.
KvTables make_kv_tables(const KvPreset& preset, const Esm2Config& config, const KvStatistics* statistics,
                        const OutputWeights& output_weights);

}  // namespace turboesm
