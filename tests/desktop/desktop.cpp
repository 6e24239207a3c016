#include "tests/desktop/desktop.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <set>

#include <catch2/catch_test_macros.hpp>

#include "tests/options.h"
#include "tests/unit/files.h"

namespace turboesm::test {
namespace {

// Xvfb, which says on a pipe which display it became.
class Display {
 public:
  Display() {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      const int nowhere = ::open("/dev/null", O_WRONLY);
      ::dup2(nowhere, STDERR_FILENO);
      ::dup2(ends[1], 3);
      ::execlp("Xvfb", "Xvfb", "-displayfd", "3", "-screen", "0", "1920x1200x24", "-nolisten", "tcp", nullptr);
      ::_exit(127);
    }
    ::close(ends[1]);
    std::string number;
    for (char c = 0; ::read(ends[0], &c, 1) == 1 && c != '\n';) number += c;
    ::close(ends[0]);
    INFO("Xvfb must be installed and start");
    REQUIRE_FALSE(number.empty());
    ::setenv("DISPLAY", (":" + number).c_str(), 1);
    ::unsetenv("WAYLAND_DISPLAY");
  }
  ~Display() {
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }
  Display(const Display&) = delete;
  Display& operator=(const Display&) = delete;

 private:
  pid_t pid_ = -1;
};

uint32_t big_endian(const std::string& bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | uint8_t(bytes[at + i]);
  return value;
}

}  // namespace

void require_display() { static const Display display; }

ProcessResult run_desktop(const nlohmann::json& steps, const std::vector<std::string>& arguments,
                          const std::string& program) {
  require_display();
  const TemporaryFolder folder;
  const std::filesystem::path script = folder.write("steps.json", steps.dump());
  std::vector<std::string> all{"--script", script.string()};
  all.insert(all.end(), arguments.begin(), arguments.end());
  const auto lacks = [&](const char* option) { return std::ranges::find(all, option) == all.end(); };
  if (lacks("--settings")) all.emplace_back("--no-settings");
  if (lacks("--width")) all.insert(all.end(), {"--width", "1200", "--height", "760"});
  if (program.empty()) all.emplace_back("--validation");
  return run(all, {.program = program.empty() ? test_options().desktop_binary : program});
}

void run_desktop_well(const nlohmann::json& steps, const std::vector<std::string>& arguments) {
  const ProcessResult result = run_desktop(steps, arguments);
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK(result.err.empty());
}

nlohmann::json read_json(const std::filesystem::path& file) { return nlohmann::json::parse(read_file(file)); }

desktop::Image read_png(const std::filesystem::path& file) {
  const std::string png = read_file(file);
  REQUIRE(png.starts_with("\x89PNG\r\n\x1a\n"));
  desktop::Image image;
  std::string packed;
  for (size_t at = 8; at + 12 <= png.size();) {
    const uint32_t length = big_endian(png, at);
    REQUIRE(at + 12 + length <= png.size());
    const std::string type = png.substr(at + 4, 4);
    const auto* checked = reinterpret_cast<const Bytef*>(&png[at + 4]);
    CHECK(big_endian(png, at + 8 + length) == uint32_t(crc32(0, checked, length + 4)));
    if (type == "IHDR") image.width = big_endian(png, at + 8), image.height = big_endian(png, at + 12);
    if (type == "IDAT") packed += png.substr(at + 8, length);
    at += 12 + length;
  }
  const size_t stride = size_t(image.width) * 3;
  std::string rows((stride + 1) * image.height, '\0');
  uLongf size = uLongf(rows.size());
  REQUIRE(uncompress(reinterpret_cast<Bytef*>(rows.data()), &size, reinterpret_cast<const Bytef*>(packed.data()),
                     uLong(packed.size())) == Z_OK);
  REQUIRE(size == rows.size());
  for (uint32_t y = 0; y < image.height; ++y) {
    REQUIRE(rows[y * (stride + 1)] == 2);  // each row is its difference from the one above
    for (size_t x = 0; x < stride; ++x) {
      const uint8_t above = y ? image.rgb[(y - 1) * stride + x] : uint8_t(0);
      image.rgb.push_back(uint8_t(rows[y * (stride + 1) + 1 + x] + above));
    }
  }
  return image;
}

size_t colours(const desktop::Image& image) {
  std::set<uint32_t> seen;
  for (size_t i = 0; i < image.rgb.size(); i += 3)
    seen.insert(uint32_t(image.rgb[i] << 16 | image.rgb[i + 1] << 8 | image.rgb[i + 2]));
  return seen.size();
}

}  // namespace turboesm::test
