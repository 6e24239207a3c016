#include "shaders/include/kv_layout.h"

#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "runtime/kv_operations.h"

namespace turboesm {
namespace {

constexpr uint32_t kWidths[] = {1, 2, 3, 4, 8, 16, 32};
constexpr uint32_t kValues[] = {4, 8, 12, 16, 20, 24, 32, 36, 40, 64, 128, 256};

// The bits, as (word, bit of the word), of the code of value i of token t, lowest first: the header's text once more.
std::vector<std::pair<uint32_t, uint32_t>> bits_of_code(uint32_t n, uint32_t bits, uint32_t t, uint32_t i) {
  const uint32_t tokens = 32 / std::gcd(n, 32u), groups = 32 / tokens, units = n * tokens / 32;
  const uint32_t code = t % tokens * n + i, unit = code / 32, e = code % 32;
  const auto word = [&](uint32_t w) { return (w * groups + t / tokens) * units + unit; };
  std::vector<std::pair<uint32_t, uint32_t>> found;
  for (uint32_t bit = 0; bit < bits; ++bit)
    if (bits != 3)
      found.emplace_back(word((e * bits + bit) / 32), (e * bits + bit) % 32);
    else if (e < 24)
      found.emplace_back(word(e / 8), e % 8 * 4 + bit);
    else
      found.emplace_back(word(bit), (e - 24) * 4 + 3);
  return found;
}

}  // namespace

TEST_CASE("codes of a block take every bit once", "[unit]") {
  for (const uint32_t n : kValues)
    for (const uint32_t bits : kWidths) {
      std::vector<uint32_t> hits(n * bits, 0);  // bits that were put into each word
      bool inside = true, apart = true, as_stated = true;
      for (uint32_t t = 0; t < KV_BLOCK; ++t)
        for (uint32_t i = 0; i < n; ++i) {
          const auto stated = bits_of_code(n, bits, t, i);
          for (uint32_t bit = 0; bit < bits; ++bit)
            for (uint32_t w = 0; w < bits; ++w) {
              const uint32_t word = kv_code_word(n, t, i, w);
              const uint32_t mask = kv_deposit(bits, kv_element(n, t, i), w, 1u << bit);
              inside = inside && word < hits.size();
              if (!inside) continue;
              apart = apart && (hits[word] & mask) == 0;
              hits[word] |= mask;
              const auto [stated_word, stated_bit] = stated[bit];
              as_stated = as_stated && mask == (word == stated_word ? 1u << stated_bit : 0u);
            }
        }
      INFO(n << " values of " << bits << " bits");
      CHECK(inside);
      CHECK(apart);
      CHECK(as_stated);
      CHECK(hits == std::vector<uint32_t>(n * bits, ~0u));
    }
}

TEST_CASE("a code is put together from its bits", "[unit]") {
  for (const uint32_t bits : kWidths)
    for (uint32_t e = 0; e < 32; ++e)
      for (const uint32_t code : {0u, 1u, 2u, 5u, 6u, 7u, 0xdeadbeefu}) {
        const uint32_t kept = code & (~0u >> (32 - bits));
        for (uint32_t w = 0; w < bits; ++w) {
          uint32_t joined = 0;
          for (uint32_t bit = 0; bit < bits; ++bit) joined |= kv_deposit(bits, e, w, kept & (1u << bit));
          CHECK(kv_deposit(bits, e, w, kept) == joined);
        }
      }
}

// Words that lie beside one another belong to units beside one another: those of value 32 u of the first token's group.
TEST_CASE("neighbouring units have neighbouring words", "[unit]") {
  CHECK(kv_code_word(64, 0, 0, 0) == 0);
  CHECK(kv_code_word(64, 0, 32, 0) == 1);
  CHECK(kv_code_word(64, 1, 0, 0) == 2);
  CHECK(kv_code_word(64, 0, 0, 1) == 64);
  CHECK(kv_code_word(16, 0, 0, 0) == kv_code_word(16, 1, 15, 0));  // two tokens share a unit
  CHECK(kv_code_word(16, 2, 0, 0) == 1);
  CHECK(kv_code_word(24, 0, 0, 2) == 48);
}

TEST_CASE("a block has no padding", "[unit]") {
  const auto bytes_of_token = [](const KvSide& side, uint32_t head_dim) {
    return double(side.block_words(head_dim)) * 4 / KV_BLOCK;
  };
  CHECK(bytes_of_token({.bits = {3, 0}}, 64) == 24);  // 64 values of 3 bits
  CHECK(bytes_of_token({.bits = {3, 0}, .scale_bits = 8, .scale = KvScale::norm}, 64) == 25);
  CHECK(bytes_of_token({.bits = {4, 0}, .scale_bits = 16, .scale = KvScale::norm}, 16) == 10);
  CHECK(bytes_of_token({.bits = {32, 0}}, 24) == 96);
  CHECK(bytes_of_token({.bits = {16, 0}}, 24) == 48);
  CHECK(bytes_of_token({.segments = 2, .bits = {3, 2}, .scale_bits = 16, .scale = KvScale::norm}, 64) == 20 + 4);
  CHECK(bytes_of_token({.bits = {2, 0}, .scale_bits = 16, .scale = KvScale::norm, .qjl = true}, 64) == 16 + 2 + 8 + 2);
  const KvSide side{.segments = 2, .bits = {4, 3}, .scale_bits = 8, .scale = KvScale::searched, .qjl = true};
  CHECK(KvFormat{side, {}}.block_words(32) == side.block_words(32) + 16 * 32);
}

TEST_CASE("the parts of a block follow one another", "[unit]") {
  for (const uint32_t n : kValues)
    for (const uint32_t scale_bits : {0u, 8u, 16u}) {
      CHECK(kv_codes_at(n, 3, 0) == 0);
      CHECK(kv_codes_at(n, 3, 1) == 3 * n);
      CHECK(kv_scales_at(n, 1, 3, 2) == 3 * n);
      CHECK(kv_scales_at(n, 2, 3, 2) == 5 * n);
      CHECK(kv_signs_at(n, 2, 3, 2, scale_bits) == 5 * n + 2 * scale_bits);
      CHECK(kv_side_words(n, 2, 3, 2, scale_bits, 0) == 5 * n + 2 * scale_bits);
      CHECK(kv_side_words(n, 2, 3, 2, scale_bits, 1) == 7 * n + 2 * scale_bits + 16);
    }
  std::set<std::pair<uint32_t, uint32_t>> places;
  for (uint32_t t = 0; t < KV_BLOCK; ++t) {
    CHECK(kv_scale_word(8, t) == t / 4);
    CHECK(kv_scale_shift(8, t) == t % 4 * 8);
    CHECK(kv_scale_word(16, t) == t / 2);
    CHECK(kv_scale_shift(16, t) == t % 2 * 16);
    places.emplace(kv_scale_word(16, t), kv_scale_shift(16, t));
  }
  CHECK(places.size() == KV_BLOCK);
}

}  // namespace turboesm
