#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/esm2.h"
#include "model/kv_calibration.h"

// How good a quantized KV cache is: the same incremental procedure (model/decoder.h) with an f32 cache and with
// another, on the same proteins. The first half of a protein (with <cls>) is the prompt; the second half is decoded
// residue by residue with the true residues given, through all layers to the logits.
namespace turboesm {

struct CompareRecord {
  std::string name;
  std::vector<int32_t> ids;  // <cls> and at least two residues, no <eos>
};

// Of the distributions over the 20 amino acids, at the row of a residue or at that of the <mask> behind it.
struct LogitAgreement {
  double kl_mean = 0, kl_p99 = 0;  // KL(f32 cache || this cache), nats: mean and 99th percentile over positions
  double top1 = 0;                 // share of positions with the same most likely residue
};

struct KvQuality {
  std::string preset;
  double bits_per_value = 0;   // as stored: codes, scales, signs, padding
  double bytes_per_token = 0;  // K and V of all layers
  LogitAgreement residue, mask;
  double hidden_l2 = 0;                            // relative L2 error of the last hidden state, mean over residues
  double hidden_cosine = 0, hidden_cosine_p1 = 0;  // mean and 1st percentile
  double perplexity = 0;                           // of the true residues at the <mask> rows with this cache
  double perplexity_f32 = 0;                       // and with the f32 cache
  double layer0_cosine = 0;                        // of layer 0's attention output: what TurboESM reports of itself
  std::string worst;                               // protein with the largest mean KL at its residues
  double worst_kl = 0;
  uint64_t positions = 0;
};

struct CompareOptions {
  uint32_t sequences = 64;      // decoded at once
  uint32_t max_tokens = 16384;  // of a prefill batch
};

// What is compared: a name and the tables of its cache.
struct CompareSubject {
  std::string name;
  KvTables tables;
};

// The f32 cache with every attention weight equal: what is left when a cache loses its keys altogether. A control.
CompareSubject uniform_attention(const KvTables& f32);

// Decodes all records with `f32` and with each subject. `progress` gets the share of the work done.
std::vector<KvQuality> compare(Esm2& model, const KvTables& f32, std::vector<CompareSubject>& subjects,
                               std::vector<CompareRecord> records, const CompareOptions& options,
                               const std::function<void(double share)>& progress);

// One residue of the second half of a protein, decoded with the f32 cache and with another.
struct PositionAgreement {
  uint32_t position = 0;         // 1-based residue
  double kl = 0;                 // at its row, as LogitAgreement's
  int32_t top_f32 = 0, top = 0;  // most likely amino acid with either cache, a token
};

// The same comparison of one protein, position by position; `progress` may throw to end it, as generate()'s.
std::vector<PositionAgreement> compare_positions(Esm2& model, const KvTables& f32, const KvTables& tables,
                                                 const CompareRecord& record,
                                                 const std::function<void(double share)>& progress);

// KvQuality::residue of these.
LogitAgreement summary(std::span<const PositionAgreement> positions);

}  // namespace turboesm
