// ASan's and TSan's interfaces, if the process runs under one of them. The runtime itself is never instrumented: it
// tells the sanitizers about fibers, about memory, and about what orders one CUDA thread before another.
#pragma once

#include <cstddef>

#define CUDA_ON_CPU_WEAK extern "C" __attribute__((weak))
CUDA_ON_CPU_WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size);
CUDA_ON_CPU_WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
CUDA_ON_CPU_WEAK void __asan_poison_memory_region(const volatile void* address, std::size_t size);
CUDA_ON_CPU_WEAK void __asan_unpoison_memory_region(const volatile void* address, std::size_t size);
CUDA_ON_CPU_WEAK void* __tsan_get_current_fiber();
CUDA_ON_CPU_WEAK void* __tsan_create_fiber(unsigned flags);
CUDA_ON_CPU_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
CUDA_ON_CPU_WEAK void __tsan_acquire(void* address);
CUDA_ON_CPU_WEAK void __tsan_release(void* address);
#undef CUDA_ON_CPU_WEAK

namespace cuda_on_cpu {

namespace asan {

inline void poison(const void* address, std::size_t bytes) {
  if (__asan_poison_memory_region) __asan_poison_memory_region(address, bytes);
}
inline void unpoison(const void* address, std::size_t bytes) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(address, bytes);
}

}  // namespace asan

namespace tsan {

// A place that orders threads: what happened before a release happens before what follows a later acquire.
struct alignas(8) Order {
  char bytes[8];
};

inline bool active() { return __tsan_create_fiber != nullptr; }
inline void acquire(Order& order) {
  if (__tsan_acquire) __tsan_acquire(&order);
}
inline void release(Order& order) {
  if (__tsan_release) __tsan_release(&order);
}

}  // namespace tsan

}  // namespace cuda_on_cpu
