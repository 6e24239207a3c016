#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "runtime/cuda/handles.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/module.h"
#include "runtime/cuda/product.h"

namespace turboesm::cuda {

// One opened device: a stream on which everything happens in order, a memory pool, and pinned memory for transfers.
// Every member throws Error.
class Session {
 public:
  static constexpr uint64_t kChunkBytes = uint64_t(16) << 20;

  Session(uint32_t index, const SessionOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Makes the device current in this thread; what is called next may be any of the functions below.
  void make_current() const;

  uint64_t allocate(uint64_t size, uint64_t& taken);
  void free(uint64_t address);
  SessionMemory memory() const;
  bool write(uint64_t address, uint64_t size, FillFunction fill, void* context);  // false: fill returned false
  void read(uint64_t address, std::byte* destination, uint64_t size);

  // Counts what has been submitted so far; wait() returns when all up to that ticket has finished.
  uint64_t mark_submission();
  void wait(uint64_t ticket);

  cudaStream_t stream() const { return stream_.get(); }
  // Where kernels are launched; allocates the scratch memory when first called.
  Launch launch_place();
  Products& products() { return *products_; }

 private:
  struct Chunk {
    PinnedMemory memory;
    Event copied;
  };
  Chunk& chunk(uint64_t index);  // the two in turn, when the copy that it is busy with has finished

  Gpu gpu_;
  MemoryPool pool_;
  Stream stream_;
  std::unique_ptr<Products> products_;
  std::byte* scratch_ = nullptr;
  std::array<Chunk, 2> chunks_;
  static constexpr uint64_t kTickets = 64;
  std::array<Event, kTickets> finished_;  // of ticket t: finished_[t % kTickets]
  uint64_t submitted_ = 0, completed_ = 0;
};

// Operations captured as a CUDA graph, or, to be timed one by one, launched anew each time.
class Recording {
 public:
  Recording(Session& session, std::span<const Operation> operations, bool profile);
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  Session& session() const { return session_; }
  uint64_t submit();
  void seconds(double* operations, double* total);

 private:
  Session& session_;
  bool profile_;
  std::vector<Operation> operations_;  // with profile only
  std::vector<Event> events_;          // one before the first operation, and one after the last, or after each
  GraphExec graph_;
  uint64_t last_ = 0;
};

void launch(const Operation& operation, const Launch& place);

}  // namespace turboesm::cuda
