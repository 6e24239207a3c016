#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

// Runs the program under test as its users do: as a process of its own. POSIX only.
namespace turboesm::test {

struct ProcessOptions {
  std::string program{};                   // instead of test_options().turboesm_binary
  std::string input{};                     // on standard input, which is a pipe; at most 16 KiB
  std::optional<uint64_t> memory_bytes{};  // most address space that it may take
  std::optional<uint64_t> file_bytes{};    // longest file that it may write: what is beyond fails, as on a full disk
  bool terminal = false;                   // standard error is a terminal of 80 columns instead of a pipe
};

struct ProcessResult {
  int exit_code = 0;  // 128 + signal when a signal ended it
  std::string out, err;
};

// The program with these arguments; it is started without a shell and ended by SIGALRM after two
// minutes. The object takes the process with it.
class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments, const ProcessOptions& options = {});
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process();

  // Returns once standard error contains `text`; false when it ends without.
  bool wait_for_message(std::string_view text);
  void interrupt();  // Ctrl-C
  ProcessResult finish();

 private:
  bool read_some();  // waits for output; false at the end of both streams

  pid_t pid_ = -1;
  int out_ = -1, err_ = -1;  // our ends; -1 once at their end
  ProcessResult result_;
};

ProcessResult run(const std::vector<std::string>& arguments, const ProcessOptions& options = {});

}  // namespace turboesm::test
