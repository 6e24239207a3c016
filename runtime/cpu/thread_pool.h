#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace turboesm::cpu {

// A fixed set of threads for loops over independent items; the calling thread works too.
class ThreadPool {
 public:
  explicit ThreadPool(uint32_t threads);  // 0: one a core
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t size() const { return uint32_t(workers_.size()) + 1; }

  // Calls body(begin, end) for consecutive pieces of at most `grain` items that cover [0, count), from all threads, and
  // returns when all are done. Throws what a piece threw, the first one's exception; the pieces that had not been
  // started are left out then. Not reentrant.
  void for_each(uint64_t count, uint64_t grain, const std::function<void(uint64_t, uint64_t)>& body);

 private:
  void work();
  void take_pieces();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  uint64_t generation_ = 0;  // counts loops; guarded by mutex_
  uint32_t running_ = 0;     // workers still in the current loop; guarded by mutex_
  bool stop_ = false;        // guarded by mutex_

  const std::function<void(uint64_t, uint64_t)>* body_ = nullptr;
  uint64_t count_ = 0, grain_ = 1;
  std::atomic<uint64_t> next_{0};
  std::exception_ptr failure_;  // guarded by mutex_
};

}  // namespace turboesm::cpu
