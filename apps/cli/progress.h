#pragma once

#include <chrono>

#include "model/embedder.h"

namespace turboesm::cli {

// A progress bar with rate and time left on standard error; silent when that is no terminal.
class Progress {
 public:
  explicit Progress(bool enabled);
  ~Progress();  // ends the line
  void update(const EmbedProgress& progress);

 private:
  bool enabled_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace turboesm::cli
