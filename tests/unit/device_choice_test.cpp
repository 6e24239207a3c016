#include "runtime/device_choice.h"

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <vector>

#include "runtime/error.h"

using Catch::Matchers::ContainsSubstring;

namespace turboesm {
namespace {

DeviceListing listing(const char* spec, DeviceKind kind, const char* problem = "") {
  DeviceListing result;
  result.info.spec = spec;
  result.info.name = std::string("name of ") + spec;
  result.info.kind = kind;
  result.problem = problem;
  return result;
}

std::string taken(const std::vector<DeviceListing>& listings) {
  return listings[choose_device(listings, {}).index].info.spec;
}

std::string message_of_failed_choice(const std::vector<DeviceListing>& listings,
                                     std::span<const std::string> problems) {
  try {
    choose_device(listings, problems);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::device);
    return error.what();
  }
  return "no Error";
}

const DeviceListing kSoftware = listing("vulkan:0", DeviceKind::software_gpu);
const DeviceListing kIntegrated = listing("vulkan:1", DeviceKind::integrated_gpu);
const DeviceListing kDiscrete = listing("vulkan:2", DeviceKind::discrete_gpu);
const DeviceListing kOld = listing("vulkan:3", DeviceKind::discrete_gpu, "its driver has Vulkan 1.1, 1.2 is needed");
const DeviceListing kCuda = listing("cuda:0", DeviceKind::discrete_gpu);
const DeviceListing kCpu = listing("cpu", DeviceKind::cpu);

}  // namespace

TEST_CASE("auto prefers discrete to integrated to virtual GPU to CPU, whatever the order", "[unit]") {
  CHECK(taken({kIntegrated, kDiscrete, kCpu}) == "vulkan:2");
  CHECK(taken({kCpu, kIntegrated}) == "vulkan:1");
  CHECK(taken({kCpu, listing("vulkan:0", DeviceKind::virtual_gpu)}) == "vulkan:0");
}

TEST_CASE("auto takes the first listed of equal kind", "[unit]") {
  CHECK(taken({kCuda, kDiscrete}) == "cuda:0");
  CHECK(taken({kDiscrete, kCuda}) == "vulkan:2");
}

TEST_CASE("auto takes neither a software driver nor a device with a problem", "[unit]") {
  CHECK(taken({kSoftware, kCpu}) == "cpu");
  CHECK(taken({kOld, kIntegrated, kCpu}) == "vulkan:1");
}

TEST_CASE("the explanation names every device that was passed over and why", "[unit]") {
  const std::vector<DeviceListing> listings{kCuda, kSoftware, kIntegrated, kDiscrete, kOld, kCpu};
  const std::array<std::string, 1> problems{"Backend X could not start"};
  const std::string text = choose_device(listings, problems).explanation;
  CHECK_THAT(text, ContainsSubstring("took cuda:0 (name of cuda:0, discrete GPU)"));
  CHECK_THAT(text, ContainsSubstring("vulkan:0 (name of vulkan:0): a software driver, used only when named"));
  CHECK_THAT(text, ContainsSubstring("vulkan:1 (name of vulkan:1): integrated GPUs rank after discrete GPUs"));
  CHECK_THAT(text, ContainsSubstring("vulkan:2 (name of vulkan:2): cuda:0 comes first"));
  CHECK_THAT(text, ContainsSubstring("vulkan:3 (name of vulkan:3): its driver has Vulkan 1.1, 1.2 is needed"));
  CHECK_THAT(text, ContainsSubstring("cpu (name of cpu)"));
  CHECK_THAT(text, ContainsSubstring("Backend X could not start"));
}

TEST_CASE("when nothing can be used, the error gives every reason", "[unit]") {
  const std::array<std::string, 1> problems{"no loader"};
  const std::string message = message_of_failed_choice({kSoftware, kOld}, problems);
  CHECK_THAT(message, ContainsSubstring("a software driver, used only when named"));
  CHECK_THAT(message, ContainsSubstring("its driver has Vulkan 1.1"));
  CHECK_THAT(message, ContainsSubstring("no loader"));
  CHECK_THAT(message_of_failed_choice({}, {}), ContainsSubstring("none is listed"));
}

TEST_CASE("device specs", "[unit]") {
  CHECK(parse_device_spec("vulkan").backend == "vulkan");
  CHECK(parse_device_spec("vulkan").index == 0);
  CHECK(parse_device_spec("cuda:12").backend == "cuda");
  CHECK(parse_device_spec("cuda:12").index == 12);
  for (const char* wrong : {"", ":", ":1", "vulkan:", "vulkan:x", "vulkan:1x", "vulkan:-1", "vulkan:1:2", "vulkan: 1",
                            "vulkan:99999999999"}) {
    INFO(wrong);
    CHECK_THROWS_AS(parse_device_spec(wrong), Error);
  }
}

}  // namespace turboesm
