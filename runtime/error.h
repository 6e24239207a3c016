#pragma once

#include <stdexcept>
#include <string>

#include <fmt/format.h>

namespace turboesm {

// What went wrong, as far as a caller has to tell cases apart. The command line exits with exit_code(kind).
enum class ErrorKind {
  usage,          // the caller asked for something that does not exist or contradicts itself
  input,          // a file, record or tensor is not what it must be
  device,         // a driver or device failed, is missing, or cannot do what is asked
  out_of_memory,  // device or host memory did not suffice; a smaller batch may
  cancelled,      // the user interrupted
};

// Process exit status for an error: 2 usage, 3 input, 4 device or memory, 130 cancelled (128 + SIGINT).
int exit_code(ErrorKind kind);

// The one exception type. The message is one sentence for a person: it names the file, tensor or record, says what
// was wrong with which values, and what to do. A VkResult or cudaError, where there is one, is part of the message.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// throw_error(ErrorKind::input, "{}: header is {} bytes, the file only {}", path, header, size);
template <class... Args>
[[noreturn]] void throw_error(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace turboesm
