#include "core/parallel.h"

#include "core/check.h"
#include "core/denormals.h"

namespace kizu {

namespace {

constexpr std::uint64_t kPartMask = 0xffffffff;

}  // namespace

ThreadPool::ThreadPool(int threads) : claims_(kPartMask) {
  check(threads >= 1 && threads <= 1024, "threads is ", threads, ", but must be from 1 to 1024");
  workers_.reserve(static_cast<std::size_t>(threads) - 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run_parts(Job job, const void* context) {
  const KeepDenormals keep;
  if (workers_.empty()) return job(context, 0);
  // All parts of the job before are done, so nobody reads these.
  job_ = job;
  context_ = context;
  undone_.store(threads(), std::memory_order_relaxed);
  const std::uint64_t number = (claims_.load(std::memory_order_relaxed) >> 32) + 1;
  claims_.store(number << 32, std::memory_order_release);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  take_parts();
  for (int left = undone_.load(std::memory_order_acquire); left != 0; left = undone_.load(std::memory_order_acquire))
    undone_.wait(left, std::memory_order_acquire);
}

void ThreadPool::take_parts() {
  std::uint64_t claims = claims_.load(std::memory_order_acquire);
  while ((claims & kPartMask) < static_cast<std::uint64_t>(threads())) {
    if (!claims_.compare_exchange_weak(claims, claims + 1, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    job_(context_, static_cast<int>(claims & kPartMask));
    if (undone_.fetch_sub(1, std::memory_order_acq_rel) == 1) undone_.notify_one();
    claims = claims_.load(std::memory_order_acquire);
  }
}

void ThreadPool::work() {
  const KeepDenormals keep;  // a thread begins in the mode of the one that made it
  for (std::uint32_t seen = 0;;) {
    round_.wait(seen, std::memory_order_acquire);
    seen = round_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    take_parts();
  }
}

}  // namespace kizu
