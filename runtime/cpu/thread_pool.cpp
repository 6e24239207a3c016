#include "runtime/cpu/thread_pool.h"

#include <algorithm>
#include <utility>

namespace turboesm::cpu {

ThreadPool::ThreadPool(uint32_t threads) {
  const uint32_t size = threads ? threads : std::max(1u, std::thread::hardware_concurrency());
  for (uint32_t i = 1; i < size; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::for_each(uint64_t count, uint64_t grain, const std::function<void(uint64_t, uint64_t)>& body) {
  if (count == 0) return;
  if (workers_.empty() || count <= grain) return body(0, count);
  {
    const std::lock_guard lock(mutex_);
    body_ = &body;
    count_ = count;
    grain_ = grain;
    next_ = 0;
    running_ = uint32_t(workers_.size());
    ++generation_;
  }
  start_.notify_all();
  take_pieces();
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return running_ == 0; });
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::take_pieces() {
  for (;;) {
    const uint64_t begin = next_.fetch_add(grain_);
    if (begin >= count_) return;
    try {
      (*body_)(begin, std::min(begin + grain_, count_));
    } catch (...) {
      next_ = count_;
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }
}

void ThreadPool::work() {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    start_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    lock.unlock();
    take_pieces();
    lock.lock();
    if (--running_ == 0) done_.notify_one();
  }
}

}  // namespace turboesm::cpu
