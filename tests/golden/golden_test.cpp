// The five reference models against outputs that were computed elsewhere (tests/fixtures/golden/README.md), on the
// device under test, in every dtype, with and without matrix cores.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <numeric>

#include "tests/golden/golden.h"
#include "tests/options.h"

namespace turboesm {
namespace {

using namespace golden;

// Relative L2 error allowed. fp32: rounding of sums in another order. 16-bit types: eight layers of operands rounded to
// 11 and 8 bits.
double tolerance(DType dtype) {
  if (dtype == DType::f16) return 5e-3;
  if (dtype == DType::bf16) return 2e-2;
  return test_options().device == "cpu" ? 1e-5 : 5e-5;
}

struct Variant {
  std::string model;
  DType dtype;
  bool matrix_cores;
};

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const char* model : {"tiny_hd24", "tiny_hd32", "tiny_hd64", "tiny_hd128", "swissprot_t8_14M"})
    for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      const bool has_matrix_cores = device().info().matrix_core_dtypes & (1u << uint32_t(dtype));
      all.push_back({model, dtype, false});
      if (has_matrix_cores) all.push_back({model, dtype, true});
    }
  return all;
}

std::vector<uint32_t> all_layers(const Esm2Config& config) {
  std::vector<uint32_t> layers(config.layers + 1);
  std::iota(layers.begin(), layers.end(), 0u);
  return layers;
}

void check_single(Esm2& model, const SafetensorsFile& golden, double allowed) {
  REQUIRE(golden.find("single.0.hidden.0"));
  REQUIRE(golden.find("single.0.logits"));
  for (int i = 0; golden.find("single." + std::to_string(i) + ".ids"); ++i) {
    const std::string name = "single." + std::to_string(i);
    INFO(name);
    const bool has_hidden = golden.find(name + ".hidden.0"), has_logits = golden.find(name + ".logits");
    ForwardOptions options;
    options.layers = has_hidden ? all_layers(model.config()) : std::vector<uint32_t>{model.config().layers};
    options.means = true;
    options.hidden = has_hidden;
    options.logits = has_logits;
    const ForwardResult result = model.forward(batch_of({read_ids(golden, name + ".ids")}), options);
    CHECK(relative_error(result.means.back(), read_floats(golden, name + ".mean").data) <= allowed);
    for (uint32_t l = 0; has_hidden && l <= model.config().layers; ++l) {
      INFO("hidden state " << l);
      const Values expected = read_floats(golden, name + ".hidden." + std::to_string(l));
      CHECK(relative_error(result.hidden[l], expected.data) <= allowed);
    }
    if (!has_logits) continue;
    const Values expected = read_floats(golden, name + ".logits");
    CHECK(relative_error(result.logits, expected.data) <= allowed);
    CHECK(wrong_argmax(result.logits, expected.data, 33) == 0);
  }
}

void check_masked(Esm2& model, const SafetensorsFile& golden, double allowed) {
  const ForwardResult result = model.forward(batch_of({read_ids(golden, "masked.ids")}), {.logits = true});
  const Values expected = read_floats(golden, "masked.logits");
  CHECK(relative_error(result.logits, expected.data) <= allowed);
  CHECK(wrong_argmax(result.logits, expected.data, 33) == 0);
}

// The reference is padded; here the same sequences are packed.
void check_batch(Esm2& model, const SafetensorsFile& golden, double allowed) {
  const std::vector<int32_t> padded = read_ids(golden, "batch.ids");
  const Values expected = read_floats(golden, "batch.logits");
  const uint64_t length = expected.shape[1], width = expected.shape[2];
  std::vector<std::vector<int32_t>> sequences;
  std::vector<float> kept;
  for (uint64_t b = 0; b < expected.shape[0]; ++b) {
    std::vector<int32_t> ids;
    for (uint64_t t = 0; t < length && padded[b * length + t] != Tokenizer::kPad; ++t)
      ids.push_back(padded[b * length + t]);
    const auto row = expected.data.begin() + ptrdiff_t(b * length * width);
    kept.insert(kept.end(), row, row + ptrdiff_t(ids.size() * width));
    sequences.push_back(std::move(ids));
  }
  REQUIRE(sequences.size() == 3);
  const ForwardResult result = model.forward(batch_of(sequences), {.logits = true});
  CHECK(relative_error(result.logits, kept) <= allowed);
  CHECK(wrong_argmax(result.logits, kept, uint32_t(width)) == 0);
}

void check_contacts(Esm2& model, const SafetensorsFile& golden, double allowed) {
  const ForwardResult result = model.forward(batch_of({read_ids(golden, "contacts.ids")}), {.contacts = true});
  REQUIRE(result.contacts.size() == 1);
  CHECK(relative_error(result.contacts[0], read_floats(golden, "contacts.prob").data) <= allowed);
}

TEST_CASE("outputs equal the reference implementation's", "[golden]") {
  const Variant variant = GENERATE(from_range(variants()));
  INFO(variant.model << " in " << name_of(variant.dtype) << (variant.matrix_cores ? " on matrix cores" : ""));
  Device& under_test = device(variant.matrix_cores);
  const Checkpoint checkpoint = Checkpoint::open(model_directory(variant.model));
  Esm2 model(under_test, Esm2Weights::load(under_test, checkpoint, variant.dtype));
  const SafetensorsFile golden = SafetensorsFile::open(fixtures() / (variant.model + ".golden.safetensors"));
  check_single(model, golden, tolerance(variant.dtype));
  check_masked(model, golden, tolerance(variant.dtype));
  check_batch(model, golden, tolerance(variant.dtype));
  check_contacts(model, golden, tolerance(variant.dtype));
}

}  // namespace
}  // namespace turboesm
