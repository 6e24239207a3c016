// Linux and macOS.
#include "runtime/platform.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pwd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <random>
#include <string>
#include <utility>

#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

#include "runtime/error.h"

namespace turboesm {

namespace fs = std::filesystem;

namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

void unmap(std::span<const std::byte> bytes) {
  if (!bytes.empty()) ::munmap(const_cast<std::byte*>(bytes.data()), bytes.size());
}

}  // namespace

MappedFile MappedFile::open(const fs::path& path) {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer.
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) throw_error(ErrorKind::input, "{}: cannot open: {}", path.string(), std::strerror(errno));
  struct stat status {};
  if (::fstat(file.get(), &status) != 0)
    throw_error(ErrorKind::input, "{}: cannot read: {}", path.string(), std::strerror(errno));
  if (S_ISDIR(status.st_mode)) throw_error(ErrorKind::input, "{}: is a directory, not a file", path.string());
  if (!S_ISREG(status.st_mode)) throw_error(ErrorKind::input, "{}: is not a regular file", path.string());

  MappedFile mapped;
  if (status.st_size == 0) return mapped;  // an empty mapping is not allowed
  const size_t size = size_t(status.st_size);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED)
    throw_error(ErrorKind::input, "{}: cannot map {} bytes: {}", path.string(), size, std::strerror(errno));
  mapped.bytes_ = {static_cast<const std::byte*>(address), size};
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() { unmap(bytes_); }

SharedLibrary SharedLibrary::open(const fs::path& path, std::string& problem) {
  SharedLibrary library;
  library.handle_ = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library.handle_) problem = ::dlerror();
  return library;
}

void* SharedLibrary::symbol(const char* name) const { return ::dlsym(handle_, name); }

std::string shared_library_name(std::string_view name) {
#ifdef __APPLE__
  return fmt::format("lib{}.dylib", name);
#else
  return fmt::format("lib{}.so", name);
#endif
}

std::FILE* open_file(const fs::path& path, const char* mode) { return std::fopen(path.c_str(), mode); }

std::FILE* binary_stdin() { return stdin; }

fs::path executable_path() {
#ifdef __APPLE__
  std::string name(1024, '\0');
  uint32_t size = uint32_t(name.size());
  if (_NSGetExecutablePath(name.data(), &size) != 0) {
    name.resize(size);
    _NSGetExecutablePath(name.data(), &size);
  }
  return fs::canonical(name.c_str());
#else
  return fs::read_symlink("/proc/self/exe");
#endif
}

namespace {

// The folder of this program below one of the user's own: that which the XDG base directory specification's variable
// names, which asks for relative values to be ignored, else `below_home`.
fs::path user_dir(const char* variable, const fs::path& below_home) {
  const char* xdg = std::getenv(variable);
  if (xdg && *xdg == '/') return fs::path(xdg) / "turboesm";
  const char* home = std::getenv("HOME");
  if (!home || !*home) {
    const passwd* user = ::getpwuid(::getuid());
    home = user ? user->pw_dir : nullptr;
  }
  return home && *home ? fs::path(home) / below_home / "turboesm" : fs::path();
}

}  // namespace

#ifdef __APPLE__
fs::path user_cache_dir() { return user_dir("XDG_CACHE_HOME", "Library/Caches"); }
fs::path user_config_dir() { return user_dir("XDG_CONFIG_HOME", "Library/Application Support"); }
#else
fs::path user_cache_dir() { return user_dir("XDG_CACHE_HOME", ".cache"); }
fs::path user_config_dir() { return user_dir("XDG_CONFIG_HOME", ".config"); }
#endif

bool is_terminal(int fd) { return ::isatty(fd) == 1; }

int terminal_width() {
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? int(size.ws_col) : 80;
}

namespace {

// A signal handler can reach nothing but a global.
std::atomic<bool> interrupt_seen{false};
static_assert(std::atomic<bool>::is_always_lock_free);

}  // namespace

void install_interrupt_handler() {
  struct sigaction action {};
  action.sa_handler = [](int) {
    interrupt_seen.store(true);
    for (int signal : {SIGINT, SIGTERM}) std::signal(signal, SIG_DFL);  // the next one ends the process
  };
  sigemptyset(&action.sa_mask);
  for (int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

bool interrupted() { return interrupt_seen.load(); }

fs::path unique_sibling(const fs::path& path) {
  std::random_device random;
  for (;;) {
    const uint64_t number = uint64_t(random()) << 32 | random();
    // The name does not contain that of `path`, which may already be as long as names can be.
    fs::path candidate = path.parent_path() / fmt::format(".turboesm-{:016x}.tmp", number);
    std::error_code ignored;
    if (!fs::exists(fs::symlink_status(candidate, ignored))) return candidate;
  }
}

#ifdef __linux__
namespace {

// The number that follows `key` in a file of "key value" lines, or the file's first word for an empty key; nothing
// when there is none ("max" in a control group's file means no limit).
std::optional<uint64_t> read_number(const char* path, std::string_view key) {
  std::ifstream file(path);
  std::string word;
  if (!key.empty())
    while (file >> word && word != key) {
    }
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

constexpr const char* kGroupLimit = "/sys/fs/cgroup/memory.max";
constexpr const char* kGroupUse = "/sys/fs/cgroup/memory.current";
constexpr const char* kGroupStatistics = "/sys/fs/cgroup/memory.stat";

}  // namespace

uint64_t total_memory_bytes() {
  const uint64_t total = uint64_t(::sysconf(_SC_PHYS_PAGES)) * uint64_t(::sysconf(_SC_PAGESIZE));
  return std::min(total, read_number(kGroupLimit, "").value_or(total));
}

uint64_t available_memory_bytes() {
  const uint64_t available = read_number("/proc/meminfo", "MemAvailable:").value_or(0) * 1024;
  const auto limit = read_number(kGroupLimit, "");
  if (!limit) return available;
  // Cached file pages count as use but are given up on demand.
  const uint64_t use = read_number(kGroupUse, "").value_or(0);
  const uint64_t cache = read_number(kGroupStatistics, "inactive_file").value_or(0);
  const uint64_t held = use - std::min(use, cache);
  return std::min(available, *limit - std::min(*limit, held));
}

ProcessMemory process_memory() {
  const auto field = [](std::string_view key) { return read_number("/proc/self/status", key).value_or(0) * 1024; };
  return {field("VmHWM:"), field("RssAnon:"), field("RssFile:")};
}
#else
uint64_t total_memory_bytes() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  return pages > 0 ? uint64_t(pages) * uint64_t(::sysconf(_SC_PAGESIZE)) : 0;
}

uint64_t available_memory_bytes() { return 0; }

ProcessMemory process_memory() { return {}; }
#endif

}  // namespace turboesm
