// Misuse that a GPU would not report, or report late: say it and end the process with kExitStatus.
#pragma once

namespace cuda_on_cpu {

constexpr int kExitStatus = 86;

// Prints `cuda_on_cpu: ERROR block (..) thread (..): what`, or `cuda_on_cpu: ERROR host: what` outside kernels.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace cuda_on_cpu
