#include "error.h"

#include <unistd.h>

#include <cstdarg>
#include <cstdio>

#include "block.h"
#include "execution.h"

namespace cuda_on_cpu {

void fail(const char* format, ...) {
  std::fflush(stdout);
  if (kernel_is_running()) {
    std::fprintf(stderr, "cuda_on_cpu: ERROR block (%u,%u,%u) thread (%u,%u,%u): ", blockIdx.x, blockIdx.y, blockIdx.z,
                 threadIdx.x, threadIdx.y, threadIdx.z);
  } else {
    std::fprintf(stderr, "cuda_on_cpu: ERROR host: ");
  }
  std::va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  _exit(kExitStatus);
}

}  // namespace cuda_on_cpu
