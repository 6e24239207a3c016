// Windows. Kept in step with platform_posix.cpp; not part of the tested builds.
#include "runtime/platform.h"

#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <fcntl.h>
#include <io.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <system_error>
#include <utility>

#include "runtime/error.h"

namespace turboesm {

namespace fs = std::filesystem;

namespace {

struct CloseHandle_ {
  void operator()(void* handle) const { ::CloseHandle(handle); }
};
using Handle = std::unique_ptr<void, CloseHandle_>;

std::string last_error() { return std::system_category().message(int(::GetLastError())); }

}  // namespace

MappedFile MappedFile::open(const fs::path& path) {
  if (fs::is_directory(path)) throw_error(ErrorKind::input, "{}: is a directory, not a file", path.string());
  HANDLE opened = ::CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING,
                                FILE_ATTRIBUTE_NORMAL, nullptr);
  if (opened == INVALID_HANDLE_VALUE) throw_error(ErrorKind::input, "{}: cannot open: {}", path.string(), last_error());
  const Handle file(opened);
  LARGE_INTEGER size{};
  if (!::GetFileSizeEx(file.get(), &size)) throw_error(ErrorKind::input, "{}: is not a regular file", path.string());

  MappedFile mapped;
  if (size.QuadPart == 0) return mapped;  // an empty mapping is not allowed
  const Handle mapping(::CreateFileMappingW(file.get(), nullptr, PAGE_READONLY, 0, 0, nullptr));
  const void* address = mapping ? ::MapViewOfFile(mapping.get(), FILE_MAP_READ, 0, 0, 0) : nullptr;
  if (!address)
    throw_error(ErrorKind::input, "{}: cannot map {} bytes: {}", path.string(), size.QuadPart, last_error());
  mapped.bytes_ = {static_cast<const std::byte*>(address), size_t(size.QuadPart)};
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::UnmapViewOfFile(bytes_.data());
}

SharedLibrary SharedLibrary::open(const fs::path& path, std::string& problem) {
  SharedLibrary library;
  library.handle_ = ::LoadLibraryW(path.c_str());
  if (!library.handle_) problem = fmt::format("{}: {}", path.string(), last_error());
  return library;
}

void* SharedLibrary::symbol(const char* name) const {
  return reinterpret_cast<void*>(::GetProcAddress(static_cast<HMODULE>(handle_), name));
}

std::string shared_library_name(std::string_view name) { return fmt::format("{}.dll", name); }

std::FILE* open_file(const fs::path& path, const char* mode) { return ::_wfopen(path.c_str(), fs::path(mode).c_str()); }

std::FILE* binary_stdin() {
  ::_setmode(::_fileno(stdin), _O_BINARY);
  return stdin;
}

fs::path executable_path() {
  std::wstring name(32768, L'\0');  // the longest path there is
  name.resize(::GetModuleFileNameW(nullptr, name.data(), DWORD(name.size())));
  return name;
}

fs::path user_cache_dir() {
  const wchar_t* local = ::_wgetenv(L"LOCALAPPDATA");
  return local && *local ? fs::path(local) / "turboesm" / "cache" : fs::path();
}

fs::path user_config_dir() {
  const wchar_t* roaming = ::_wgetenv(L"APPDATA");
  return roaming && *roaming ? fs::path(roaming) / "turboesm" : fs::path();
}

bool is_terminal(int fd) { return ::_isatty(fd) != 0; }

int terminal_width() {
  CONSOLE_SCREEN_BUFFER_INFO info{};
  if (!::GetConsoleScreenBufferInfo(::GetStdHandle(STD_ERROR_HANDLE), &info)) return 80;
  return info.srWindow.Right - info.srWindow.Left + 1;
}

namespace {

// A console handler can reach nothing but a global.
std::atomic<bool> interrupt_seen{false};

// Not handling the second one (FALSE) lets the default handler end the process.
BOOL WINAPI on_console_event(DWORD) { return interrupt_seen.exchange(true) ? FALSE : TRUE; }

}  // namespace

void install_interrupt_handler() { ::SetConsoleCtrlHandler(on_console_event, TRUE); }

bool interrupted() { return interrupt_seen.load(); }

fs::path unique_sibling(const fs::path& path) {
  std::random_device random;
  for (;;) {
    const uint64_t number = uint64_t(random()) << 32 | random();
    fs::path candidate = path.parent_path() / fmt::format(".turboesm-{:016x}.tmp", number);
    std::error_code ignored;
    if (!fs::exists(fs::symlink_status(candidate, ignored))) return candidate;
  }
}

uint64_t total_memory_bytes() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof(status);
  return ::GlobalMemoryStatusEx(&status) ? status.ullTotalPhys : 0;
}

uint64_t available_memory_bytes() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof(status);
  return ::GlobalMemoryStatusEx(&status) ? status.ullAvailPhys : 0;
}

ProcessMemory process_memory() { return {}; }

}  // namespace turboesm
