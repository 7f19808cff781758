#include "runtime.h"

#include <condition_variable>
#include <mutex>
#include <utility>

#include "control.h"
#include "memory.h"

namespace cuda_on_cpu {

namespace {

// Never destroyed, like all state: static destructors of the program may still make calls.
std::mutex& lock() {
  static auto& result = *new std::mutex;
  return result;
}

std::condition_variable& host_function_returned() {
  static auto& result = *new std::condition_variable;
  return result;
}

int host_functions_running = 0;
thread_local int insides = 0;
thread_local bool in_host_function = false;

}  // namespace

Inside::Inside() { ++insides; }
Inside::~Inside() { --insides; }

Lock::Lock() { lock().lock(); }

Lock::~Lock() {
  close_device_memory();
  lock().unlock();
}

Call::Call(const char* name) : refusal_(in_host_function ? cudaErrorNotPermitted : count_call(name)) {}

cudaError_t Call::done(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error() = error;
  return error;
}

void run_host_function(const std::function<void()>& function) {
  close_device_memory();
  ++host_functions_running;
  const int insides_before = std::exchange(insides, 0);
  in_host_function = true;
  lock().unlock();
  function();
  lock().lock();
  in_host_function = false;
  insides = insides_before;
  --host_functions_running;
  host_function_returned().notify_all();
}

bool wait_for_host_function() {
  if (!host_functions_running) return false;
  close_device_memory();
  std::unique_lock held(lock(), std::adopt_lock);
  host_function_returned().wait(held);
  held.release();
  return true;
}

cudaError_t& last_error() {
  static thread_local cudaError_t result = cudaSuccess;
  return result;
}

}  // namespace cuda_on_cpu

int cuda_on_cpu_inside() { return cuda_on_cpu::insides > 0; }
