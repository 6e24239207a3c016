#include "runtime/backend.h"

#include <cstring>

namespace turboesm {

std::string_view name_of(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::cpu: return "CPU";
    case DeviceKind::discrete_gpu: return "discrete GPU";
    case DeviceKind::integrated_gpu: return "integrated GPU";
    case DeviceKind::virtual_gpu: return "virtual GPU";
    case DeviceKind::software_gpu: return "software GPU";
  }
  return "?";
}

void Device::upload(Buffer& buffer, uint64_t offset, std::span<const std::byte> source) {
  upload(buffer, offset, source.size(), [source](std::span<std::byte> chunk, uint64_t position) {
    std::memcpy(chunk.data(), source.data() + position, chunk.size());
  });
}

void Device::run(std::span<const Operation> operations) {
  const std::unique_ptr<Recording> recording = record(operations);
  wait(submit(*recording));
}

}  // namespace turboesm
