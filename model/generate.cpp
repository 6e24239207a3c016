#include "model/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "model/tokenizer.h"
#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm {
namespace {

constexpr uint32_t kStepsBetweenLooks = 16;  // at the device's state, to stop when all sequences have ended

void check_interrupted() {
  if (interrupted()) throw_error(ErrorKind::cancelled, "interrupted");
}

GeneratedProtein protein_of(std::span<const int32_t> tokens, size_t prompt, float log_probability) {
  GeneratedProtein protein;
  protein.stopped = tokens.back() == Tokenizer::kEos;
  protein.residues.assign(tokens.begin() + 1, tokens.end() - (protein.stopped ? 1 : 0));
  const size_t chosen = tokens.size() - prompt;
  protein.mean_log_probability = chosen ? double(log_probability) / double(chosen) : 0;
  return protein;
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Follows a decoder for those who want to see each step.
class StepReporter {
 public:
  StepReporter(Decoder& decoder, const Esm2Config& config, const DecodeTask& task, uint32_t first, uint32_t count)
      : decoder_(decoder), vocab_(config.vocab), logits_(2ull * count * config.vocab) {
    step_.first = first;
    step_.prompt.assign(count, uint32_t(task.prompt.size()));
    step_.tokens.assign(count, task.prompt);
    step_.last.resize(count);
    step_.cache_bytes = kv_cache_bytes(decoder.cache().format(), config, count, decoder.cache().capacity());
    step_.cached_tokens = uint64_t(count) * task.prompt.size();
    step_.cache_capacity = uint64_t(count) * decoder.cache().capacity();
  }

  // After a step that was waited for.
  void update() {
    const std::vector<std::vector<int32_t>> tokens = decoder_.tokens();
    decoder_.download_logits(logits_);
    step_.cached_tokens = 0;
    for (size_t b = 0; b < tokens.size(); ++b) {
      const size_t row = 2 * b + 1;  // the <mask> behind the residues
      if (tokens[b].size() > step_.tokens[b].size())
        step_.last[b] = amino_acid_distribution(std::span(logits_).subspan(row * vocab_, vocab_));
      step_.cached_tokens += tokens[b].size() - 1;  // the last one goes in with the next step
    }
    step_.tokens = tokens;
  }

  const GenerateStep& step() {
    step_.seconds = seconds_since(begin_);
    return step_;
  }

 private:
  Decoder& decoder_;
  size_t vocab_;
  std::vector<float> logits_;
  GenerateStep step_;
  Clock::time_point begin_ = Clock::now();
};

// Proteins `first` to `first + count`, decoded together.
void decode(Esm2& model, const KvTables& tables, const GenerateOptions& o, uint32_t first, uint32_t count,
            GenerateReport& report, const std::function<void(const GenerateProgress&)>& progress,
            const std::function<void(const GenerateStep&)>& on_step) {
  DecodeTask task;
  task.prompt.push_back(Tokenizer::kCls);
  task.prompt.insert(task.prompt.end(), o.prompt.begin(), o.prompt.end());
  task.limit = o.length + 1;
  Decoder decoder(model, tables,
                  {.sequences = count,
                   .capacity = task.limit,
                   .temperature = o.temperature,
                   .top_p = o.top_p,
                   .seed = o.seed,
                   .first_stream = first});
  decoder.start(std::vector<DecodeTask>(count, task), o.max_tokens);
  const uint32_t steps = task.limit - uint32_t(task.prompt.size());
  std::optional<StepReporter> reporter;
  if (on_step) on_step(reporter.emplace(decoder, model.config(), task, first, count).step());
  Ticket last = 0;
  for (uint32_t step = 0; step < steps; ++step) {
    last = decoder.submit();
    ++report.steps;
    if (reporter) {
      decoder.wait(last);
      reporter->update();
      on_step(reporter->step());
    }
    if ((step + 1) % kStepsBetweenLooks != 0) continue;
    const bool active = decoder.any_active();
    check_interrupted();
    if (!active) break;
    progress({GenerateProgress::Stage::decoding, (first + count * double(step + 1) / steps) / o.count});
  }
  decoder.wait(last);
  const std::vector<std::vector<int32_t>> tokens = decoder.tokens();
  const std::vector<float> log_probability = decoder.log_probability();
  for (uint32_t b = 0; b < count; ++b)
    report.proteins.push_back(protein_of(tokens[b], task.prompt.size(), log_probability[b]));
}

}  // namespace

double pseudo_perplexity(Esm2& model, std::span<const int32_t> residues, uint32_t max_tokens,
                         const std::function<void(double)>& progress) {
  std::vector<int32_t> ids{Tokenizer::kCls};
  ids.insert(ids.end(), residues.begin(), residues.end());
  ids.push_back(Tokenizer::kEos);
  const size_t length = ids.size(), vocab = model.config().vocab;
  const size_t at_once = std::max<size_t>(1, max_tokens / length);
  double sum = 0;
  for (size_t first = 1; first + 1 < length; first += at_once) {
    check_interrupted();
    const size_t end = std::min(first + at_once, length - 1);
    Batch batch;
    for (size_t masked = first; masked < end; ++masked) {
      std::vector<int32_t> copy = ids;
      copy[masked] = Tokenizer::kMask;
      batch.add(copy);
    }
    const ForwardResult result = model.forward(batch, {.logits = true});
    for (size_t masked = first; masked < end; ++masked) {
      const float* logits = &result.logits[((masked - first) * length + masked) * vocab];
      const float largest = *std::max_element(logits, logits + vocab);
      double total = 0;
      for (size_t i = 0; i < vocab; ++i) total += std::exp(double(logits[i]) - largest);
      sum += double(logits[ids[masked]]) - largest - std::log(total);
    }
    progress(double(end - 1) / double(length - 2));
  }
  return std::exp(-sum / double(residues.size()));
}

GenerateReport generate(Esm2& model, const KvTables& tables, const GenerateOptions& options,
                        const std::function<void(const GenerateProgress&)>& progress,
                        const std::function<void(const GenerateStep&)>& step) {
  GenerateReport report;
  report.at_once = options.count;
  const Clock::time_point begin = Clock::now();
  for (uint32_t first = 0; first < options.count;) {
    const uint32_t count = std::min(report.at_once, options.count - first);
    try {
      decode(model, tables, options, first, count, report, progress, step);
      first += count;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::out_of_memory || count == 1) throw;
      report.at_once = (count + 1) / 2;
    }
  }
  report.decode_seconds = seconds_since(begin);
  report.cache_bytes = kv_cache_bytes(tables.preset.format(), model.config(), report.at_once, options.length + 1);
  for (size_t i = 0; options.pseudo_perplexity && i < report.proteins.size(); ++i) {
    GeneratedProtein& protein = report.proteins[i];
    if (protein.residues.empty()) continue;
    protein.pseudo_perplexity = pseudo_perplexity(model, protein.residues, options.max_tokens, [&](double share) {
      progress({GenerateProgress::Stage::judging, (double(i) + share) / double(report.proteins.size())});
    });
  }
  return report;
}

}  // namespace turboesm
