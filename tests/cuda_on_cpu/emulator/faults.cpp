#include "faults.h"

#include <signal.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>

#include "block.h"
#include "error.h"
#include "fiber.h"
#include "memory.h"
#include "options.h"

namespace cuda_on_cpu {

namespace {

struct sigaction before;

// Says in what relation the address stands to the allocation whose pages it hit.
void report(const Allocation& a, const char* address) {
  if (a.kind == MemoryKind::freed)
    fail("use of memory that was freed (%zu bytes, offset %td)", a.bytes, address - a.begin);
  if (address >= a.begin && address < a.end())
    fail("host code touches device memory (offset %td of an allocation of %zu bytes)", address - a.begin, a.bytes);
  if (address < a.begin)
    fail("out-of-bounds access: %td bytes before an allocation of %zu bytes", a.begin - address, a.bytes);
  fail("out-of-bounds access: %td bytes past the end of an allocation of %zu bytes", address - a.end(), a.bytes);
}

void on_fault(int signal, siginfo_t* info, void* context) {
  const char* address = static_cast<const char*>(info->si_addr);
  if (const Allocation* a = find_allocation(address)) report(*a, address);
  if (kernel_is_running()) {
    const Fiber* fiber = Fiber::running();
    if (fiber && fiber->overflowed(address))
      fail("the thread's stack of %zu KiB overflowed (CUDA_ON_CPU_STACK_KIB)", options().stack_bytes >> 10);
    fail("access to %p, which no allocation holds", info->si_addr);
  }
  if (before.sa_flags & SA_SIGINFO && before.sa_sigaction) return before.sa_sigaction(signal, info, context);
  if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
  ::signal(signal, SIG_DFL);  // the access is tried again, and faults
}

}  // namespace

void catch_faults() {
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    return sigaction(SIGSEGV, &action, &before) == 0;
  }();
  (void)installed;
}

void prepare_fault_stack() {
  constexpr std::size_t kBytes = 64 << 10;
  static thread_local bool prepared = false;
  if (prepared) return;
  prepared = true;
  stack_t present = {};
  if (sigaltstack(nullptr, &present) == 0 && !(present.ss_flags & SS_DISABLE)) return;
  stack_t stack = {};
  stack.ss_sp = new char[kBytes];  // for as long as the thread may fault
  stack.ss_size = kBytes;
  sigaltstack(&stack, nullptr);
}

}  // namespace cuda_on_cpu
