#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/error.h"
#include "runtime/operations.h"

// The border between the program and the CUDA module, a shared library that is loaded when a CUDA device is asked for.
// What crosses it is plain: C functions that never throw, numbers, and Operations, which both sides compile from the
// same headers. kModuleAbi is a digest of those (cmake/CudaModule.cmake), so that two builds that differ in one refuse
// each other. The program's side is runtime/cuda_backend.cpp: it checks operations, ranges and owners, counts memory
// and turns failures into Errors; the module (module.cpp, session.h) knows CUDA.
namespace turboesm::cuda {

struct Failure {
  ErrorKind kind = ErrorKind::device;
  char message[1024] = {};
};

struct GpuDescription {
  char name[256] = {};
  char problem[256] = {};  // why it cannot be used; empty: it can
  uint64_t memory_bytes = 0;
  int32_t compute_capability = 0;  // 10 x major + minor
  uint32_t multiprocessors = 0;
  uint32_t matrix_core_dtypes = 0;
  bool integrated = false;
};

struct ModuleVersions {  // of CUDA, 1000 x major + 10 x minor; of cuBLASLt, 10000 x major + 100 x minor + patch
  int32_t driver = 0, runtime = 0, cublaslt = 0;
};

struct SessionOptions {
  bool matrix_cores = true, tf32 = false, arbitrary_products = false;
};

struct SessionMemory {
  uint64_t free_bytes = 0;      // of the device, for anyone
  uint64_t reserved_bytes = 0;  // that the driver holds for this session's pool
  uint64_t staging_bytes = 0;   // pinned host memory for transfers
};

class Session;    // one opened device
class Recording;  // operations captured there

// Writes bytes [offset, offset + size) of an upload to `chunk`; false stops the upload.
using FillFunction = bool (*)(void* context, std::byte* chunk, uint64_t size, uint64_t offset);

// Functions that return a bool say what went wrong in `failure` when it is false.
struct Module {
  uint64_t abi;  // first, and checked before anything else is read
  uint64_t scratch_bytes;
  uint64_t staging_chunk_bytes;

  bool (*count)(uint32_t* devices, ModuleVersions* versions, Failure* failure);
  bool (*describe)(uint32_t index, GpuDescription* description, Failure* failure);
  bool (*open)(uint32_t index, const SessionOptions* options, Session** session, Failure* failure);
  void (*close)(Session* session);

  // `taken` is what the pool took for `size` bytes.
  bool (*allocate)(Session* session, uint64_t size, uint64_t* address, uint64_t* taken, Failure* failure);
  void (*free)(Session* session, uint64_t address);
  bool (*memory)(Session* session, SessionMemory* memory, Failure* failure);
  // Both wait for all that was submitted before, and until they are done. `stopped`: fill returned false.
  bool (*write)(Session* session, uint64_t address, uint64_t size, FillFunction fill, void* context, bool* stopped,
                Failure* failure);
  bool (*read)(Session* session, uint64_t address, std::byte* destination, uint64_t size, Failure* failure);

  bool (*record)(Session* session, const Operation* operations, size_t count, bool profile, Recording** recording,
                 Failure* failure);
  void (*release)(Recording* recording);  // waits for its last submission
  bool (*submit)(Recording* recording, uint64_t* ticket, Failure* failure);
  bool (*wait)(Session* session, uint64_t ticket, Failure* failure);
  // Of the last submission, for which it waits: seconds of each operation, if recorded with profile, and of all.
  bool (*seconds)(Recording* recording, double* operations, double* total, Failure* failure);
};

inline constexpr char kModuleEntry[] = "turboesm_cuda_module";
using ModuleEntry = const Module* (*)();

}  // namespace turboesm::cuda
