#include "runtime/vulkan/pipeline_file.h"

#include <zlib.h>

#include <cstring>
#include <fstream>
#include <system_error>

#include "runtime/platform.h"
#include "runtime/vulkan/vk.h"

namespace turboesm::vulkan {
namespace {

// The file is this header and the data after it.
struct FileHeader {
  uint32_t magic = 0x43504554;  // "TEPC", little-endian
  uint32_t crc = 0;             // of the data, as zlib's crc32
  uint64_t size = 0;            // of the data, in bytes
};

constexpr uint64_t kMaxBytes = 512u << 20;

uint32_t crc_of(std::span<const std::byte> data) {
  return uint32_t(crc32_z(0, reinterpret_cast<const Bytef*>(data.data()), data.size()));
}

// Vulkan prescribes how the data begins.
bool belongs_to(std::span<const std::byte> data, const PipelineIdentity& identity) {
  VkPipelineCacheHeaderVersionOne header{};
  if (data.size() < sizeof(header)) return false;
  std::memcpy(&header, data.data(), sizeof(header));
  return header.headerSize >= sizeof(header) && header.headerSize <= data.size() &&
         header.headerVersion == VK_PIPELINE_CACHE_HEADER_VERSION_ONE && header.vendorID == identity.vendor &&
         header.deviceID == identity.device &&
         !std::memcmp(header.pipelineCacheUUID, identity.uuid.data(), VK_UUID_SIZE);
}

}  // namespace

std::filesystem::path pipeline_file_path(const std::filesystem::path& folder, const PipelineIdentity& identity) {
  std::string uuid;
  for (const uint8_t byte : identity.uuid) uuid += fmt::format("{:02x}", byte);
  return folder /
         fmt::format("vulkan-{:04x}-{:04x}-{:08x}-{}.bin", identity.vendor, identity.device, identity.driver, uuid);
}

std::vector<std::byte> read_pipeline_file(const std::filesystem::path& path, const PipelineIdentity& identity) {
  std::error_code error;
  const uint64_t file_size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  FileHeader header;
  if (error || !file.read(reinterpret_cast<char*>(&header), sizeof(header))) return {};
  if (header.magic != FileHeader{}.magic || header.size > kMaxBytes || header.size != file_size - sizeof(header))
    return {};
  std::vector<std::byte> data(header.size);
  if (!file.read(reinterpret_cast<char*>(data.data()), std::streamsize(data.size()))) return {};
  if (crc_of(data) != header.crc || !belongs_to(data, identity)) return {};
  return data;
}

bool write_pipeline_file(const std::filesystem::path& path, std::span<const std::byte> data) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error || data.size() > kMaxBytes) return false;
  const std::filesystem::path aside = unique_sibling(path);
  FileHeader header;
  header.crc = crc_of(data);
  header.size = data.size();
  std::ofstream file(aside, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&header), sizeof(header));
  file.write(reinterpret_cast<const char*>(data.data()), std::streamsize(data.size()));
  file.close();
  if (file) std::filesystem::rename(aside, path, error);
  if (file && !error) return true;
  std::filesystem::remove(aside, error);
  return false;
}

}  // namespace turboesm::vulkan
