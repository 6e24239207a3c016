#include "runtime/cuda/session.h"

#include <algorithm>
#include <cstring>

#include "runtime/accesses.h"
#include "runtime/cuda/kv_step.h"
#include "runtime/cuda/product.h"
#include "runtime/cuda/products.h"
#include "runtime/error.h"

namespace turboesm::cuda {

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  require(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

Gpu gpu_of(int index, const SessionOptions& options) {
  return {.index = index,
          .multiprocessors = uint32_t(attribute(cudaDevAttrMultiProcessorCount, index)),
          .max_shared_bytes = uint32_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index)),
          .l2_bytes = uint64_t(attribute(cudaDevAttrL2CacheSize, index)),
          .matrix_cores = options.matrix_cores,
          .tf32 = options.tf32,
          .arbitrary_products = options.arbitrary_products};
}

// Memory that was freed stays with the pool: it is what the next batch takes.
MemoryPool make_pool(int device) {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location = {cudaMemLocationTypeDevice, device};
  cudaMemPool_t pool = nullptr;
  require(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate");
  MemoryPool owned(pool);
  uint64_t keep = ~uint64_t(0);
  require(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "cudaMemPoolSetAttribute");
  return owned;
}

uint64_t pool_attribute(const MemoryPool& pool, cudaMemPoolAttr which) {
  uint64_t value = 0;
  require(cudaMemPoolGetAttribute(pool.get(), which, &value), "cudaMemPoolGetAttribute");
  return value;
}

}  // namespace

Session::Session(uint32_t index, const SessionOptions& options) {
  require(cudaSetDevice(int(index)), "cudaSetDevice");
  gpu_ = gpu_of(int(index), options);
  pool_ = make_pool(int(index));
  stream_ = make_stream();
  const CompiledFor compiled = compiled_for(stream_.get());
  if (compiled.compute_capability == 0)
    throw_error(
        ErrorKind::device,
        "cuda:{} cannot be used: this build's CUDA module has no kernels for its architecture; build turboesm on "
        "this machine, or with -DTURBOESM_CUDA_ARCHITECTURES=ALL",
        index);
  gpu_.compute_capability = compiled.compute_capability;
  gpu_.hopper = compiled.hopper;
  for (Event& event : finished_) event = make_event(false);
  products_ = std::make_unique<Products>(gpu_, pool_.get());
}

Session::~Session() {
  // What still runs uses memory that goes now; a device that failed runs nothing.
  cudaSetDevice(gpu_.index);
  cudaStreamSynchronize(stream_.get());
  products_.reset();
  if (scratch_) cudaFreeAsync(scratch_, stream_.get());
  cudaStreamSynchronize(stream_.get());
}

void Session::make_current() const { require(cudaSetDevice(gpu_.index), "cudaSetDevice"); }

