#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <catch2/catch_test_macros.hpp>

#include "tests/conformance/harness.h"
#include "tests/golden/golden.h"

namespace turboesm::conformance {
namespace {

// What the scores q.k look like.
enum class Scores {
  usual,     // N(0, 1)
  large,     // N(0, 20): up to +-60 and more, a few keys take all the weight
  rising,    // from -30 to 30 along the keys: each block of keys has a larger maximum than all before it
  creeping,  // the same from -3 to 3: by little
  equal,     // all keys alike: the mean of v
};
constexpr Scores kScores[] = {Scores::usual, Scores::large, Scores::rising, Scores::creeping, Scores::equal};
const char* name_of(Scores scores) {
  switch (scores) {
    case Scores::usual: return "usual";
    case Scores::large: return "large";
    case Scores::rising: return "rising";
    case Scores::creeping: return "creeping";
    default: return "equal";
  }
}

struct Shape {
  uint32_t heads, head_dim;
};

struct QK {
  std::vector<float> q, k;  // [tokens, heads, head_dim]
};

QK random_qk(Rng& rng, Scores scores, const Packing& packing, Shape shape) {
  const uint64_t width = uint64_t(shape.heads) * shape.head_dim, size = packing.tokens() * width;
  const float unit = 1 / std::sqrt(float(shape.head_dim));
  QK qk{rng.normals(size, scores == Scores::large ? 20 * unit : unit), rng.normals(size)};
  if (scores == Scores::equal) {
    for (uint64_t i = width; i < size; ++i) qk.k[i] = qk.k[i - width];
  } else if (scores == Scores::rising || scores == Scores::creeping) {
    const float most = scores == Scores::rising ? 30 : 3;
    for (uint64_t i = 0; i < size; ++i) qk.q[i] = 0.1f * qk.q[i] + unit;
    for (uint32_t b = 0; b < packing.sequences(); ++b) {
      const int32_t begin = packing.cu_seqlens[b], end = packing.cu_seqlens[b + 1];
      for (int32_t t = begin; t < end; ++t)
        for (uint64_t i = 0; i < width; ++i) {
          float& k = qk.k[uint64_t(t) * width + i];
          k = 0.1f * k + unit * most * (2 * float(t - begin) / float(end - begin) - 1);
        }
    }
  }
  return qk;
}

// A score s is a sum in fp32 of terms that reach |s|, so it carries an error of some 2^-24 |s|, and exp(s) that error
// relative to itself.
double softmax_error(Scores scores) { return scores == Scores::usual || scores == Scores::equal ? 3e-6 : 3e-5; }

Tolerance attention_tolerance(const Harness& harness, DType dtype, Scores scores, Shape shape, const Packing& packing) {
  // On matrix units the probabilities are rounded to the storage type before they meet v.
  if (harness.on_matrix_cores(dtype)) return {.relative = dtype == DType::f16 ? 2e-3 : 1.6e-2};
  // Of equal keys all queries of a sequence make the same.
  const uint64_t rows = scores == Scores::equal ? packing.sequences() : packing.tokens();
  return rounded(dtype, rows * shape.heads * shape.head_dim, softmax_error(scores));
}

// q, k and v are fp16 and the output bf16 when `dtype` is bf16, as the model has it, or all of one type.
void add_attention(Harness& harness, DType dtype, Shape shape, const Packing& packing, Scores scores) {
  const bool mixed = dtype == DType::bf16 && harness.rng().pick({0u, 1u});
  const DType operands = mixed ? DType::f16 : dtype;
  const uint64_t size = uint64_t(packing.tokens()) * shape.heads * shape.head_dim;
  const std::string what =
      fmt::format("{} sequences, {} tokens, the longest {}, {} heads of {}, {} scores", packing.sequences(),
                  packing.tokens(), packing.longest, shape.heads, shape.head_dim, name_of(scores));
  harness.add(what, [&](Case& c) -> Operation {
    Rng& rng = harness.rng();
    const QK qk = random_qk(rng, scores, packing, shape);
    return Attention{.q = c.input(operands, qk.q),
                     .k = c.input(operands, qk.k),
                     .v = c.input(operands, rng.normals(size)),
                     .cu_seqlens = c.input(packing.cu_seqlens),
                     .out = c.output(dtype, size, attention_tolerance(harness, dtype, scores, shape, packing)),
                     .tokens = packing.tokens(),
                     .sequences = packing.sequences(),
                     .heads = shape.heads,
                     .head_dim = shape.head_dim,
                     .max_length = packing.longest + rng.pick({0u, 0u, 1u, 100u}),
                     .score_pairs = packing.score_pairs};
  });
}

void add_attention_maps(Harness& harness, DType dtype, Shape shape, uint32_t length, Scores scores) {
  Rng& rng = harness.rng();
  const Packing packing = pack({rng.below(40), length, rng.below(40)});
  const uint32_t begin = uint32_t(packing.cu_seqlens[1]);
  const std::string what = fmt::format("length {} at {}, {} heads of {}, {} scores", length, begin, shape.heads,
                                       shape.head_dim, name_of(scores));
  harness.add(what, [&](Case& c) -> Operation {
    const QK qk = random_qk(rng, scores, packing, shape);
    return AttentionMaps{.q = c.input(dtype, qk.q),
                         .k = c.input(dtype, qk.k),
                         .out = c.output(DType::f32, uint64_t(shape.heads) * length * length, {softmax_error(scores)}),
                         .tokens = packing.tokens(),
                         .begin = begin,
                         .length = length,
                         .heads = shape.heads,
                         .head_dim = shape.head_dim};
  });
}

template <class Visit>
void for_each_head_dim(Visit&& visit) {
  for (const uint32_t head_dim : kHeadDims) visit(head_dim);
  for (const uint32_t head_dim : kOtherHeadDims) visit(head_dim);
}

}  // namespace

TEST_CASE("attention agrees with the oracle", "[conformance]") {
  conform(4, Units::matrix_cores_too, [](Harness& harness) {
    Rng& rng = harness.rng();
    const auto heads = [&] { return rng.pick({1u, 2u, 3u, 5u}); };
    for (const DType dtype : kFloatTypes) {
      for_each_head_dim([&](uint32_t head_dim) {
        for (const uint32_t length : kAwkwardLengths)
          add_attention(harness, dtype, {heads(), head_dim}, pack({length}), rng.pick(kScores));
        for (const Scores scores : kScores)
          for (int repeat = 0; repeat < 4; ++repeat)
            add_attention(harness, dtype, {heads(), head_dim}, random_packing(rng, 9), scores);
        add_attention(harness, dtype, {1, head_dim}, pack({0, rng.pick(kLongLengths), 2, 0}), rng.pick(kScores));
      });
      for (const Scores scores : kScores)
        add_attention(harness, dtype, {1, rng.pick(kHeadDims)}, pack({rng.pick(kLongLengths), 0, 1, 300}), scores);
      add_attention(harness, dtype, {20, 16}, pack({147, 2, 65}), Scores::usual);
      if (harness.takes_large()) {
        for (const uint32_t head_dim : kHeadDims)
          add_attention(harness, dtype, {20, head_dim}, pack({1025, 300, 147, 2, 0, 64}), rng.pick(kScores));
        for (const Scores scores : kScores) add_attention(harness, dtype, {20, 64}, pack({1700, 63, 1537}), scores);
        add_attention(harness, dtype, {20, 64}, pack({1536, 129, 1408}), Scores::usual);
      }
      add_attention(harness, dtype, {1, 8}, short_sequences(rng, kManyRows), Scores::usual);
      add_attention(harness, dtype, {2, 64}, pack({0, 0}), Scores::usual);
    }
  });
}

// Each kernel and tile that a device has, whichever it would take by itself.
TEST_CASE("every variant of attention agrees with the oracle", "[conformance]") {
  conform_variants(43, [](Harness& harness) {
    for (const DType dtype : {DType::f16, DType::bf16})
      for (const uint32_t head_dim : kHeadDims)
        for (const Scores scores : kScores) add_attention(harness, dtype, {2, head_dim}, pack({1, 200, 0, 64}), scores);
  });
}

TEST_CASE("attention_maps agrees with the oracle", "[conformance]") {
  conform(5, Units::any, [](Harness& harness) {
    Rng& rng = harness.rng();
    for (const DType dtype : kFloatTypes) {
      for_each_head_dim([&](uint32_t head_dim) {
        for (const uint32_t length : kAwkwardLengths)
          add_attention_maps(harness, dtype, {rng.pick({1u, 2u, 3u, 5u}), head_dim}, length, rng.pick(kScores));
      });
      for (const uint32_t length : kLongLengths)
        add_attention_maps(harness, dtype, {1, rng.pick(kHeadDims)}, length, rng.pick(kScores));
      add_attention_maps(harness, dtype, {20, 16}, 65, Scores::usual);
    }
  });
}

// A sequence's result must not depend on its company: the same bits alone, first and last in a batch. Where the longest
// sequence decides between kernels that order their sums in their own ways, 16-bit results may differ by a rounding.
TEST_CASE("attention of a sequence does not depend on the batch", "[conformance]") {
  const auto device = open_device_under_test();
  Rng rng(6);
  constexpr uint32_t kLength = 100, kHeads = 3, kHeadDim = 24;
  constexpr uint64_t kRow = kHeads * kHeadDim, kOwn = kLength * kRow;
  const std::vector<float> own[3] = {rng.normals(kOwn), rng.normals(kOwn), rng.normals(kOwn)};

  // The output's bytes for the sequence whose q, k, v are `own`, in place `at` among random ones of these lengths.
  const auto attend = [&](DType dtype, std::initializer_list<uint32_t> lengths, uint32_t at) {
    const Packing packing = pack(lengths);
    const uint64_t size = packing.tokens() * kRow, first = uint64_t(packing.cu_seqlens[at]) * kRow;
    const auto buffer = device->allocate(16 * size + 4096, MemoryLabel::activations);
    const auto tensor = [&](uint64_t i) { return Tensor{buffer.get(), i * size * 4, size, dtype}; };
    for (uint64_t i = 0; i < 3; ++i) {
      std::vector<float> values = rng.normals(size);
      std::copy(own[i].begin(), own[i].end(), values.begin() + int64_t(first));
      std::vector<std::byte> stored(tensor(i).bytes());
      convert(DType::f32, values.data(), dtype, stored.data(), size);
      device->upload<std::byte>(tensor(i), stored);
    }
    const Tensor cu_seqlens{buffer.get(), 16 * size, packing.cu_seqlens.size(), DType::i32};
    device->upload<int32_t>(cu_seqlens, packing.cu_seqlens);
    const Operation operation = Attention{.q = tensor(0),
                                          .k = tensor(1),
                                          .v = tensor(2),
                                          .cu_seqlens = cu_seqlens,
                                          .out = tensor(3),
                                          .tokens = packing.tokens(),
                                          .sequences = packing.sequences(),
                                          .heads = kHeads,
                                          .head_dim = kHeadDim,
                                          .max_length = packing.longest};
    device->run({&operation, 1});
    std::vector<std::byte> out(kOwn * size_of(dtype));
    device->download(*buffer, tensor(3).offset + first * size_of(dtype), out);
    return out;
  };
  for (const DType dtype : kFloatTypes) {
    const std::vector<std::byte> alone = attend(dtype, {kLength}, 0);
    const bool many_kernels = device->info().spec.starts_with("cuda") && dtype != DType::f32;
    const double allowed = !many_kernels ? 0 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
    for (const auto& together : {attend(dtype, {kLength, 37, 2, 300}, 0), attend(dtype, {300, 0, 1, kLength}, 3)}) {
      if (allowed == 0) {
        CHECK((together == alone));
        continue;
      }
      std::vector<float> got(kOwn), want(kOwn);
      convert(dtype, together.data(), DType::f32, got.data(), kOwn);
      convert(dtype, alone.data(), DType::f32, want.data(), kOwn);
      CHECK(golden::relative_error(got, want) < allowed);
    }
  }
}

}  // namespace turboesm::conformance
