#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/backend.h"

namespace turboesm {

// The back ends of this build, the fastest first.
std::span<const Backend* const> backends();
const Backend* find_backend(std::string_view name);  // null: not in this build

struct DeviceList {
  std::vector<DeviceListing> devices;
  std::vector<std::string> problems;  // one sentence for each back end that could not start
};
DeviceList list_devices();

struct OpenedDevice {
  std::unique_ptr<Device> device;
  std::string explanation;  // what was taken and, for "auto", why each other device was passed over
};

// `spec`: "auto", a back end's name ("cpu", "vulkan": its first device) or one of its devices ("vulkan:1"). "auto"
// takes a discrete GPU before an integrated one before the CPU, the back ends in the order of backends(); a software
// GPU driver is used only when named. Throws Error(usage) for a spec that means nothing, Error(device) for a device
// that is not there or cannot be used; never falls back to another device than the one named.
OpenedDevice open_device(std::string_view spec, const DeviceOptions& options);

}  // namespace turboesm
