#include <array>
#include <catch2/catch_test_macros.hpp>

#include "runtime/vulkan/hazards.h"

namespace turboesm::vulkan {
namespace {

bool barrier_before(HazardTracker& tracker, std::initializer_list<AccessedRange> accesses) {
  return tracker.needs_barrier_before(std::vector<AccessedRange>(accesses));
}

AccessedRange reads(uint64_t begin, uint64_t end) { return {begin, end, false}; }
AccessedRange writes(uint64_t begin, uint64_t end) { return {begin, end, true}; }

}  // namespace

TEST_CASE("operations that share no bytes need no barrier", "[unit]") {
  HazardTracker tracker;
  CHECK_FALSE(barrier_before(tracker, {reads(0, 16), writes(16, 32)}));
  CHECK_FALSE(barrier_before(tracker, {reads(32, 48), writes(48, 64)}));
  CHECK_FALSE(barrier_before(tracker, {writes(64, 80)}));
}

TEST_CASE("reads of the same bytes need no barrier", "[unit]") {
  HazardTracker tracker;
  CHECK_FALSE(barrier_before(tracker, {reads(0, 16)}));
  CHECK_FALSE(barrier_before(tracker, {reads(0, 16)}));
}

TEST_CASE("read after write, write after read and write after write need a barrier", "[unit]") {
  HazardTracker after_write, before_write, both_write;
  barrier_before(after_write, {writes(0, 16)});
  CHECK(barrier_before(after_write, {reads(15, 20)}));
  barrier_before(before_write, {reads(0, 16)});
  CHECK(barrier_before(before_write, {writes(0, 1)}));
  barrier_before(both_write, {writes(0, 16)});
  CHECK(barrier_before(both_write, {writes(8, 9)}));
}

TEST_CASE("an operation does not conflict with itself", "[unit]") {
  HazardTracker tracker;
  CHECK_FALSE(barrier_before(tracker, {reads(0, 16), writes(0, 16)}));
}

TEST_CASE("a barrier orders all that came before it, but not the operation that it precedes", "[unit]") {
  HazardTracker tracker;
  barrier_before(tracker, {writes(0, 16)});
  barrier_before(tracker, {writes(100, 116)});
  CHECK(barrier_before(tracker, {reads(0, 16), writes(200, 216)}));
  CHECK_FALSE(barrier_before(tracker, {reads(100, 116)}));
  CHECK(barrier_before(tracker, {reads(200, 216)}));
}

TEST_CASE("empty ranges conflict with nothing", "[unit]") {
  HazardTracker tracker;
  barrier_before(tracker, {writes(0, 16)});
  CHECK_FALSE(barrier_before(tracker, {reads(8, 8), writes(0, 0)}));
}

}  // namespace turboesm::vulkan
