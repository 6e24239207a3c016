#include "model/compare.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "model/amino_acids.h"
#include "model/decoder.h"
#include "model/tokenizer.h"
#include "runtime/error.h"
#include "runtime/platform.h"

namespace turboesm {
namespace {

double cosine(std::span<const float> a, std::span<const float> b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) ab += double(a[i]) * b[i], aa += double(a[i]) * a[i], bb += double(b[i]) * b[i];
  return ab / std::max(std::sqrt(aa * bb), 1e-30);
}

double relative_l2(std::span<const float> want, std::span<const float> got) {
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (double(got[i]) - want[i]) * (double(got[i]) - want[i]);
    size += double(want[i]) * want[i];
  }
  return std::sqrt(error / std::max(size, 1e-30));
}

// What one step of a batch leaves: rows 2 b and 2 b + 1 of sequence b.
struct Step {
  std::vector<float> logits, hidden, attention;  // [R, vocab], [R, hidden], [R, hidden]
};

// Values over positions, of which means and percentiles are wanted.
class Sample {
 public:
  void add(double value) { values_.push_back(float(value)), sum_ += value; }
  double mean() const { return values_.empty() ? 0 : sum_ / double(values_.size()); }
  double percentile(double share) {
    if (values_.empty()) return 0;
    const auto at = values_.begin() + ptrdiff_t(share * double(values_.size() - 1) + 0.5);
    std::nth_element(values_.begin(), at, values_.end());
    return *at;
  }
  size_t size() const { return values_.size(); }

 private:
  std::vector<float> values_;
  double sum_ = 0;
};

// What one row of logits says, against the reference.
struct RowTally {
  Sample kl;
  uint64_t agreed = 0;
  double add(const AminoAcidDistribution& want, const AminoAcidDistribution& got) {
    const double value = divergence(want, got);
    kl.add(value);
    agreed += most_likely(want) == most_likely(got);
    return value;
  }
  LogitAgreement summary() {
    return {kl.mean(), kl.percentile(0.99), kl.size() ? double(agreed) / double(kl.size()) : 0};
  }
};

struct Tally {
  RowTally residue, mask;
  Sample l2, cosines, layer0;
  Sample loss, loss_f32;  // negative log-probability of the true residue
  std::string worst;
  double worst_kl = -1;
};

// One batch of records as tasks of a decoder.
struct Tasks {
  std::span<const CompareRecord> records;
  std::vector<DecodeTask> tasks;
  uint32_t steps = 0, capacity = 0;

  explicit Tasks(std::span<const CompareRecord> batch) : records(batch) {
    for (const CompareRecord& record : batch) {
      const size_t half = record.ids.size() / 2;
      DecodeTask task;
      task.prompt.assign(record.ids.begin(), record.ids.begin() + ptrdiff_t(half));
      task.forced.assign(record.ids.begin() + ptrdiff_t(half), record.ids.end());
      task.forced.push_back(Tokenizer::kEos);  // in the step that chooses it the last residue has its row
      task.limit = uint32_t(record.ids.size()) + 1;
      steps = std::max(steps, uint32_t(task.forced.size()));
      capacity = std::max(capacity, task.limit);
      tasks.push_back(std::move(task));
    }
  }
};

class Comparison {
 public:
  Comparison(Esm2& model, const CompareOptions& options) : model_(model), options_(options) {}

  // Runs a batch with one cache; `visit(step, values)` sees each step.
  template <class Visit>
  void run(const Tasks& tasks, const KvTables& tables, Visit&& visit) {
    Decoder decoder(
        model_, tables,
        {.sequences = uint32_t(tasks.tasks.size()), .capacity = tasks.capacity, .hidden = true, .probe = true});
    decoder.start(tasks.tasks, options_.max_tokens);
    const size_t rows = 2 * tasks.tasks.size();
    Step values;
    values.logits.resize(rows * model_.config().vocab);
    values.hidden.resize(rows * model_.config().hidden);
    values.attention.resize(rows * model_.config().hidden);
    for (uint32_t step = 0; step < tasks.steps; ++step) {
      if (interrupted()) throw_error(ErrorKind::cancelled, "interrupted");
      decoder.wait(decoder.submit());
      decoder.download_logits(values.logits);
      decoder.download_hidden(values.hidden);
      decoder.download_probe(values.attention);
      visit(step, values);
    }
  }

  AminoAcidDistribution at(const Step& step, size_t row) const {
    const size_t vocab = model_.config().vocab;
    return amino_acid_distribution(std::span(step.logits).subspan(row * vocab, vocab));
  }

  // Adds what a step says of each sequence that still has a row in it; `kl` sums the divergence at residues by
  // sequence.
  void tally_step(const Tasks& tasks, uint32_t step, const Step& want, const Step& got, Tally& tally,
                  std::vector<Sample>& kl) const {
    const size_t hidden = model_.config().hidden;
    for (size_t b = 0; b < tasks.tasks.size(); ++b) {
      const std::vector<int32_t>& forced = tasks.tasks[b].forced;
      if (step >= forced.size()) continue;
      const size_t row = 2 * b;
      if (step > 0) {  // row 2 b is a residue of the second half from the second step on
        const auto slice = [&](const std::vector<float>& values) {
          return std::span(values).subspan(row * hidden, hidden);
        };
        kl[b].add(tally.residue.add(at(want, row), at(got, row)));
        tally.l2.add(relative_l2(slice(want.hidden), slice(got.hidden)));
        tally.cosines.add(cosine(slice(want.hidden), slice(got.hidden)));
        tally.layer0.add(cosine(slice(want.attention), slice(got.attention)));
      }
      const int32_t next = forced[step] - kFirstAminoAcid;
      if (next < 0 || next >= int32_t(kAminoAcids)) continue;  // the end, or X and its like
      const AminoAcidDistribution p = at(want, row + 1);
      const AminoAcidDistribution q = at(got, row + 1);
      tally.mask.add(p, q);
      tally.loss_f32.add(-p[size_t(next)]);
      tally.loss.add(-q[size_t(next)]);
    }
  }

