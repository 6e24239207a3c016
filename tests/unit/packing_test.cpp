#include "model/packing.h"

#include <catch2/catch_test_macros.hpp>

#include "model/embedder.h"

namespace turboesm {
namespace {

using Indices = std::vector<uint32_t>;

TEST_CASE("the longest come first, and equal ones in their order", "[unit][packing]") {
  CHECK(longest_first(Indices{3, 7, 3, 9, 7}) == Indices{3, 1, 4, 0, 2});
  CHECK(longest_first(Indices{}).empty());
}

TEST_CASE("a batch takes what has max_tokens together, and at least one sequence", "[unit][packing]") {
  const Indices lengths{10, 10, 5, 100}, next{0, 1, 2};
  CHECK(batch_size(lengths, next, 25, 8) == 3);
  CHECK(batch_size(lengths, next, 24, 8) == 2);
  CHECK(batch_size(lengths, next, 25, 2) == 2);
  CHECK(batch_size(lengths, next, 9, 8) == 1);
  CHECK(batch_size(lengths, Indices{3, 2}, 99, 8) == 1);
  CHECK(batch_size(lengths, Indices{}, 25, 8) == 0);
}

TEST_CASE("a device gets batches of its size", "[unit][packing]") {
  const auto tokens = [](DeviceKind kind, uint64_t gib) {
    DeviceInfo info;
    info.kind = kind, info.memory_bytes = gib << 30;
    return default_max_tokens(info);
  };
  CHECK(tokens(DeviceKind::discrete_gpu, 140) == 32768);
  CHECK(tokens(DeviceKind::discrete_gpu, 24) == 16384);
  CHECK(tokens(DeviceKind::integrated_gpu, 64) == 8192);
  CHECK(tokens(DeviceKind::software_gpu, 64) == 2048);
  CHECK(tokens(DeviceKind::cpu, 64) == 2048);
}

TEST_CASE("tokens are counted in 64 bits", "[unit][packing]") {
  const Indices lengths{0x80000000u, 0x80000000u}, next{0, 1};
  CHECK(batch_size(lengths, next, 0xffffffffu, 8) == 1);
}

}  // namespace
}  // namespace turboesm
