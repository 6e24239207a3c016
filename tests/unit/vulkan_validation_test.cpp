// That validation is on, and a message is an Error: without this, silence elsewhere would mean nothing.
#include <catch2/catch_test_macros.hpp>

#include "runtime/vulkan/instance.h"
#include "runtime/vulkan/logical_device.h"
#include "runtime/vulkan/memory.h"
#include "runtime/vulkan/physical_device.h"
#include "tests/options.h"
#include "tests/unit/files.h"

namespace turboesm::vulkan {
namespace {

// A device with the layers on, below Device, whose checks would catch these mistakes first.
struct ValidatedDevice {
  Instance instance{true};
  PhysicalDevice physical = inspect(instance, instance.physical_devices().at(0), 0, true);
  LogicalDevice device{physical};
  Memory memory{instance, physical, device};

  // Records two copies, from a to b and from b to a, of the bytes [0, size).
  void record_copies(uint64_t size, bool with_barrier) {
    const auto a = memory.allocate(1024, MemoryLabel::weights), b = memory.allocate(1024, MemoryLabel::weights);
    const VkBufferCopy region{0, 0, size};
    Commands commands(device);
    commands.begin(0);
    device.vk.vkCmdCopyBuffer(commands.get(), a->handle(), b->handle(), 1, &region);
    if (with_barrier) memory_barrier(device, commands.get(), kTransfer, kTransfer);
    device.vk.vkCmdCopyBuffer(commands.get(), b->handle(), a->handle(), 1, &region);
    commands.end();
  }
};

std::string message_of(const Instance& instance) {
  try {
    instance.raise_validation_messages();
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::device);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("what is right is met with silence", "[unit]") {
  if (!test_options().validation) SKIP("--no-validation");
  ValidatedDevice validated;
  validated.record_copies(1024, true);
  CHECK(message_of(validated.instance) == "");
}

TEST_CASE("a copy past a buffer's end is reported, once", "[unit]") {
  if (!test_options().validation) SKIP("--no-validation");
  ValidatedDevice validated;
  validated.record_copies(1025, true);
  CHECK(message_of(validated.instance).find("VUID-vkCmdCopyBuffer-size") != std::string::npos);
  CHECK(message_of(validated.instance) == "");
}

TEST_CASE("a missing barrier is reported", "[unit]") {
  if (!test_options().validation) SKIP("--no-validation");
  ValidatedDevice validated;
  validated.record_copies(1024, false);
  CHECK(message_of(validated.instance).find("SYNC-HAZARD-READ-AFTER-WRITE") != std::string::npos);
}

}  // namespace turboesm::vulkan
