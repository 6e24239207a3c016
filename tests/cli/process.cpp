#include "tests/cli/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <utility>

#include <catch2/catch_test_macros.hpp>

#include "tests/options.h"

namespace turboesm::test {
namespace {

constexpr unsigned kTimeoutSeconds = 120;
constexpr uint64_t kStackBytes = 1 << 20;    // so that the stacks of many threads fit the memory limit
constexpr size_t kMaxInputBytes = 16 << 10;  // what a pipe holds everywhere, so that writing it never waits

struct Pipe {
  int read_end = -1, write_end = -1;
};

void close_fd(int& fd) {
  if (fd >= 0) ::close(std::exchange(fd, -1));
}

void close_on_exec(int fd) { REQUIRE(::fcntl(fd, F_SETFD, FD_CLOEXEC) == 0); }

Pipe make_pipe() {
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  for (int fd : ends) close_on_exec(fd);
  return {ends[0], ends[1]};
}

// A pseudo terminal; what is written to its write_end comes out of its read_end.
Pipe make_terminal() {
  const int controller = ::posix_openpt(O_RDWR | O_NOCTTY);
  REQUIRE(controller >= 0);
  REQUIRE(::grantpt(controller) == 0);
  REQUIRE(::unlockpt(controller) == 0);
  const int terminal = ::open(::ptsname(controller), O_RDWR | O_NOCTTY);
  REQUIRE(terminal >= 0);
  winsize size{};
  size.ws_row = 24;
  size.ws_col = 80;
  REQUIRE(::ioctl(terminal, TIOCSWINSZ, &size) == 0);
  for (int fd : {controller, terminal}) close_on_exec(fd);
  return {controller, terminal};
}

void limit(auto resource, std::optional<uint64_t> bytes) {
  if (!bytes) return;
  const rlimit value{rlim_t(*bytes), rlim_t(*bytes)};
  ::setrlimit(resource, &value);
}

// In the child, where only what is safe after fork() may be called; does not return.
[[noreturn]] void become(const std::vector<char*>& argv, int in, int out, int err, const ProcessOptions& options) {
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  limit(RLIMIT_AS, options.memory_bytes);
  if (options.memory_bytes) limit(RLIMIT_STACK, kStackBytes);
  limit(RLIMIT_FSIZE, options.file_bytes);
  std::signal(SIGXFSZ, options.file_bytes ? SIG_IGN : SIG_DFL);  // ignored, the write fails instead
  ::alarm(kTimeoutSeconds);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

// Appends what there is to read; closes `fd` at the end. A terminal whose other end is closed gives EIO.
void read_into(std::string& text, int& fd) {
  std::array<char, 4096> buffer;
  const ssize_t count = ::read(fd, buffer.data(), buffer.size());
  if (count > 0) {
    text.append(buffer.data(), size_t(count));
  } else if (count == 0 || errno != EINTR) {
    close_fd(fd);
  }
}

}  // namespace

Process::Process(const std::vector<std::string>& arguments, const ProcessOptions& options) {
  std::vector<std::string> words{options.program.empty() ? test_options().turboesm_binary : options.program};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  Pipe in = make_pipe(), out = make_pipe(), err = options.terminal ? make_terminal() : make_pipe();
  REQUIRE(options.input.size() <= kMaxInputBytes);
  REQUIRE(::write(in.write_end, options.input.data(), options.input.size()) == ssize_t(options.input.size()));
  close_fd(in.write_end);

  pid_ = ::fork();
  REQUIRE(pid_ >= 0);
  if (pid_ == 0) become(argv, in.read_end, out.write_end, err.write_end, options);
  for (int fd : {in.read_end, out.write_end, err.write_end}) ::close(fd);
  out_ = out.read_end;
  err_ = err.read_end;
}

Process::~Process() {
  close_fd(out_);
  close_fd(err_);
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

bool Process::read_some() {
  std::array<pollfd, 2> ends{{{out_, POLLIN, 0}, {err_, POLLIN, 0}}};  // poll skips an fd of -1
  if (out_ < 0 && err_ < 0) return false;
  if (::poll(ends.data(), ends.size(), -1) < 0) return errno == EINTR;
  if (ends[0].revents) read_into(result_.out, out_);
  if (ends[1].revents) read_into(result_.err, err_);
  return true;
}

bool Process::wait_for_message(std::string_view text) {
  while (result_.err.find(text) == std::string::npos)
    if (!read_some()) return false;
  return true;
}

void Process::interrupt() { REQUIRE(::kill(pid_, SIGINT) == 0); }

ProcessResult Process::finish() {
  while (read_some()) {
  }
  int status = 0;
  REQUIRE(::waitpid(std::exchange(pid_, -1), &status, 0) > 0);
  result_.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return std::move(result_);
}

ProcessResult run(const std::vector<std::string>& arguments, const ProcessOptions& options) {
  return Process(arguments, options).finish();
}

}  // namespace turboesm::test