  // One batch, with the f32 cache and with every subject.
  void add(const Tasks& tasks, const KvTables& f32, const std::vector<CompareSubject>& subjects,
           std::vector<Tally>& tallies, const std::function<void()>& done_one) {
    std::vector<Step> reference;
    run(tasks, f32, [&](uint32_t, const Step& values) { reference.push_back(values); });
    done_one();
    for (size_t i = 0; i < subjects.size(); ++i) {
      std::vector<Sample> kl(tasks.tasks.size());
      run(tasks, subjects[i].tables,
          [&](uint32_t step, const Step& values) { tally_step(tasks, step, reference[step], values, tallies[i], kl); });
      for (size_t b = 0; b < kl.size(); ++b)
        if (kl[b].size() && kl[b].mean() > tallies[i].worst_kl)
          tallies[i].worst_kl = kl[b].mean(), tallies[i].worst = tasks.records[b].name;
      done_one();
    }
  }

 private:
  Esm2& model_;
  const CompareOptions& options_;
};

KvQuality summarize(const CompareSubject& subject, const Esm2Config& config, Tally& tally) {
  KvQuality q;
  q.preset = subject.name;
  const KvFormat format = subject.tables.preset.format();
  q.bits_per_value = kv_bits_per_value(format, config.head_dim());
  q.bytes_per_token = config.layers * kv_token_layer_bytes(format, config.heads, config.head_dim());
  q.residue = tally.residue.summary();
  q.mask = tally.mask.summary();
  q.hidden_l2 = tally.l2.mean();
  q.hidden_cosine = tally.cosines.mean();
  q.hidden_cosine_p1 = tally.cosines.percentile(0.01);
  q.layer0_cosine = tally.layer0.mean();
  q.perplexity = std::exp(tally.loss.mean());
  q.perplexity_f32 = std::exp(tally.loss_f32.mean());
  q.worst = tally.worst;
  q.worst_kl = std::max(tally.worst_kl, 0.0);
  q.positions = tally.residue.kl.size();
  return q;
}

}  // namespace

CompareSubject uniform_attention(const KvTables& f32) {
  CompareSubject subject{"uniform attention", f32};
  for (KvLayerTables& layer : subject.tables.layers)
    layer.query_transform.assign(size_t(f32.head_dim) * f32.head_dim, 0.0f);
  return subject;
}

std::vector<KvQuality> compare(Esm2& model, const KvTables& f32, std::vector<CompareSubject>& subjects,
                               std::vector<CompareRecord> records, const CompareOptions& options,
                               const std::function<void(double)>& progress) {
  // Sequences of like length are decoded together: few rows idle.
  std::ranges::stable_sort(records, {}, [](const CompareRecord& r) { return r.ids.size(); });
  double total = 0, done = 0;
  for (const CompareRecord& record : records) total += double(record.ids.size());
  total *= double(subjects.size() + 1);

  Comparison comparison(model, options);
  std::vector<Tally> tallies(subjects.size());
  for (size_t first = 0; first < records.size(); first += options.sequences) {
    const size_t count = std::min<size_t>(options.sequences, records.size() - first);
    const Tasks tasks{std::span<const CompareRecord>(records).subspan(first, count)};
    double weight = 0;
    for (const CompareRecord& record : tasks.records) weight += double(record.ids.size());
    comparison.add(tasks, f32, subjects, tallies, [&] { progress((done += weight) / total); });
  }
  std::vector<KvQuality> qualities;
  for (size_t i = 0; i < subjects.size(); ++i) qualities.push_back(summarize(subjects[i], model.config(), tallies[i]));
  return qualities;
}

std::vector<PositionAgreement> compare_positions(Esm2& model, const KvTables& f32, const KvTables& tables,
                                                 const CompareRecord& record,
                                                 const std::function<void(double)>& progress) {
  const CompareOptions options;
  Comparison comparison(model, options);
  const Tasks tasks(std::span(&record, 1));
  const std::vector<int32_t>& forced = tasks.tasks.front().forced;
  const uint32_t prompt = uint32_t(tasks.tasks.front().prompt.size());
  std::vector<Step> reference;
  comparison.run(tasks, f32, [&](uint32_t step, const Step& values) {
    reference.push_back(values);
    progress(0.5 * double(step + 1) / tasks.steps);
  });
  std::vector<PositionAgreement> positions;
  comparison.run(tasks, tables, [&](uint32_t step, const Step& values) {
    progress(0.5 + 0.5 * double(step + 1) / tasks.steps);
    if (step == 0 || step >= forced.size()) return;  // the first step repeats the prompt's last token
    const AminoAcidDistribution want = comparison.at(reference[step], 0), got = comparison.at(values, 0);
    positions.push_back({.position = prompt + step - 1,
                         .kl = divergence(want, got),
                         .top_f32 = kFirstAminoAcid + int32_t(most_likely(want)),
                         .top = kFirstAminoAcid + int32_t(most_likely(got))});
  });
  return positions;
}

LogitAgreement summary(std::span<const PositionAgreement> positions) {
  RowTally tally;
  for (const PositionAgreement& p : positions) {
    tally.kl.add(p.kl);
    tally.agreed += p.top == p.top_f32;
  }
  return tally.summary();
}

}  // namespace turboesm
