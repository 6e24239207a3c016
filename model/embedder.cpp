#include "model/embedder.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <optional>
#include <unordered_set>

#include "model/packing.h"
#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm {
namespace {

using Clock = std::chrono::steady_clock;

// One record of the window and, after its batch has run, its share of the results.
struct Item {
  std::string key;
  std::vector<int32_t> ids;
  std::vector<std::vector<float>> means, bos, residues;  // for each layer
  std::vector<float> logits, contacts;

  uint64_t length() const { return ids.size() - 2; }
};

// The rows of one sequence, <cls> and <eos> left out.
std::vector<float> residue_rows(const std::vector<float>& packed, uint32_t begin, uint32_t end, uint64_t width) {
  return {packed.begin() + ptrdiff_t((begin + 1) * width), packed.begin() + ptrdiff_t((end - 1) * width)};
}

class Embedder {
 public:
  Embedder(Esm2& model, TensorOutput& output, const EmbedOptions& options)
      : model_(model), output_(output), options_(options), hidden_(model.config().hidden) {
    for (int layer : options.layers) {
      const int layers = int(model.config().layers), index = layer < 0 ? layers + 1 + layer : layer;
      if (index < 0 || index > layers)
        throw_error(ErrorKind::usage, "--layers {}: the model has hidden states 0 to {} (or -1 to -{})", layer, layers,
                    layers + 1);
      if (std::ranges::find(forward_.layers, uint32_t(index)) != forward_.layers.end())
        throw_error(ErrorKind::usage, "--layers {}: hidden state {} is asked for twice", layer, index);
      forward_.layers.push_back(uint32_t(index));
    }
    forward_.means = options.mean;
    forward_.hidden = options.residues || options.bos;
    forward_.logits = options.logits;
    forward_.contacts = options.contacts;
    max_sequences_ =
        options.contacts ? 64 : kMaxBatchSequences;  // contacts take operations for each sequence and layer
    budget_ = options.max_tokens ? options.max_tokens : default_max_tokens(model.device().info());
    queue_.emplace(model, forward_, RecordOptions{.profile = options.profile}, [this](const Forward& forward) {
      report_.profile.add(forward.operations(), forward.recording().operation_seconds());
    });
  }

  EmbedReport run(FastaReader& input, const std::function<void(const EmbedProgress&)>& progress,
                  std::vector<std::string>& keys) {
    const Clock::time_point start = Clock::now();
    const auto tell = [&] {
      const std::chrono::duration<double> elapsed = Clock::now() - start;
      report_.seconds = elapsed.count();
      progress({report_.records, report_.residues, residues_read_, input.bytes_read(), input.bytes_total(),
                elapsed.count()});
    };
    // A tensor for means exists even when every record was skipped.
    write_pooled({});
    for (;;) {
      std::vector<Item> window = read_window(input);
      if (window.empty()) break;
      run_window(window, tell);
      write(window);
      for (Item& item : window) keys.push_back(std::move(item.key));
    }
    tell();
    return report_;
  }

 private:
  std::vector<Item> read_window(FastaReader& input) {
    constexpr size_t kMaxRecords = 65536;
    std::vector<Item> window;
    uint64_t held = 0;
    FastaRecord record;
    while (held < options_.window_bytes && window.size() < kMaxRecords && input.next(record)) {
      check_interrupted();
      Tokenizer::Encoded encoded = tokenizer_.encode(record.sequence, record.id);
      Item item{unique_key(record.id), std::move(encoded.ids), {}, {}, {}, {}, {}};
      report_.unknown += encoded.unknown;
      report_.stops += encoded.stop_removed;
      if (!limit_length(item)) continue;
      held += result_bytes(item);
      residues_read_ += item.length();
      window.push_back(std::move(item));
    }
    return window;
  }

