#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "runtime/backend.h"

// How --device is understood, apart from any driver, so that it can be tested without one.
namespace turboesm {

struct DeviceSpec {
  std::string_view backend;  // "vulkan"
  uint32_t index = 0;        // "vulkan" means "vulkan:0"
};

// Throws Error(usage) unless `spec` is NAME or NAME:INDEX.
DeviceSpec parse_device_spec(std::string_view spec);

struct DeviceChoice {
  size_t index = 0;         // into the listings
  std::string explanation;  // one line for what was taken, one more for each device that was passed over, and why
};

// What "auto" takes: discrete before integrated before virtual GPU before CPU, at equal kind the first listed; never a
// software GPU driver, nor a device with a problem. Throws Error(device) with all the reasons when nothing is left.
DeviceChoice choose_device(std::span<const DeviceListing> listings, std::span<const std::string> problems);

}  // namespace turboesm
