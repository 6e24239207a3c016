#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <filesystem>
#include <vector>

#include "runtime/vulkan/pipeline_file.h"
#include "tests/unit/files.h"

namespace turboesm::vulkan {
namespace {

const PipelineIdentity kIdentity{0x10de, 0x2335, 0x12345678, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};

// As vkGetPipelineCacheData gives it: a VkPipelineCacheHeaderVersionOne (32 bytes), then what the driver likes.
std::vector<std::byte> cache_data(const PipelineIdentity& identity, uint32_t header_size = 32) {
  const uint32_t header[] = {header_size, 1, identity.vendor, identity.device};
  std::vector<std::byte> data(100, std::byte(7));
  std::memcpy(data.data(), header, sizeof(header));
  std::memcpy(data.data() + sizeof(header), identity.uuid.data(), identity.uuid.size());
  return data;
}

std::vector<std::byte> written_and_read(const std::vector<std::byte>& data, const PipelineIdentity& reader) {
  const test::TemporaryFolder folder;
  REQUIRE(write_pipeline_file(folder / "cache.bin", data));
  return read_pipeline_file(folder / "cache.bin", reader);
}

}  // namespace

TEST_CASE("pipeline data comes back as written, from a folder that did not exist", "[unit]") {
  const test::TemporaryFolder folder;
  const std::filesystem::path path = pipeline_file_path(folder / "a/b", kIdentity);
  CHECK(path.filename() == "vulkan-10de-2335-12345678-0102030405060708090a0b0c0d0e0f10.bin");
  REQUIRE(write_pipeline_file(path, cache_data(kIdentity)));
  CHECK(read_pipeline_file(path, kIdentity) == cache_data(kIdentity));
  CHECK(std::distance(std::filesystem::directory_iterator(path.parent_path()), {}) == 1);
}

TEST_CASE("pipeline data of another device or driver is not used", "[unit]") {
  PipelineIdentity other = kIdentity;
  other.device = 1;
  CHECK(written_and_read(cache_data(other), kIdentity).empty());
  other = kIdentity;
  other.vendor = 1;
  CHECK(written_and_read(cache_data(other), kIdentity).empty());
  other = kIdentity;
  other.uuid[15] = 0;
  CHECK(written_and_read(cache_data(other), kIdentity).empty());
}

TEST_CASE("pipeline data whose header lies is not used", "[unit]") {
  CHECK(written_and_read(cache_data(kIdentity, 16), kIdentity).empty());
  CHECK(written_and_read(cache_data(kIdentity, 101), kIdentity).empty());
  CHECK(written_and_read({}, kIdentity).empty());
}

TEST_CASE("a pipeline file that is missing, truncated, extended or damaged is not used", "[unit]") {
  const test::TemporaryFolder folder;
  const std::filesystem::path path = folder / "cache.bin";
  CHECK(read_pipeline_file(path, kIdentity).empty());
  REQUIRE(write_pipeline_file(path, cache_data(kIdentity)));
  const std::string whole = test::read_file(path);
  for (const size_t size : {size_t(0), size_t(3), size_t(16), size_t(40), whole.size() - 1}) {
    INFO(size);
    folder.write("cache.bin", whole.substr(0, size));
    CHECK(read_pipeline_file(path, kIdentity).empty());
  }
  folder.write("cache.bin", whole + "x");
  CHECK(read_pipeline_file(path, kIdentity).empty());
  std::string damaged = whole;
  damaged[80] ^= 1;
  folder.write("cache.bin", damaged);
  CHECK(read_pipeline_file(path, kIdentity).empty());
  folder.write("cache.bin", whole);
  CHECK_FALSE(read_pipeline_file(path, kIdentity).empty());
}

TEST_CASE("pipeline data that cannot be written is no error and leaves nothing behind", "[unit]") {
  const test::TemporaryFolder folder;
  folder.write("file", "");
  CHECK_FALSE(write_pipeline_file(folder / "file/cache.bin", cache_data(kIdentity)));
  CHECK(folder.list() == std::vector<std::string>{"file"});
}

}  // namespace turboesm::vulkan
