// The program's side of the CUDA module (runtime/cuda/module.h): finds and loads it, and makes a Device of its
// functions.
#include <algorithm>
#include <array>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

#include "cuda_abi.h"
#include "runtime/backend.h"
#include "runtime/cuda/buffer.h"
#include "runtime/cuda/module.h"
#include "runtime/platform.h"

namespace turboesm {
namespace cuda {
namespace {

// The module where it may lie: beside the program in the build tree and in a package that is unpacked anywhere, or in
// the library folder of an installation.
std::vector<std::filesystem::path> module_places() {
  const std::filesystem::path beside = executable_path().parent_path();
  const std::string name = shared_library_name("turboesm_cuda");
  return {beside / name, (beside.parent_path() / TURBOESM_MODULE_DIR / name).lexically_normal()};
}

struct LoadedModule {
  const Module* functions = nullptr;
  std::string problem;  // why there is none
};

LoadedModule load_module() {
  const std::vector<std::filesystem::path> places = module_places();
  const auto place = std::ranges::find_if(places, [](const std::filesystem::path& path) {
    std::error_code ignored;
    return std::filesystem::exists(path, ignored);
  });
  if (place == places.end())
    return {nullptr, fmt::format("its module is missing ({} nor {} exists): build turboesm where a CUDA toolkit, 12 or "
                                 "later, is installed",
                                 places[0].string(), places[1].string())};
  std::string reason;
  const SharedLibrary library = SharedLibrary::open(*place, reason);
  if (!library)
    return {nullptr, fmt::format("its module cannot be loaded ({}): install the CUDA libraries that it names", reason)};
  const auto entry = reinterpret_cast<ModuleEntry>(library.symbol(kModuleEntry));
  const Module* functions = entry ? entry() : nullptr;
  if (!functions || functions->abi != kModuleAbi)
    return {nullptr, fmt::format("{} is of another build than this program (ABI {:016x}, not {:016x}): install both "
                                 "from one build",
                                 place->string(), functions ? functions->abi : 0, kModuleAbi)};
  return {functions, {}};
}

// Loaded once, when first asked for. Throws Error(device) when it cannot be.
const Module& module() {
  static const LoadedModule loaded = load_module();
  if (!loaded.functions) throw_error(ErrorKind::device, "{}", loaded.problem);
  return *loaded.functions;
}

// Calls a function of the module; a failure becomes an Error.
template <class... Parameters, class... Arguments>
void call(bool (*function)(Parameters...), Arguments&&... arguments) {
  Failure failure;
  if (!function(std::forward<Arguments>(arguments)..., &failure)) throw Error(failure.kind, failure.message);
}

struct Gpus {
  uint32_t count = 0;
  ModuleVersions versions;
};

Gpus find_gpus() {
  Gpus gpus;
  call(module().count, &gpus.count, &gpus.versions);
  return gpus;
}

DeviceListing describe(uint32_t index, const ModuleVersions& versions, const DeviceOptions& options) {
  GpuDescription gpu;
  call(module().describe, index, &gpu);
  DeviceListing listing;
  DeviceInfo& info = listing.info;
  listing.problem = gpu.problem;
  info.spec = fmt::format("cuda:{}", index);
  info.name = gpu.name;
  info.driver = fmt::format("CUDA {}.{} of the driver, {}.{} of the module", versions.driver / 1000,
                            versions.driver % 1000 / 10, versions.runtime / 1000, versions.runtime % 1000 / 10);
  info.kind = gpu.integrated ? DeviceKind::integrated_gpu : DeviceKind::discrete_gpu;
  info.memory_bytes = gpu.memory_bytes;
  info.matrix_core_dtypes = options.matrix_cores ? gpu.matrix_core_dtypes : 0;
  info.subgroup_size = 32;
  info.scratch_bytes = module().scratch_bytes;
  info.staging_chunk_bytes = module().staging_chunk_bytes;
  info.features = {fmt::format("compute capability {}.{}", gpu.compute_capability / 10, gpu.compute_capability % 10),
                   fmt::format("{} multiprocessors", gpu.multiprocessors),
                   fmt::format("tensor cores {}", gpu.matrix_core_dtypes & kBF16 ? "f16 bf16" : "f16"),
                   fmt::format("cuBLASLt {}.{}.{}", versions.cublaslt / 10000, versions.cublaslt / 100 % 100,
                               versions.cublaslt % 100)};
  return listing;
}

// An opened device, shared by the Device and its buffers so that it is closed after the last of them.
class OpenSession {
 public:
  OpenSession(uint32_t index, const DeviceOptions& options) {
    const SessionOptions wanted{options.matrix_cores, options.tf32, options.arbitrary_products};
    call(module().open, index, &wanted, &session_);
  }
  ~OpenSession() { module().close(session_); }
  OpenSession(const OpenSession&) = delete;
  OpenSession& operator=(const OpenSession&) = delete;

