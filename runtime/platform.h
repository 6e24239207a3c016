#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

// Everything that differs between operating systems. platform_posix.cpp (Linux, macOS) and platform_windows.cpp
// implement it; no other file calls the operating system directly.
namespace turboesm {

// A whole file mapped read-only. Pages are read when first touched and shared with other processes. The file must not
// be shortened while it is mapped.
class MappedFile {
 public:
  // Errors (input, naming the file): missing, a directory or other special file, not readable. An empty file maps to
  // an empty span.
  static MappedFile open(const std::filesystem::path& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  // Stays at the same address when the MappedFile is moved.
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

// A shared library, open from open() until the program ends: what it registered with the system cannot be taken back.
class SharedLibrary {
 public:
  // `problem` gets what the system says when it cannot be loaded.
  static SharedLibrary open(const std::filesystem::path& path, std::string& problem);

  explicit operator bool() const { return handle_ != nullptr; }
  void* symbol(const char* name) const;  // null: it has none of that name

 private:
  void* handle_ = nullptr;
};

// "libNAME.so" as this system spells it.
std::string shared_library_name(std::string_view name);

// std::fopen for bytes as they are ("rb", "wb", ...) and any path; null with errno set when it fails.
std::FILE* open_file(const std::filesystem::path& path, const char* mode);

// Standard input, delivering bytes as they are.
std::FILE* binary_stdin();

// The running program's own file, symbolic links resolved; files that ship with it are found relative to this.
std::filesystem::path executable_path();

// This program's folder for files that can be made again ("~/.cache/turboesm" on Linux). It may not exist yet; empty
// when the user has no home.
std::filesystem::path user_cache_dir();

// This program's folder for what the user chose ("~/.config/turboesm" on Linux); otherwise as user_cache_dir().
std::filesystem::path user_config_dir();

// Whether a C file descriptor (0 stdin, 1 stdout, 2 stderr) is an interactive terminal.
bool is_terminal(int fd);

// Columns of the terminal on stderr, where progress is drawn; 80 when there is none.
int terminal_width();

// From here on the first SIGINT or SIGTERM (Ctrl-C) only makes interrupted() true, so that work can stop and clean up;
// a second one ends the process at once.
void install_interrupt_handler();
bool interrupted();

// A name in the same folder as `path` that no file has: what is written there can be renamed to `path` without copying.
std::filesystem::path unique_sibling(const std::filesystem::path& path);

// Main memory in bytes, a container's limit included: all there is, and what could be allocated now without swapping.
// 0 when the system does not say.
uint64_t total_memory_bytes();
uint64_t available_memory_bytes();

// Main memory that this process has, in bytes; zeros when the system does not say.
struct ProcessMemory {
  uint64_t peak = 0;    // most at any time, `mapped` included
  uint64_t own = 0;     // now, in no file
  uint64_t mapped = 0;  // now, pages of mapped files: the system's own copy of them, which it gives up on demand
};
ProcessMemory process_memory();

}  // namespace turboesm
