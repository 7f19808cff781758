#include "core/parallel.h"

#include "core/check.h"

namespace kizu {

ThreadPool::ThreadPool(int threads) {
  check(threads >= 1 && threads <= 1024, "threads is ", threads, ", but must be from 1 to 1024");
  workers_.reserve(static_cast<std::size_t>(threads) - 1);
  for (int part = 1; part < threads; ++part) workers_.emplace_back([this, part] { work(part); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run_parts(Job job, const void* context) {
  if (workers_.empty()) return job(context, 0);
  job_ = job;
  context_ = context;
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  job(context, 0);
  for (int busy = busy_.load(std::memory_order_acquire); busy != 0; busy = busy_.load(std::memory_order_acquire))
    busy_.wait(busy, std::memory_order_acquire);
}

void ThreadPool::work(int part) {
  for (unsigned seen = 0;;) {
    round_.wait(seen, std::memory_order_acquire);
    seen = round_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    job_(context_, part);
    if (busy_.fetch_sub(1, std::memory_order_release) == 1) busy_.notify_one();
  }
}

}  // namespace kizu