  std::string unique_key(const std::string& id) {
    const std::string base = valid_utf8(id);
    std::string key = base;
    for (uint64_t n = 2; !used_keys_.insert(key).second; ++n) key = fmt::format("{}#{}", base, n);
    if (key != base) report_.renamed.push_back(key);
    return key;
  }

  // Applies max_length; false: the record is left out.
  bool limit_length(Item& item) {
    if (options_.max_length == 0 || item.length() <= options_.max_length) return true;
    if (options_.overlong == EmbedOptions::Overlong::skip) {
      report_.skipped.push_back(item.key);
      return false;
    }
    report_.truncated.push_back(item.key);
    item.ids.resize(options_.max_length + 1);
    item.ids.push_back(Tokenizer::kEos);
    return true;
  }

  uint64_t result_bytes(const Item& item) const {
    const uint64_t length = item.length(), layers = forward_.layers.size();
    uint64_t floats = 64 + 2 * layers * hidden_;
    if (options_.residues) floats += layers * length * hidden_;
    if (options_.logits) floats += length * model_.config().vocab;
    if (options_.contacts) floats += length * length;
    return 4 * (floats + length);
  }

  template <class Tell>
  void run_window(std::vector<Item>& window, Tell&& tell) {
    std::vector<uint32_t> lengths;
    for (const Item& item : window) lengths.push_back(uint32_t(item.ids.size()));
    const std::vector<uint32_t> order = longest_first(lengths);
    const auto take_batch = [&](std::span<const uint32_t>& left) {
      const std::span<const uint32_t> members = left.first(batch_size(lengths, left, budget_, max_sequences_));
      left = left.subspan(members.size());
      return members;
    };
    for (std::span<const uint32_t> left = order; !left.empty();) {
      const std::span<const uint32_t> members = take_batch(left);
      std::span<const uint32_t> after = left;
      run_batch(window, members, after.empty() ? after : take_batch(after));
      tell();
    }
  }

  static Batch batch_of(const std::vector<Item>& window, std::span<const uint32_t> members) {
    Batch batch;
    for (uint32_t i : members) batch.add(window[i].ids);
    return batch;
  }

  // `next`: what will be run then, unless the budget has changed; none: not known.
  void run_batch(std::vector<Item>& window, std::span<const uint32_t> members, std::span<const uint32_t> next) {
    check_interrupted();
    const Batch batch = batch_of(window, members), following = batch_of(window, next);
    std::string problem;
    std::optional<ForwardResult> result = try_forward(batch, next.empty() ? nullptr : &following, problem);
    if (!result) {
      if (members.size() == 1)
        throw_error(ErrorKind::out_of_memory, "record {} ({} residues) does not fit in memory alone: {}",
                    window[members[0]].key, window[members[0]].length(), problem);
      ++report_.halved;
      budget_ = std::max(1u, std::min(budget_, batch.shape.tokens) / 2);
      run_batch(window, members.first(members.size() / 2), {});
      run_batch(window, members.subspan(members.size() / 2), {});
      return;
    }
    for (uint32_t b = 0; b < members.size(); ++b) take(window[members[b]], batch, b, *result);
    ++report_.batches;
    report_.records += members.size();
    report_.residues += batch.shape.tokens - 2 * batch.shape.sequences;
  }

  // Nothing, and why, when the device's memory or the host's, where the results go, did not suffice.
  std::optional<ForwardResult> try_forward(const Batch& batch, const Batch* next, std::string& problem) {
    try {
      return queue_->run(batch, next);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::out_of_memory) throw;
      problem = error.what();
    } catch (const std::bad_alloc&) {
      problem = "out of memory on the host";
    }
    return std::nullopt;
  }

