#pragma once

#include <memory>
#include <type_traits>

#include <cuda_runtime_api.h>

// CUDA's handles as values that free what they hold.
namespace turboesm::cuda {

template <class Handle, cudaError_t (*destroy)(Handle)>
struct Destroy {
  void operator()(Handle handle) const { destroy(handle); }
};
template <class Handle, cudaError_t (*destroy)(Handle)>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<Handle, destroy>>;

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using MemoryPool = Owned<cudaMemPool_t, cudaMemPoolDestroy>;
using Graph = Owned<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;
using PinnedMemory = Owned<void*, cudaFreeHost>;

Stream make_stream();
Event make_event(bool timed);  // else only to be waited for

// Captures what is launched on a stream from its construction to end(). Without an end() it is thrown away, and the
// stream can be used again.
class Capture {
 public:
  explicit Capture(cudaStream_t stream);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  GraphExec end();

 private:
  cudaStream_t stream_;
};

// Times what body() launches on a stream, and waits for it.
class Stopwatch {
 public:
  template <class Body>
  float microseconds(cudaStream_t stream, Body&& body) const {
    start(stream);
    body();
    return stop(stream);
  }

 private:
  void start(cudaStream_t stream) const;
  float stop(cudaStream_t stream) const;

  Event begin_ = make_event(true), end_ = make_event(true);
};

}  // namespace turboesm::cuda
