// What the entry points share: one lock for the state of the whole process, and what stands around each call.
#pragma once

#include <functional>

#include "cudart_api.h"

namespace cuda_on_cpu {

// While one lives the calling thread is inside the runtime: see cuda_on_cpu_inside.
class Inside {
 public:
  Inside();
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

// Holds the lock of all state. Device memory that has been opened meanwhile is closed with it.
class Lock {
 public:
  Lock();
  ~Lock();
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
};

// One call of an entry point.
class Call {
 public:
  explicit Call(const char* name);

  // What the call must return instead of doing its work: what a test has asked for, or that a host function calls.
  cudaError_t refusal() const { return refusal_; }
  // Keeps an error for cudaGetLastError.
  static cudaError_t done(cudaError_t error);

 private:
  const Inside inside_;
  const Lock lock_;
  const cudaError_t refusal_;
};

// Counts a call and returns the error that a test has asked for: see control.h.
cudaError_t count_call(const char* name);

// Does the work of the entry point that calls.
template <typename Work>
cudaError_t enter(Work work, const char* name = __builtin_FUNCTION()) {
  const Call call(name);
  return call.done(call.refusal() != cudaSuccess ? call.refusal() : work());
}

// Of an entry point that destroys something: it does so even if a test has asked for an error.
template <typename Work>
cudaError_t enter_to_release(Work work, const char* name = __builtin_FUNCTION()) {
  const Call call(name);
  if (call.refusal() == cudaErrorNotPermitted) return call.done(call.refusal());
  const cudaError_t error = work();
  return call.done(call.refusal() != cudaSuccess ? call.refusal() : error);
}

// Lets the lock go while the program's own code runs, which must make no CUDA call.
void run_host_function(const std::function<void()>& function);
// Waits until one that another thread runs has returned. False if there is none.
bool wait_for_host_function();

// Of the calling thread.
cudaError_t& last_error();

}  // namespace cuda_on_cpu
