// Subnormal numbers are kept, whatever mode the calling thread is in: other libraries of a process may have told its
// processor to flush them to zero, and then sums would depend on who asked for them.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#endif

namespace kizu {

class KeepDenormals {
 public:
#if defined(__x86_64__)
  KeepDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~0x8040u); }  // flush to zero, denormals are zero
  ~KeepDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  KeepDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ & ~(std::uint64_t{1} << 24)));
  }
  ~KeepDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  std::uint64_t before_;
#else
  KeepDenormals() {}
#endif
};

}  // namespace kizu
