// The inner loops of cpu::smooth_map, compiled once an instruction set from smooth_map_kernels.cpp.
#pragma once

#include <cstddef>

#include "core/simd.h"

namespace kizu::cpu {

constexpr int kMapLanes = 32;  // rows of a map whose columns are resized side by side

struct SmoothMapKernels {
  // out[i] = the sum of weights[k] * in[k * stride + i], k ascending, for i < n.
  void (*combine)(const float* in, std::ptrdiff_t stride, const float* weights, int taps, std::ptrdiff_t n, float* out);
  // out[j * out_stride + i] = in[i * in_stride + j], i < rows, j < columns.
  void (*transpose)(const float* in, std::ptrdiff_t in_stride, int rows, int columns, float* out,
                    std::ptrdiff_t out_stride);
};

KIZU_EACH_LEVEL(SmoothMapKernels, smooth_map_kernels)

}  // namespace kizu::cpu