uint64_t Session::allocate(uint64_t size, uint64_t& taken) {
  const uint64_t before = pool_attribute(pool_, cudaMemPoolAttrUsedMemCurrent);
  void* memory = nullptr;
  cudaError_t result = cudaMallocFromPoolAsync(&memory, size, pool_.get(), stream_.get());
  if (result == cudaErrorMemoryAllocation) {
    // The pool may hold enough in pieces that are too small: give them back and ask again.
    cudaGetLastError();
    require(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
    require(cudaMemPoolTrimTo(pool_.get(), 0), "cudaMemPoolTrimTo");
    result = cudaMallocFromPoolAsync(&memory, size, pool_.get(), stream_.get());
  }
  require(result, "cudaMallocFromPoolAsync");
  taken = std::max(size, pool_attribute(pool_, cudaMemPoolAttrUsedMemCurrent) - before);
  return reinterpret_cast<uint64_t>(memory);
}

void Session::free(uint64_t address) { cudaFreeAsync(reinterpret_cast<void*>(address), stream_.get()); }

SessionMemory Session::memory() const {
  SessionMemory memory;
  size_t free = 0, total = 0;
  require(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  memory.free_bytes = free;
  memory.reserved_bytes = pool_attribute(pool_, cudaMemPoolAttrReservedMemCurrent);
  for (const Chunk& chunk : chunks_) memory.staging_bytes += chunk.memory ? kChunkBytes : 0;
  return memory;
}

// ---- Transfers ------------------------------------------------------------------------------------------------------

Session::Chunk& Session::chunk(uint64_t index) {
  Chunk& chunk = chunks_[index % chunks_.size()];
  if (!chunk.memory) {
    void* memory = nullptr;
    require(cudaHostAlloc(&memory, kChunkBytes, cudaHostAllocDefault), "cudaHostAlloc");
    chunk.memory.reset(memory);
    chunk.copied = make_event(false);
  }
  require(cudaEventSynchronize(chunk.copied.get()), "cudaEventSynchronize");
  return chunk;
}

bool Session::write(uint64_t address, uint64_t size, FillFunction fill, void* context) {
  bool complete = true;
  for (uint64_t done = 0, index = 0; done < size && complete; done += kChunkBytes, ++index) {
    const uint64_t bytes = std::min(kChunkBytes, size - done);
    Chunk& part = chunk(index);
    complete = fill(context, static_cast<std::byte*>(part.memory.get()), bytes, done);
    if (!complete) break;
    require(cudaMemcpyAsync(reinterpret_cast<void*>(address + done), part.memory.get(), bytes, cudaMemcpyHostToDevice,
                            stream_.get()),
            "cudaMemcpyAsync");
    require(cudaEventRecord(part.copied.get(), stream_.get()), "cudaEventRecord");
  }
  require(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");  // the caller may free the buffer next
  return complete;
}

void Session::read(uint64_t address, std::byte* destination, uint64_t size) {
  const uint64_t count = (size + kChunkBytes - 1) / kChunkBytes;
  const auto bytes_of = [&](uint64_t index) { return std::min(kChunkBytes, size - index * kChunkBytes); };
  const auto collect = [&](uint64_t index) {
    std::memcpy(destination + index * kChunkBytes, chunk(index).memory.get(), bytes_of(index));
  };
  for (uint64_t index = 0; index < count; ++index) {
    Chunk& part = chunk(index);
    require(cudaMemcpyAsync(part.memory.get(), reinterpret_cast<const void*>(address + index * kChunkBytes),
                            bytes_of(index), cudaMemcpyDeviceToHost, stream_.get()),
            "cudaMemcpyAsync");
    require(cudaEventRecord(part.copied.get(), stream_.get()), "cudaEventRecord");
    if (index > 0) collect(index - 1);
  }
  if (count > 0) collect(count - 1);
}

// ---- Submissions ----------------------------------------------------------------------------------------------------

uint64_t Session::mark_submission() {
  const uint64_t ticket = ++submitted_;
  require(cudaEventRecord(finished_[ticket % kTickets].get(), stream_.get()), "cudaEventRecord");
  return ticket;
}

void Session::wait(uint64_t ticket) {
  if (ticket <= completed_) return;
  // The event of a ticket long past is another's by now; that one's end is this one's, too.
  const uint64_t oldest = submitted_ >= kTickets ? submitted_ - kTickets + 1 : 1;
  const uint64_t awaited = std::max(ticket, oldest);
  require(cudaEventSynchronize(finished_[awaited % kTickets].get()), "cudaEventSynchronize");
  completed_ = awaited;
}

Launch Session::launch_place() {
  if (!scratch_) {
    void* memory = nullptr;
    require(cudaMallocFromPoolAsync(&memory, kScratchBytes, pool_.get(), stream_.get()), "cudaMallocFromPoolAsync");
    scratch_ = static_cast<std::byte*>(memory);
    require(cudaMemsetAsync(scratch_, 0, kScratchBytes, stream_.get()), "cudaMemsetAsync");
  }
  return {.gpu = gpu_, .stream = stream_.get(), .scratch = scratch_, .products = products_.get()};
}

// ---- Recordings -----------------------------------------------------------------------------------------------------

void launch(const Operation& operation, const Launch& place) {
  std::visit([&](const auto& a) { launch(a, place); }, operation);
}

namespace {

void prepare(std::span<const Operation> operations, const Launch& place) {
  Products::Steps steps;
  for (const Operation& operation : operations) {
    steps.push_back({&operation, {}});
    if (const auto* linear = std::get_if<Linear>(&operation)) steps.back().product = product_of(*linear);
    if (const auto* qkv = std::get_if<QkvRope>(&operation)) steps.back().product = product_of(*qkv);
  }
  place.products->prepare(steps, place);
}

// What kernels may read before those ahead of them have finished (wait_for_inputs() in kernel_tools.cuh).
bool is_read_early(std::string_view operation, std::string_view operand) {
  if (operation == KvAttention::kName && operand == "bias") return false;
  for (const std::string_view name : {"weight", "bias", "table", "mean", "position_mean", "transform", "codebook",
                                      "k_codebook", "v_codebook", "projection"})
    if (operand == name) return true;
  return (operation == Attention::kName && operand == "cu_seqlens") ||
         (operation == KvAttention::kName && operand == "lengths") ||
         (operation == KvAppend::kName && operand == "appends");
}

// For each operation whether it must be launched after the ones ahead of it have finished, because one of those writes
// what it reads early. In a model none does: these are weights, and lengths that the step before has written.
std::vector<bool> strictly_ordered(std::span<const Operation> operations) {
  std::vector<AccessedRange> written;  // each place once: layers write the same ones
  std::vector<bool> strict;
  for (const Operation& operation : operations) {
    const std::vector<AccessedRange> accesses = accesses_of(operation, address_of);
    strict.push_back(std::ranges::any_of(accesses, [&](const AccessedRange& range) {
      return !range.writes && is_read_early(name_of(operation), range.operand) && conflict({&range, 1}, written);
    }));
    for (const AccessedRange& range : accesses) {
      const auto is_same = [&](const AccessedRange& w) { return w.begin == range.begin && w.end == range.end; };
      if (range.writes && std::ranges::none_of(written, is_same)) written.push_back(range);
    }
  }
  return strict;
}

}  // namespace

Recording::Recording(Session& session, std::span<const Operation> operations, bool profile)
    : session_(session), profile_(profile) {
  const Launch place = session.launch_place();
  prepare(operations, place);
  const size_t events = profile ? operations.size() + 1 : 2;
  for (size_t i = 0; i < events; ++i) events_.push_back(make_event(true));
  if (profile) {
    operations_.assign(operations.begin(), operations.end());
    return;
  }
  const std::vector<bool> strict = strictly_ordered(operations);
  Capture capture(session.stream());
  require(cudaEventRecordWithFlags(events_[0].get(), session.stream(), cudaEventRecordExternal), "cudaEventRecord");
  std::vector<bool> launched(operations.size(), false);
  for (size_t i = 0; i < operations.size(); ++i) {
    if (launched[i]) continue;
    const KvStep step = kv_step_of(operations.subspan(i), place.gpu);
    const size_t end = std::min(operations.size(), i + kMostOfKvStep);
    for (size_t k = i; k < end; ++k) {
      if (k > i && !step.has(operations[k])) continue;
      launched[k] = true;
      if (strict[k]) place.follows_kernel = false;
    }
    if (step.query)
      launch(step, place);
    else
      cuda::launch(operations[i], place);
  }
  require(cudaEventRecordWithFlags(events_[1].get(), session.stream(), cudaEventRecordExternal), "cudaEventRecord");
  graph_ = capture.end();
  require(cudaGraphUpload(graph_.get(), session.stream()), "cudaGraphUpload");
}

Recording::~Recording() {
  try {
    session_.wait(last_);
  } catch (const Error&) {  // the device failed: nothing runs any more
  }
}

uint64_t Recording::submit() {
  const cudaStream_t stream = session_.stream();
  if (!profile_) {
    require(cudaGraphLaunch(graph_.get(), stream), "cudaGraphLaunch");
    return last_ = session_.mark_submission();
  }
  const Launch place = session_.launch_place();
  require(cudaEventRecord(events_[0].get(), stream), "cudaEventRecord");
  for (size_t i = 0; i < operations_.size(); ++i) {
    place.follows_kernel = false;  // an event stands between
    cuda::launch(operations_[i], place);
    require(cudaEventRecord(events_[i + 1].get(), stream), "cudaEventRecord");
  }
  return last_ = session_.mark_submission();
}

void Recording::seconds(double* operations, double* total) {
  *total = 0;
  if (last_ == 0) return;
  session_.wait(last_);
  const auto between = [&](size_t first, size_t last) {
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, events_[first].get(), events_[last].get()), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  };
  *total = between(0, events_.size() - 1);
  for (size_t i = 0; i < operations_.size(); ++i) operations[i] = between(i, i + 1);
}

}  // namespace turboesm::cuda
