#pragma once

#include <functional>
#include <memory>
#include <string>

#include "runtime/backend.h"
#include "runtime/vulkan/lower.h"

namespace turboesm::vulkan {

using RecordBy = std::function<std::unique_ptr<Recording>(const Linear& operation, const Dispatch& by)>;

// Device::tune(): the rates of all tiles that `device` can run, as a file of rates/.
std::string measure_linear_rates(Device& device, const Traits& traits, const RecordBy& record);

}  // namespace turboesm::vulkan
