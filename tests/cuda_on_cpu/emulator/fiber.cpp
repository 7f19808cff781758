#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>

#include "error.h"
#include "sanitizers.h"

// Saves the registers that a call preserves and the stack pointer, then restores those of the other side.
extern "C" void cuda_on_cpu_switch(void** save_stack_pointer, void* stack_pointer);

#if defined(__x86_64__)
asm(R"(
.text
.globl cuda_on_cpu_switch
.hidden cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl cuda_on_cpu_switch
.hidden cuda_on_cpu_switch
.type cuda_on_cpu_switch, %function
cuda_on_cpu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
#else
#error "cuda_on_cpu: the context switch is written for x86-64 and aarch64"
#endif

namespace cuda_on_cpu {

namespace {

constexpr std::size_t kGuardBytes = 4096;
constexpr unsigned kWithoutOrder = 1;  // __tsan_switch_to_fiber_no_sync

Fiber* running_fiber = nullptr;
// The fiber that the last switch left, for ASan, which tells its stack's bounds only on the other side.
Fiber* left_fiber = nullptr;

// A stack whose first switch "returns" into `entry`, as the assembly above lays out registers.
void* initial_stack_pointer(char* stack_end, void (*entry)()) {
#if defined(__x86_64__)
  constexpr std::size_t kRegisters = 6;
  auto** top = reinterpret_cast<void**>(stack_end);
  *--top = nullptr;  // where a return address would be: keeps the ABI's alignment at entry
  *--top = reinterpret_cast<void*>(entry);
  top -= kRegisters;
  std::memset(top, 0, kRegisters * sizeof(void*));
  return top;
#else
  constexpr std::size_t kFrameBytes = 160;
  constexpr std::size_t kLinkRegister = 11;
  char* top = stack_end - kFrameBytes;
  std::memset(top, 0, kFrameBytes);
  reinterpret_cast<void**>(top)[kLinkRegister] = reinterpret_cast<void*>(entry);
  return top;
#endif
}

}  // namespace

Fiber::Fiber() = default;

Fiber::Fiber(void (*entry)(), std::size_t stack_bytes) : stack_bytes_(stack_bytes) {
  void* mapping = mmap(nullptr, stack_bytes + kGuardBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) fail("no memory for the stack of one more CUDA thread");
  mprotect(mapping, kGuardBytes, PROT_NONE);
  char* bottom = static_cast<char*>(mapping) + kGuardBytes;
  stack_bottom_ = bottom;
  stack_pointer_ = initial_stack_pointer(bottom + stack_bytes, entry);
  if (tsan::active()) tsan_fiber_ = __tsan_create_fiber(0);
}

void Fiber::adopt_thread() {
  running_fiber = this;
  if (tsan::active()) tsan_fiber_ = __tsan_get_current_fiber();
}

void Fiber::switch_to() {
  Fiber* const from = running_fiber;
  left_fiber = from;
  running_fiber = this;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&from->fake_stack_, stack_bottom_, stack_bytes_);
  if (tsan::active()) __tsan_switch_to_fiber(tsan_fiber_, kWithoutOrder);
  cuda_on_cpu_switch(&from->stack_pointer_, stack_pointer_);
  if (__sanitizer_finish_switch_fiber) {
    Fiber& left = *left_fiber;
    __sanitizer_finish_switch_fiber(from->fake_stack_, &left.stack_bottom_, &left.stack_bytes_);
  }
}

void Fiber::entered() {
  if (!__sanitizer_finish_switch_fiber) return;
  Fiber& left = *left_fiber;
  __sanitizer_finish_switch_fiber(nullptr, &left.stack_bottom_, &left.stack_bytes_);
}

bool Fiber::overflowed(const void* address) const {
  const auto distance = static_cast<const char*>(stack_bottom_) - static_cast<const char*>(address);
  return stack_bottom_ && distance > 0 && distance <= static_cast<std::ptrdiff_t>(kGuardBytes);
}

Fiber* Fiber::running() { return running_fiber; }

}  // namespace cuda_on_cpu
