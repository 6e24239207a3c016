// What must not change a sequence's result, and what may not grow faster than it.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cmath>

#include "model/plan.h"
#include "runtime/random.h"
#include "tests/golden/golden.h"

namespace turboesm {
namespace {

using namespace golden;

std::vector<int32_t> random_sequence(uint32_t length, uint32_t seed) {
  std::vector<int32_t> ids(length);
  for (uint32_t i = 0; i < length; ++i) ids[i] = int32_t(4 + pcg_hash(seed * 7919 + i) % 20);
  ids.front() = Tokenizer::kCls;
  ids.back() = Tokenizer::kEos;
  return ids;
}

ForwardOptions last_hidden(const Esm2& model) {
  ForwardOptions options;
  options.layers = {model.config().layers};
  options.hidden = true;
  options.logits = true;
  return options;
}

std::span<const float> rows_of(const std::vector<float>& packed, const Batch& batch, uint32_t sequence,
                               uint64_t width) {
  return std::span(packed).subspan(uint64_t(batch.cu_seqlens[sequence]) * width, batch.length(sequence) * width);
}

TEST_CASE("a sequence's result does not depend on its batch or its place in it", "[golden]") {
  const std::string name = GENERATE(std::string("tiny_hd24"), std::string("tiny_hd64"));
  INFO(name);
  Esm2 model(device(), Esm2Weights::load(device(), Checkpoint::open(model_directory(name)), DType::f32));
  const ForwardOptions options = last_hidden(model);
  const uint64_t H = model.config().hidden;
  // What fp32 sums may differ by, relative. On CUDA another number of rows may have them taken in another order.
  const double same_sums = device().info().spec.starts_with("cuda") ? 2e-6 : 1e-6;

  std::vector<std::vector<int32_t>> sequences;
  for (uint32_t i = 0; i < 64; ++i) sequences.push_back(random_sequence(2 + pcg_hash(i) % 130, i));
  sequences[5] = random_sequence(2, 5);  // no residue at all
  sequences[6][1] = Tokenizer::kMask;    // token dropout must stay within its sequence
  std::vector<std::vector<int32_t>> reversed(sequences.rbegin(), sequences.rend());
  const Batch batch = batch_of(sequences), backwards = batch_of(reversed);
  const ForwardResult together = model.forward(batch, options);
  const ForwardResult turned = model.forward(backwards, options);

  for (uint32_t i = 0; i < 64; ++i) {
    INFO("sequence " << i << " of " << sequences[i].size() << " tokens");
    const auto in_batch = rows_of(together.hidden[0], batch, i, H);
    CHECK(relative_error(rows_of(turned.hidden[0], backwards, 63 - i, H), in_batch) <= same_sums);
    CHECK(relative_error(rows_of(turned.logits, backwards, 63 - i, 33), rows_of(together.logits, batch, i, 33)) <=
          same_sums);
    const ForwardResult alone = model.forward(batch_of({sequences[i]}), options);
    CHECK(relative_error(alone.hidden[0], in_batch) <= same_sums);
    CHECK(relative_error(alone.logits, rows_of(together.logits, batch, i, 33)) <= same_sums);
  }
}

// Batches for which the workspace suffices, so that they are prepared while another runs, and larger ones, for which it
// does not.
TEST_CASE("a queue of batches gives what each gives by itself", "[golden]") {
  Esm2 model(device(), Esm2Weights::load(device(), Checkpoint::open(model_directory("tiny_hd64")), DType::f32));
  const ForwardOptions options = last_hidden(model);
  std::vector<Batch> batches;
  for (const std::vector<uint32_t>& lengths :
       {std::vector<uint32_t>{70, 40, 33}, {71, 12}, {5}, {140, 120, 9}, {2, 64}}) {
    std::vector<std::vector<int32_t>> sequences;
    for (const uint32_t length : lengths) sequences.push_back(random_sequence(length, 100 + length));
    batches.push_back(batch_of(sequences));
  }
  std::vector<ForwardResult> alone;
  for (const Batch& batch : batches) {
    Esm2 other(device(), Esm2Weights::load(device(), Checkpoint::open(model_directory("tiny_hd64")), DType::f32));
    alone.push_back(other.forward(batch, options));
  }
  uint32_t visited = 0, beside = 0;
  ForwardQueue queue(model, options, {}, [&](const Forward& forward) {
    CHECK(forward.shape().tokens == batches[visited].shape.tokens);
    ++visited;
  });
  for (size_t i = 0; i < batches.size(); ++i) {
    INFO("batch " << i);
    const bool last = i + 1 == batches.size();
    const ForwardResult result = queue.run(batches[i], last ? nullptr : &batches[i + 1]);
    if (!last) beside += model.prepares_beside(batches[i + 1], options);
    CHECK(relative_error(result.hidden[0], alone[i].hidden[0]) <= 2e-6);
    CHECK(relative_error(result.logits, alone[i].logits) <= 2e-6);
  }
  CHECK(visited == batches.size());
  CHECK(beside == 3);  // the second, third and fifth; for the fourth there is too little room
}

TEST_CASE("memory grows linearly with length, up to 5,000 residues, and as planned", "[golden]") {
  // A fresh device: peaks count from its opening.
  const Checkpoint checkpoint = Checkpoint::open(model_directory("tiny_hd32"));
  std::vector<uint64_t> activations;
  for (uint32_t residues : {1250u, 2500u, 5000u}) {
    const std::unique_ptr<Device> fresh = open_fresh_device();
    Esm2 model(*fresh, Esm2Weights::load(*fresh, checkpoint, DType::f32));
    ForwardOptions options;
    options.layers = {model.config().layers};
    options.means = true;
    options.logits = true;
    const Batch batch = batch_of({random_sequence(residues + 2, 1)});
    const ForwardResult result = model.forward(batch, options);
    CHECK(relative_error(result.means[0], result.means[0]) == 0);  // finite

    const MemoryReport memory = fresh->memory();
    const MemoryPlan plan = plan_memory(model.config(), DType::f32, batch.shape, options, fresh->info());
    INFO(residues << " residues: planned " << plan.total() << ", at most " << memory.total.peak);
    CHECK(std::abs(double(memory.total.peak) / double(plan.total()) - 1) < 0.05);
    for (MemoryLabel label : {MemoryLabel::weights, MemoryLabel::activations})
      CHECK(std::abs(double(memory[label].peak) / double(plan.bytes(label)) - 1) < 0.05);
    activations.push_back(memory[MemoryLabel::activations].peak - fresh->info().scratch_bytes);
  }
  CHECK(std::abs(double(activations[1]) / double(activations[0]) - 2) < 0.1);
  CHECK(std::abs(double(activations[2]) / double(activations[1]) - 2) < 0.1);
}

TEST_CASE("5,000 residues give the oracle's result", "[golden]") {
  const Checkpoint checkpoint = Checkpoint::open(model_directory("tiny_hd32"));
  const std::unique_ptr<Device> oracle = open_oracle();
  Esm2 model(device(), Esm2Weights::load(device(), checkpoint, DType::f32));
  Esm2 reference(*oracle, Esm2Weights::load(*oracle, checkpoint, DType::f32));
  const Batch batch = batch_of({random_sequence(5002, 3)});
  const ForwardOptions options = last_hidden(model);
  const ForwardResult actual = model.forward(batch, options), expected = reference.forward(batch, options);
  CHECK(relative_error(actual.hidden[0], expected.hidden[0]) <= 5e-5);
  CHECK(relative_error(actual.logits, expected.logits) <= 5e-5);
}

}  // namespace
}  // namespace turboesm
