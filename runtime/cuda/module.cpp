#include "runtime/cuda/module.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include <cublasLt.h>

#include "cuda_abi.h"
#include "runtime/cuda/session.h"

#if defined(_WIN32)
#define TURBOESM_EXPORT __declspec(dllexport)
#else
#define TURBOESM_EXPORT __attribute__((visibility("default")))
#endif

namespace turboesm::cuda {
namespace {

void tell(Failure* failure, ErrorKind kind, const char* message) {
  failure->kind = kind;
  std::snprintf(failure->message, sizeof failure->message, "%s", message);
}

// Runs body(); what it throws becomes a Failure.
template <class Body>
bool guarded(Failure* failure, Body&& body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    tell(failure, error.kind(), error.what());
  } catch (const std::bad_alloc&) {
    tell(failure, ErrorKind::out_of_memory, "[cuda] host memory did not suffice");
  } catch (const std::exception& error) {
    tell(failure, ErrorKind::device, error.what());
  }
  return false;
}

constexpr int kOldestCapability = 75;

bool count(uint32_t* devices, ModuleVersions* versions, Failure* failure) {
  return guarded(failure, [&] {
    cudaDriverGetVersion(&versions->driver);  // 0: there is none
    cudaRuntimeGetVersion(&versions->runtime);
    versions->cublaslt = int32_t(cublasLtGetVersion());
    int found = 0;
    const cudaError_t result = cudaGetDeviceCount(&found);
    cudaGetLastError();
    if (versions->driver == 0)
      throw_error(ErrorKind::device, "this machine has no NVIDIA driver: install it, or use another device");
    if (result == cudaErrorInsufficientDriver)
      throw_error(ErrorKind::device, "NVIDIA's driver has CUDA {}.{}, {}.{} is needed: install a newer driver",
                  versions->driver / 1000, versions->driver % 1000 / 10, versions->runtime / 1000,
                  versions->runtime % 1000 / 10);
    if (result == cudaErrorNoDevice || (result == cudaSuccess && found == 0))
      throw_error(ErrorKind::device,
                  "NVIDIA's driver found no device (the environment variable CUDA_VISIBLE_DEVICES can hide them)");
    require(result, "cudaGetDeviceCount");
    *devices = uint32_t(found);
  });
}

bool describe(uint32_t index, GpuDescription* d, Failure* failure) {
  return guarded(failure, [&] {
    cudaDeviceProp properties{};
    require(cudaGetDeviceProperties(&properties, int(index)), "cudaGetDeviceProperties");
    std::snprintf(d->name, sizeof d->name, "%s", properties.name);
    d->memory_bytes = properties.totalGlobalMem;
    d->compute_capability = 10 * properties.major + properties.minor;
    d->multiprocessors = uint32_t(properties.multiProcessorCount);
    d->matrix_core_dtypes = d->compute_capability >= 80 ? kF16 | kBF16 : kF16;
    d->integrated = properties.integrated != 0;
    if (d->compute_capability < kOldestCapability)
      std::snprintf(d->problem, sizeof d->problem,
                    "its compute capability is %d.%d, %d.%d or newer is needed: use it through Vulkan",
                    properties.major, properties.minor, kOldestCapability / 10, kOldestCapability % 10);
    else if (!properties.memoryPoolsSupported)
      std::snprintf(d->problem, sizeof d->problem, "its driver has no memory pools: use it through Vulkan");
  });
}

bool open(uint32_t index, const SessionOptions* options, Session** session, Failure* failure) {
  return guarded(failure, [&] { *session = new Session(index, *options); });
}

void close(Session* session) { delete session; }

bool allocate(Session* session, uint64_t size, uint64_t* address, uint64_t* taken, Failure* failure) {
  return guarded(failure, [&] {
    session->make_current();
    *address = session->allocate(size, *taken);
  });
}

void free(Session* session, uint64_t address) {
  Failure ignored;  // a device that failed has nothing to free
  guarded(&ignored, [&] {
    session->make_current();
    session->free(address);
  });
}

bool memory(Session* session, SessionMemory* memory, Failure* failure) {
  return guarded(failure, [&] {
    session->make_current();
    *memory = session->memory();
  });
}

bool write(Session* session, uint64_t address, uint64_t size, FillFunction fill, void* context, bool* stopped,
           Failure* failure) {
  return guarded(failure, [&] {
    session->make_current();
    *stopped = !session->write(address, size, fill, context);
  });
}

bool read(Session* session, uint64_t address, std::byte* destination, uint64_t size, Failure* failure) {
  return guarded(failure, [&] {
    session->make_current();
    session->read(address, destination, size);
  });
}

bool record(Session* session, const Operation* operations, size_t count, bool profile, Recording** recording,
            Failure* failure) {
  return guarded(failure, [&] {
    session->make_current();
    *recording = new Recording(*session, {operations, count}, profile);
  });
}

void release(Recording* recording) {
  Failure ignored;
  guarded(&ignored, [&] { recording->session().make_current(); });
  delete recording;
}

bool submit(Recording* recording, uint64_t* ticket, Failure* failure) {
  return guarded(failure, [&] {
    recording->session().make_current();
    *ticket = recording->submit();
  });
}

bool wait(Session* session, uint64_t ticket, Failure* failure) {
  return guarded(failure, [&] {
    session->make_current();
    session->wait(ticket);
  });
}

bool seconds(Recording* recording, double* operations, double* total, Failure* failure) {
  return guarded(failure, [&] {
    recording->session().make_current();
    recording->seconds(operations, total);
  });
}

constexpr Module kModule{.abi = kModuleAbi,
                         .scratch_bytes = kScratchBytes,
                         .staging_chunk_bytes = Session::kChunkBytes,
                         .count = count,
                         .describe = describe,
                         .open = open,
                         .close = close,
                         .allocate = allocate,
                         .free = free,
                         .memory = memory,
                         .write = write,
                         .read = read,
                         .record = record,
                         .release = release,
                         .submit = submit,
                         .wait = wait,
                         .seconds = seconds};

}  // namespace
}  // namespace turboesm::cuda

extern "C" TURBOESM_EXPORT const turboesm::cuda::Module* turboesm_cuda_module() { return &turboesm::cuda::kModule; }
