// Lets g++ compile a .cu file as C++20: g++ -x c++ -include cuda_on_cpu.h -Wno-unknown-pragmas. Types come from
// NVIDIA's own headers; the device built-ins and the runtime library are the emulator's.
#pragma once

#define CUDA_ON_CPU 1

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>  // and not <cmath>: device code names these functions without std

#include "atomics.h"
#include "execution.h"
#include "half_arithmetic.h"
#include "launch.h"
#include "scalars.h"
#include "synchronization.h"

#undef __launch_bounds__
#define __launch_bounds__(...)

// A block's variables are not a thread's, and C++ has no word for that.
#undef __shared__
#define __shared__ _Pragma("GCC error \"declare shared memory with KIZU_SHARED or KIZU_DYNAMIC_SHARED\"")

#define KIZU_SHARED(type, name, ...)                                                        \
  type(&name) __VA_ARGS__ = *static_cast<type(*) __VA_ARGS__>(cuda_on_cpu::shared_variable( \
      []() -> const void* {                                                                 \
        static const char key = 0;                                                          \
        return &key;                                                                        \
      }(),                                                                                  \
      sizeof(type __VA_ARGS__)))
#define KIZU_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(cuda_on_cpu::dynamic_shared())

#define cudaLaunchKernelEx cuda_on_cpu::launch
#define cudaLaunchKernelExC cuda_on_cpu::launch_from_array

// NVIDIA's header has this for nvcc alone.
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
