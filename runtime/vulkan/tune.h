#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "runtime/backend.h"
#include "runtime/vulkan/lower.h"

namespace turboesm::vulkan {

// Records operations, each by a dispatch of its own.
using RecordBy =
    std::function<std::unique_ptr<Recording>(std::span<const Operation> operations, std::span<const Dispatch> by)>;

// Device::tune(): the rates of all tiles that `device` can run, as a file of rates/. They are fitted to the times of
// ESM-2's linear layers, which stand in a recording as in a model: one after the other and, where they are short and
// not too small for it, with weights that no cache holds.
std::string measure_linear_rates(Device& device, const Traits& traits, const RecordBy& record);

}  // namespace turboesm::vulkan
