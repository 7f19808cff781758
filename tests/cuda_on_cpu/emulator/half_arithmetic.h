// The half-precision functions that NVIDIA's header keeps from host compilers.
#pragma once

#include <cuda_fp16.h>

#include <cmath>

#include "scalars.h"

// The product of two halves is exact in double, and so is the sum up to bits that cannot decide the rounding to half.
inline __half __hfma(__half a, __half b, __half c) {
  const double product = static_cast<double>(__half2float(a)) * static_cast<double>(__half2float(b));
  return __double2half(product + static_cast<double>(__half2float(c)));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)),
                        __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
inline __half hsqrt(__half a) { return __float2half_rn(std::sqrt(__half2float(a))); }
inline __half hrcp(__half a) { return __float2half_rn(1 / __half2float(a)); }
inline int __half2int_rn(__half a) { return __float2int_rn(__half2float(a)); }
inline unsigned __half2uint_rn(__half a) { return __float2uint_rn(__half2float(a)); }
