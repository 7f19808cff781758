// Compiled once an instruction set, with KIZU_LEVEL as the namespace. Everything here is local to this file.
#include "ops/smooth_map_kernels.h"

namespace kizu::cpu::KIZU_LEVEL {
namespace {

void combine(const float* in, std::ptrdiff_t stride, const float* weights, int taps, std::ptrdiff_t n, float* out) {
  std::ptrdiff_t start = 0;
  for (; start + kMapLanes <= n; start += kMapLanes) {
    float sums[kMapLanes] = {};
    for (int k = 0; k < taps; ++k) {
      const float* row = in + k * stride + start;
      for (int i = 0; i < kMapLanes; ++i) sums[i] += weights[k] * row[i];
    }
    for (int i = 0; i < kMapLanes; ++i) out[start + i] = sums[i];
  }
  for (; start < n; ++start) {
    float sum = 0;
    for (int k = 0; k < taps; ++k) sum += weights[k] * in[k * stride + start];
    out[start] = sum;
  }
}

void transpose(const float* in, std::ptrdiff_t in_stride, int rows, int columns, float* out,
               std::ptrdiff_t out_stride) {
  constexpr int kSide = 8;
  for (int top = 0; top < rows; top += kSide)
    for (int left = 0; left < columns; left += kSide) {
      const int bottom = top + kSide < rows ? top + kSide : rows;
      const int right = left + kSide < columns ? left + kSide : columns;
      for (int j = left; j < right; ++j)
        for (int i = top; i < bottom; ++i) out[j * out_stride + i] = in[i * in_stride + j];
    }
}

}  // namespace

extern const SmoothMapKernels smooth_map_kernels{combine, transpose};

}  // namespace kizu::cpu::KIZU_LEVEL
