#pragma once

#include <chrono>
#include <string>

namespace turboesm::cli {

// A progress bar with a text and the time left on standard error; silent when that is no terminal.
class Progress {
 public:
  explicit Progress(bool enabled);
  ~Progress();  // ends the line
  // `share` of the work done, 0 to 1; 0: unknown. A share that falls starts another stage of the work.
  void update(double share, const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;
  bool enabled_;
  bool drawn_ = false;
  double share_ = 0;
  Clock::time_point last_{}, stage_ = Clock::now();
};

}  // namespace turboesm::cli
