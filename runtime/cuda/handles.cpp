#include "runtime/cuda/handles.h"

#include <utility>

#include "runtime/cuda/kernels.h"
#include "runtime/error.h"

namespace turboesm::cuda {

void require(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // what is not sticky is told once
  const ErrorKind kind = result == cudaErrorMemoryAllocation ? ErrorKind::out_of_memory : ErrorKind::device;
  throw_error(kind, "[cuda] {} failed: {} ({})", call, cudaGetErrorString(result), cudaGetErrorName(result));
}

Stream make_stream() {
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return Stream(stream);
}

Event make_event(bool timed) {
  cudaEvent_t event = nullptr;
  require(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming),
          "cudaEventCreateWithFlags");
  return Event(event);
}

Capture::Capture(cudaStream_t stream) : stream_(stream) {
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}

Capture::~Capture() {
  if (!stream_) return;
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream_, &graph);
  const Graph discarded(graph);
  cudaGetLastError();
}

GraphExec Capture::end() {
  cudaGraph_t captured = nullptr;
  require(cudaStreamEndCapture(std::exchange(stream_, nullptr), &captured), "cudaStreamEndCapture");
  const Graph graph(captured);
  cudaGraphExec_t executable = nullptr;
  require(cudaGraphInstantiate(&executable, captured, 0), "cudaGraphInstantiate");
  return GraphExec(executable);
}

void Stopwatch::start(cudaStream_t stream) const { require(cudaEventRecord(begin_.get(), stream), "cudaEventRecord"); }

float Stopwatch::stop(cudaStream_t stream) const {
  require(cudaEventRecord(end_.get(), stream), "cudaEventRecord");
  require(cudaEventSynchronize(end_.get()), "cudaEventSynchronize");
  float milliseconds = 0;
  require(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "cudaEventElapsedTime");
  return milliseconds * 1e3f;
}

}  // namespace turboesm::cuda
