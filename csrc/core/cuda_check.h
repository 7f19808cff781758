// Every CUDA call is checked: KIZU_CUDA_CHECK(cudaMalloc(&pointer, bytes)) throws, saying which call failed, where, and
// what CUDA says about it.
#pragma once

#include <cuda_runtime_api.h>

#include <sstream>
#include <stdexcept>

namespace kizu::cuda {

inline void check_call(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // told here, so no later call should tell it again
  std::ostringstream message;
  message << file << ':' << line << ": " << call << ": " << cudaGetErrorString(error) << " (" << cudaGetErrorName(error)
          << ')';
  throw std::runtime_error(message.str());
}

}  // namespace kizu::cuda

#define KIZU_CUDA_CHECK(expression) ::kizu::cuda::check_call((expression), #expression, __FILE__, __LINE__)
