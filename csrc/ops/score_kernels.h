// The inner loops of cpu::score, compiled once an instruction set from score_kernels.cpp.
#pragma once

#include <cstddef>

#include "core/simd.h"

namespace kizu::cpu {

struct ScoreKernels {
  // The sum of |a - b| over one block of n <= kScoreBlock elements, in the canonical order. [1] reads float16.
  float (*sum[2])(const void* a, const void* b, std::ptrdiff_t n);
  // The same; and what |a - b| is at each element is written to `map`, added to it, or added and the sum divided.
  float (*sum_and_write[2])(const void* a, const void* b, std::ptrdiff_t n, float* map);
  float (*sum_and_add[2])(const void* a, const void* b, std::ptrdiff_t n, float* map);
  float (*sum_and_divide[2])(const void* a, const void* b, std::ptrdiff_t n, float* map, float divisor);
};

KIZU_EACH_LEVEL(ScoreKernels, score_kernels)

}  // namespace kizu::cpu
