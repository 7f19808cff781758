// A fiber: a stack and a place in a program, between which an operating-system thread switches by hand.
#pragma once

#include <cstddef>

namespace cuda_on_cpu {

class Fiber {
 public:
  // The operating-system thread that calls, seen as a fiber.
  Fiber();
  // A fiber that runs `entry` when first switched to. `entry` must not return.
  Fiber(void (*entry)(), std::size_t stack_bytes);
  // Fibers live as long as the process: the sanitizers remember them.
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves the running fiber for this one; returns when somebody switches back. No order between the two is implied.
  void switch_to();
  // Must be the first call of `entry`.
  static void entered();
  // Makes the calling operating-system thread the running fiber.
  void adopt_thread();
  // Whether the address lies in the guard page below this fiber's stack.
  bool overflowed(const void* address) const;

  static Fiber* running();

 private:
  void* stack_pointer_ = nullptr;
  const void* stack_bottom_ = nullptr;
  std::size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // ASan's
  void* tsan_fiber_ = nullptr;
};

}  // namespace cuda_on_cpu
