#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/esm2.h"
#include "model/fasta.h"
#include "model/profile.h"
#include "model/tensor_output.h"
#include "model/tokenizer.h"

namespace turboesm {

struct EmbedOptions {
  // What is written for each record. With one layer the names are as given here, with several `mean`, `bos` and
  // `residues` become `mean.LAYER`, `bos.LAYER` and `residues.LAYER`.
  bool mean = true;             // mean          [records, hidden], over the residues
  bool bos = false;             // bos           [records, hidden], the <cls> token
  bool residues = false;        // residues/ID   [length, hidden]
  bool logits = false;          // logits/ID     [length, 33]
  bool contacts = false;        // contacts/ID   [length, length]
  std::vector<int> layers{-1};  // as transformers numbers hidden states; negative counts from the last

  uint32_t max_length = 0;                                               // residues; 0: no limit
  enum class Overlong { truncate, skip } overlong = Overlong::truncate;  // what happens to longer records

  uint32_t max_tokens = 0;               // of one batch, <cls> and <eos> counted; 0: default_max_tokens()
  uint64_t window_bytes = 256ull << 20;  // results held back at most to restore the input's order
  bool profile = false;                  // time every operation; see EmbedReport::profile
};

struct EmbedProgress {
  uint64_t records = 0, residues = 0;        // done
  uint64_t residues_read = 0;                // of the input so far, which is read a window ahead
  uint64_t bytes_read = 0, bytes_total = 0;  // of the input; total 0: unknown
  double seconds = 0;
  // Share of the work done, 0 to 1, from the share of the bytes read and of what was read; 0 when unknown.
  double share() const;
};

struct EmbedReport {
  uint64_t records = 0;   // written
  uint64_t residues = 0;  // computed
  uint64_t batches = 0;
  uint64_t halved = 0;                                   // batches that did not fit in memory and were split
  uint64_t unknown = 0;                                  // residues that became <unk>
  uint64_t stops = 0;                                    // records whose '*' at the end was dropped
  std::vector<std::string> truncated, skipped, renamed;  // by key in the output; renamed: ids that occurred before
  double seconds = 0;
  Profile profile;  // with EmbedOptions::profile
};

// Tokens of a batch that keep this kind of device busy.
uint32_t default_max_tokens(const DeviceInfo& device);

// Reads records until the end, window by window: sorts a window by length, runs it in batches of at most max_tokens,
// and writes the results in the input's order. A batch that does not fit in device memory is halved, and so is the
// budget of those that follow; a single record that does not fit is an Error(out_of_memory) that names it. Records of
// one id get the keys ID, ID#2, ID#3 ... Calls `progress` after each batch. Throws Error(cancelled) once interrupted().
// `output` is left for the caller to finish() with the metadata; `keys` receives the records' keys in order.
EmbedReport embed(Esm2& model, FastaReader& input, TensorOutput& output, const EmbedOptions& options,
                  const std::function<void(const EmbedProgress&)>& progress, std::vector<std::string>& keys);

}  // namespace turboesm
