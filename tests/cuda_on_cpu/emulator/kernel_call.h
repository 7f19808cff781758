// A kernel with its arguments, as a launch or a graph's node keeps it. Each route makes its own.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace cuda_on_cpu {

struct Kernel {
  const void* function = nullptr;  // what programs call it
  std::size_t static_shared_bytes = 0;
  unsigned max_threads = 1024;  // of a block; __launch_bounds__ where it is known
};

class KernelCall {
 public:
  virtual ~KernelCall();

  // One thread's share.
  virtual void run_thread() const = 0;
  // Ends the process if an argument points to what a kernel must not touch, as far as is known which are pointers.
  virtual void check_pointers() const = 0;
  // One element an argument, which points to it.
  virtual std::vector<void*> arguments() const = 0;
  // The same kernel with other arguments, given likewise.
  virtual std::shared_ptr<const KernelCall> with_arguments(void** arguments) const = 0;
};

}  // namespace cuda_on_cpu
