// A small pool: the caller and `threads - 1` workers share the parts of one job at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace kizu {

class ThreadPool {
 public:
  // threads >= 1; with 1 every job runs on the caller's thread and none is spawned.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(part) once for each part in [0, threads()) and returns when all are done. The caller takes parts too,
  // so a worker that the system wakes late delays nothing. Subnormal numbers are kept. The body must not throw. One
  // caller at a time. Allocates nothing.
  template <typename Body>
  void run(const Body& body) {
    run_parts([](const void* context, int part) { (*static_cast<const Body*>(context))(part); }, &body);
  }

 private:
  using Job = void (*)(const void* context, int part);
  void run_parts(Job job, const void* context);
  // Takes unclaimed parts of the present job until there is none.
  void take_parts();
  void work();

  std::vector<std::thread> workers_;
  // The job's number above, its next unclaimed part below: one word, so that no part of a later job is taken for one
  // of an earlier.
  std::atomic<std::uint64_t> claims_;
  std::atomic<std::uint32_t> round_{0};  // grows by one a job; workers sleep on it
  std::atomic<int> undone_{0};           // parts of the present job that are not done
  std::atomic<bool> stop_{false};
  Job job_ = nullptr;
  const void* context_ = nullptr;
};

}  // namespace kizu
