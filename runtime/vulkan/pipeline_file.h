#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

// Where a driver's compiled pipelines (the data of a VkPipelineCache) are kept between runs.
namespace turboesm::vulkan {

// Whose they are: compiled pipelines are of use to one device with one driver.
struct PipelineIdentity {
  uint32_t vendor = 0, device = 0, driver = 0;  // VkPhysicalDeviceProperties: vendorID, deviceID, driverVersion
  std::array<uint8_t, 16> uuid{};               // pipelineCacheUUID
};

std::filesystem::path pipeline_file_path(const std::filesystem::path& folder, const PipelineIdentity& identity);

// The data in the file; empty when there is none, it is damaged, or it is of another device or driver. Drivers are not
// all careful with what they are given, so nothing that fails a check gets to them.
std::vector<std::byte> read_pipeline_file(const std::filesystem::path& path, const PipelineIdentity& identity);

// Writes aside and renames. False when that failed, which costs no more than the next start's time.
bool write_pipeline_file(const std::filesystem::path& path, std::span<const std::byte> data);

}  // namespace turboesm::vulkan
