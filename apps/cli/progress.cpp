#include "apps/cli/progress.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>

#include "apps/cli/common.h"
#include "runtime/platform.h"

namespace turboesm::cli {
namespace {

constexpr int kStderr = 2;
constexpr auto kInterval = std::chrono::milliseconds(100);

std::string bar(double share, int width) {
  const int filled = int(share * width);
  return fmt::format("[{:=<{}}{: <{}}]", "", filled, "", width - filled);
}

}  // namespace

Progress::Progress(bool enabled) : enabled_(enabled && is_terminal(kStderr)) {}

Progress::~Progress() {
  if (drawn_) std::fputc('\n', stderr);
}

void Progress::update(double share, const std::string& text) {
  if (!enabled_) return;
  const Clock::time_point now = Clock::now();
  if (share < share_) stage_ = now;
  share_ = share;
  if (drawn_ && now - last_ < kInterval && share < 1) return;
  last_ = now;
  std::string line = text;
  if (share > 0) {
    line = fmt::format("{} {:3.0f} %  {}", bar(share, 24), 100 * share, text);
    const double seconds = std::chrono::duration<double>(now - stage_).count();
    if (share < 1) line += fmt::format("  {} left", format_duration(seconds * (1 - share) / share));
  }
  const int width = std::max(20, terminal_width() - 1);
  line.resize(size_t(width), ' ');
  fmt::print(stderr, "\r{}", line);
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace turboesm::cli
