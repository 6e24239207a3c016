#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/amino_acids.h"
#include "model/decoder.h"

namespace turboesm {

struct GenerateOptions {
  std::vector<int32_t> prompt;  // residues to go on from, without <cls>; may be empty
  uint32_t count = 1;           // proteins
  uint32_t length = 256;        // at most, in residues, the prompt counted
  float temperature = 1, top_p = 1;
  uint32_t seed = 0;
  bool pseudo_perplexity = true;
  uint32_t max_tokens = 16384;  // of a batch of full forward passes
};

struct GeneratedProtein {
  std::vector<int32_t> residues;    // token ids, the prompt's included, without <cls> and <eos>
  bool stopped = false;             // the model chose <eos>; else it was cut at the length asked for
  double mean_log_probability = 0;  // of the tokens chosen (<eos> too), by the model at temperature 1, nats
  double pseudo_perplexity = 0;     // under the full model; 0 when not asked for or without residues
};

struct GenerateReport {
  std::vector<GeneratedProtein> proteins;
  uint32_t at_once = 0;       // sequences decoded together
  uint64_t cache_bytes = 0;   // of those
  uint64_t steps = 0;         // replays of the decoding step
  double decode_seconds = 0;  // prefill and steps
};

struct GenerateProgress {
  enum class Stage { decoding, judging } stage = Stage::decoding;
  double share = 0;  // of the stage
};

// One decoding step of the sequences that are decoded together.
struct GenerateStep {
  uint32_t first = 0;                              // the protein that the first of them becomes
  std::vector<std::vector<int32_t>> tokens;        // of each: <cls>, prompt and what was chosen, a stop included
  std::vector<AminoAcidDistribution> last;         // that each one's last token was drawn from, at temperature 1
  std::vector<uint32_t> prompt;                    // tokens of each that were not drawn, <cls> counted
  uint64_t cache_bytes = 0;                        // of the cache
  uint64_t cached_tokens = 0, cache_capacity = 0;  // in it, and that it has room for, in all sequences
  double seconds = 0;                              // since the decoding of these began
};

// Decodes `count` proteins, all at once where memory allows and in halves of that where it does not; protein i is the
// same whatever it was decoded with. Throws Error(cancelled) once interrupted(). With `step`, which is called after the
// prompts and after every step, each step is waited for. What `progress` and `step` throw ends the work and goes on to
// the caller: Error(cancelled) is how to stop it.
GenerateReport generate(Esm2& model, const KvTables& tables, const GenerateOptions& options,
                        const std::function<void(const GenerateProgress&)>& progress,
                        const std::function<void(const GenerateStep&)>& step = {});

// exp(- mean over the residues of log p(residue | all others)), each residue in turn replaced by <mask>
// (Salazar et al. 2020), p over the whole vocabulary. `residues` without <cls> and <eos>, not empty.
double pseudo_perplexity(Esm2& model, std::span<const int32_t> residues, uint32_t max_tokens,
                         const std::function<void(double share)>& progress);

}  // namespace turboesm
