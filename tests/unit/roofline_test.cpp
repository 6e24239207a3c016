#include "model/roofline.h"

#include <catch2/catch_test_macros.hpp>

namespace turboesm {
namespace {

TEST_CASE("the slower of memory and arithmetic is the floor", "[unit][roofline]") {
  const DeviceLimits limits{.bytes_per_second = 1000, .flops_per_second = 8000};
  const Roofline reading = roofline({.flops = 4000, .bytes = 2000}, limits);
  CHECK(reading.memory == 2);
  CHECK(reading.arithmetic == 0.5);
  CHECK(reading.floor() == 2);
  CHECK(reading.bound_by() == "memory");
  const Roofline computing = roofline({.flops = 24000, .bytes = 2000}, limits);
  CHECK(computing.floor() == 3);
  CHECK(computing.bound_by() == "arithmetic");
}

}  // namespace
}  // namespace turboesm
