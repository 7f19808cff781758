// For programs of checks without cases, each of one file: EXPECT, and how much the program allocates.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNT_ALLOCATIONS 0  // these have an operator new of their own
#else
#define COUNT_ALLOCATIONS 1
#endif

// Whether emulated CUDA is at work on this thread: it stands for the driver, whose allocations do not count.
extern "C" [[gnu::weak]] int cuda_on_cpu_inside();

namespace kizu::tests {

inline std::atomic<long> allocations{0};
inline std::atomic<int> checks{0}, failures{0};

inline void expect(bool held, const char* what, const char* file, int line) {
  ++checks;
  if (held) return;
  ++failures;
  std::printf("%s:%d: %s\n", file, line, what);
}
#define EXPECT(condition) ::kizu::tests::expect((condition), #condition, __FILE__, __LINE__)

inline int summary() {
  std::printf("%d checks, %d failures\n", checks.load(), failures.load());
  return failures ? 1 : 0;
}

}  // namespace kizu::tests

#if COUNT_ALLOCATIONS
[[gnu::noinline]] void* operator new(std::size_t size) {  // inlined, g++ takes free for a mistake
  if (!cuda_on_cpu_inside || !cuda_on_cpu_inside()) kizu::tests::allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
#endif
