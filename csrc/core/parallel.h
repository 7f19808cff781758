// A small pool: the caller and `threads - 1` workers share the parts of one job at a time.
#pragma once

#include <atomic>
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

  // Calls body(part) once for each part in [0, threads()), concurrently, and returns when all are done. The body
  // must not throw. One caller at a time. Allocates nothing.
  template <typename Body>
  void run(const Body& body) {
    run_parts([](const void* context, int part) { (*static_cast<const Body*>(context))(part); }, &body);
  }

 private:
  using Job = void (*)(const void* context, int part);
  void run_parts(Job job, const void* context);
  void work(int part);

  std::vector<std::thread> workers_;
  std::atomic<unsigned> round_{0};  // grows by one a job; workers wait for it
  std::atomic<int> busy_{0};        // workers that have not finished the present job
  std::atomic<bool> stop_{false};
  Job job_ = nullptr;
  const void* context_ = nullptr;
};

}  // namespace kizu