  Session* get() const { return session_; }
  MemoryLedger ledger;

 private:
  Session* session_ = nullptr;
};

class OwnedBuffer final : public CudaBuffer {
 public:
  OwnedBuffer(std::shared_ptr<OpenSession> session, uint64_t size, uint64_t address, uint64_t taken, MemoryLabel label)
      : CudaBuffer(size, label, address), session_(std::move(session)), taken_(taken) {
    session_->ledger.add(label, taken_);
  }
  ~OwnedBuffer() override {
    module().free(session_->get(), address());
    session_->ledger.remove(label(), taken_);
  }
  const OpenSession* session() const { return session_.get(); }

 private:
  std::shared_ptr<OpenSession> session_;
  uint64_t taken_;
};

class CudaRecording final : public turboesm::Recording {
 public:
  CudaRecording(std::shared_ptr<OpenSession> session, std::span<const Operation> operations, bool profile)
      : session_(std::move(session)), timed_(profile ? operations.size() : 0) {
    call(module().record, session_->get(), operations.data(), operations.size(), profile, &recording_);
  }
  ~CudaRecording() override { module().release(recording_); }
  CudaRecording(const CudaRecording&) = delete;
  CudaRecording& operator=(const CudaRecording&) = delete;

  Ticket submit() {
    Ticket ticket = 0;
    call(module().submit, recording_, &ticket);
    submitted_ = true;
    return ticket;
  }

  std::vector<double> operation_seconds() const override { return times().operations; }
  double device_seconds() const override { return times().total; }

 private:
  struct Times {
    std::vector<double> operations;
    double total = 0;
  };
  Times times() const {
    if (!submitted_) return {};
    Times times{std::vector<double>(timed_), 0};
    call(module().seconds, recording_, times.operations.data(), &times.total);
    return times;
  }

  std::shared_ptr<OpenSession> session_;
  size_t timed_;
  bool submitted_ = false;
  cuda::Recording* recording_ = nullptr;
};

// A call to FillChunk from the module, whose frames no exception may cross.
struct FillCall {
  const FillChunk& fill;
  std::exception_ptr thrown;

  static bool run(void* context, std::byte* chunk, uint64_t size, uint64_t offset) {
    FillCall& self = *static_cast<FillCall*>(context);
    try {
      self.fill({chunk, size}, offset);
      return true;
    } catch (...) {
      self.thrown = std::current_exception();
      return false;
    }
  }
};

class CudaDevice final : public Device {
 public:
  CudaDevice(DeviceInfo info, uint32_t index, const DeviceOptions& options)
      : info_(std::move(info)), session_(std::make_shared<OpenSession>(index, options)) {}

  const DeviceInfo& info() const override { return info_; }

  MemoryReport memory() const override {
    const SessionMemory now = session_memory();
    MemoryReport report = session_->ledger.report();
    report.device_bytes = info_.memory_bytes;
    report.driver_bytes = now.reserved_bytes;
    report.budget_bytes = now.free_bytes + now.reserved_bytes;
    return report;
  }

  std::unique_ptr<Buffer> allocate(uint64_t size, MemoryLabel label) override {
    uint64_t address = 0, taken = 0;
    try {
      call(module().allocate, session_->get(), size, &address, &taken);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::out_of_memory) throw;
      throw_error(ErrorKind::out_of_memory, "[{}] {} bytes for {} do not fit: {} of {} bytes are free", info_.spec,
                  size, name_of(label), session_memory().free_bytes, info_.memory_bytes);
    }
    return std::make_unique<OwnedBuffer>(session_, size, address, taken, label);
  }

  using Device::download;
  using Device::record;
  using Device::upload;