  // Copies sequence `b`'s share out of a batch's results.
  void take(Item& item, const Batch& batch, uint32_t b, ForwardResult& result) const {
    const uint32_t begin = uint32_t(batch.cu_seqlens[b]), end = uint32_t(batch.cu_seqlens[b + 1]);
    const auto row = [&](const std::vector<float>& rows, uint64_t index) {
      return std::vector<float>(rows.begin() + ptrdiff_t(index * hidden_),
                                rows.begin() + ptrdiff_t((index + 1) * hidden_));
    };
    for (const std::vector<float>& means : result.means) item.means.push_back(row(means, b));
    for (const std::vector<float>& hidden : result.hidden) {
      if (options_.bos) item.bos.push_back(row(hidden, begin));
      if (options_.residues) item.residues.push_back(residue_rows(hidden, begin, end, hidden_));
    }
    if (options_.logits) item.logits = residue_rows(result.logits, begin, end, model_.config().vocab);
    if (options_.contacts) item.contacts = std::move(result.contacts[b]);
  }

  void write(const std::vector<Item>& window) {
    write_pooled(window);
    for (const Item& item : window) {
      const uint64_t length = item.length();
      for (size_t i = 0; options_.residues && i < item.residues.size(); ++i)
        output_.add(name("residues", i) + "/" + item.key, std::vector<uint64_t>{length, hidden_}, item.residues[i]);
      if (options_.logits)
        output_.add("logits/" + item.key, std::vector<uint64_t>{length, model_.config().vocab}, item.logits);
      if (options_.contacts) output_.add("contacts/" + item.key, std::vector<uint64_t>{length, length}, item.contacts);
    }
  }

  void write_pooled(const std::vector<Item>& window) {
    std::vector<float> rows;
    const auto append = [&](const std::string& tensor, auto&& row_of) {
      rows.clear();
      for (const Item& item : window) {
        const std::vector<float>& row = row_of(item);
        rows.insert(rows.end(), row.begin(), row.end());
      }
      output_.append_rows(tensor, hidden_, rows);
    };
    for (size_t i = 0; i < forward_.layers.size(); ++i) {
      if (options_.mean)
        append(
            name("mean", i), [i](const Item& item) -> const auto& { return item.means[i]; });
      if (options_.bos)
        append(
            name("bos", i), [i](const Item& item) -> const auto& { return item.bos[i]; });
    }
  }

  std::string name(const char* base, size_t layer) const {
    return forward_.layers.size() == 1 ? base : fmt::format("{}.{}", base, forward_.layers[layer]);
  }

  static void check_interrupted() {
    if (interrupted()) throw_error(ErrorKind::cancelled, "interrupted: nothing was written");
  }

  Esm2& model_;
  TensorOutput& output_;
  const EmbedOptions& options_;
  uint64_t hidden_;
  ForwardOptions forward_;
  std::optional<ForwardQueue> queue_;
  uint32_t budget_ = 0;       // tokens of a batch
  size_t max_sequences_ = 0;  // of a batch
  uint64_t residues_read_ = 0;
  Tokenizer tokenizer_ = Tokenizer::esm2();
  std::unordered_set<std::string> used_keys_;
  EmbedReport report_;
};

}  // namespace

double EmbedProgress::share() const {
  if (bytes_total == 0 || residues_read == 0) return 0;
  return std::min(1.0, double(bytes_read) / double(bytes_total)) * double(residues) / double(residues_read);
}

uint32_t default_max_tokens(const DeviceInfo& device) {
  constexpr uint64_t kLarge = uint64_t(40) << 30;  // bytes: room for the activations beside most models' weights
  switch (device.kind) {
    case DeviceKind::discrete_gpu: return device.memory_bytes >= kLarge ? 32768 : 16384;
    case DeviceKind::integrated_gpu:
    case DeviceKind::virtual_gpu: return 8192;
    case DeviceKind::cpu:
    case DeviceKind::software_gpu: return 2048;
  }
  return 2048;
}

EmbedReport embed(Esm2& model, FastaReader& input, TensorOutput& output, const EmbedOptions& options,
                  const std::function<void(const EmbedProgress&)>& progress, std::vector<std::string>& keys) {
  return Embedder(model, output, options).run(input, progress, keys);
}

}  // namespace turboesm