  void upload(Buffer& buffer, uint64_t offset, uint64_t size, const FillChunk& fill) override {
    const uint64_t address = address_in(buffer, offset, size);
    FillCall context{fill, {}};
    bool stopped = false;
    call(module().write, session_->get(), address, size, FillCall::run, &context, &stopped);
    count_staging();
    if (stopped) std::rethrow_exception(context.thrown);
  }

  void download(const Buffer& buffer, uint64_t offset, std::span<std::byte> destination) override {
    const uint64_t address = address_in(buffer, offset, destination.size());
    call(module().read, session_->get(), address, destination.data(), destination.size());
    count_staging();
  }

  std::unique_ptr<turboesm::Recording> record(std::span<const Operation> operations,
                                              const RecordOptions& options) override {
    for (const Operation& operation : operations) {
      check(operation);
      require_own_buffers(operation);
    }
    auto recording = std::make_unique<CudaRecording>(session_, operations, options.profile);
    if (!std::exchange(has_scratch_, true)) session_->ledger.add(MemoryLabel::activations, info_.scratch_bytes);
    return recording;
  }

  Ticket submit(turboesm::Recording& recording) override {
    return last_ = static_cast<CudaRecording&>(recording).submit();
  }

  void wait(Ticket ticket) override {
    if (ticket > last_) throw_error(ErrorKind::usage, "ticket {} was never given out; the last is {}", ticket, last_);
    call(module().wait, session_->get(), ticket);
  }

 private:
  SessionMemory session_memory() const {
    SessionMemory memory;
    call(module().memory, session_->get(), &memory);
    return memory;
  }

  // The module allocates staging memory when it first needs it, a chunk at a time.
  void count_staging() {
    const uint64_t now = session_memory().staging_bytes;
    for (; staging_ < now; staging_ += info_.staging_chunk_bytes)
      session_->ledger.add(MemoryLabel::staging, info_.staging_chunk_bytes);
  }

  const OwnedBuffer& own(const Buffer& buffer) const {
    const auto* ours = dynamic_cast<const OwnedBuffer*>(&buffer);
    if (!ours || ours->session() != session_.get()) throw_error(ErrorKind::usage, "a buffer is not of {}", info_.spec);
    return *ours;
  }

  uint64_t address_in(const Buffer& buffer, uint64_t offset, uint64_t size) const {
    if (offset > buffer.size() || size > buffer.size() - offset)
      throw_error(ErrorKind::usage, "{} bytes at {} lie outside a buffer of {}", size, offset, buffer.size());
    return own(buffer).address() + offset;
  }

  void require_own_buffers(const Operation& operation) const {
    std::visit(
        [this](const auto& a) {
          a.operands([this](std::string_view, const Tensor& tensor, uint64_t, Access, uint32_t) {
            if (tensor) own(*tensor.buffer);
          });
        },
        operation);
  }

  DeviceInfo info_;
  std::shared_ptr<OpenSession> session_;
  uint64_t staging_ = 0;
  bool has_scratch_ = false;
  Ticket last_ = 0;
};

std::vector<DeviceListing> list(std::string& problem) {
  std::vector<DeviceListing> listings;
  try {
    const Gpus gpus = find_gpus();
    for (uint32_t i = 0; i < gpus.count; ++i) listings.push_back(describe(i, gpus.versions, {}));
  } catch (const std::exception& error) {
    problem = fmt::format("CUDA: {}", error.what());
  }
  return listings;
}

std::unique_ptr<Device> open(uint32_t index, const DeviceOptions& options) {
  std::optional<Gpus> gpus;
  try {
    gpus = find_gpus();
  } catch (const Error& error) {
    throw_error(error.kind(), "cuda:{} cannot be used: {}", index, error.what());
  }
  if (index >= gpus->count)
    throw_error(ErrorKind::device, "cuda:{} does not exist: NVIDIA's driver found {} device{}", index, gpus->count,
                gpus->count == 1 ? "" : "s");
  DeviceListing listing = describe(index, gpus->versions, options);
  if (!listing.problem.empty())
    throw_error(ErrorKind::device, "{} ({}) cannot be used: {}", listing.info.spec, listing.info.name, listing.problem);
  return std::make_unique<CudaDevice>(std::move(listing.info), index, options);
}

}  // namespace
}  // namespace cuda

const Backend& cuda_backend() {
  static constexpr Backend backend{"cuda", cuda::list, cuda::open};
  return backend;
}

}  // namespace turboesm
