// The inner loops of cpu::prepare, compiled once a level from prepare_kernels.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/simd.h"

namespace kizu::cpu {

constexpr int kBlock = 16;  // input rows resized side by side

// Rounds up to whole vectors.
constexpr std::ptrdiff_t padded(std::ptrdiff_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// Outputs of some columns: number x reads `taps` inputs, of which the first is first[x] - first[0] columns into the
// block.
struct Columns {
  const int* first;
  const std::uint32_t* weights;  // (count, taps)
  int taps, count;
};

// For samples of type T: uint8_t or uint16_t.
template <typename T>
struct SampleKernels {
  // rows[r][i], r < kBlock, i < n  ->  block[i * step + r]. What lies `ahead` samples further is fetched into the
  // cache.
  void (*interleave)(const T* const* rows, std::ptrdiff_t n, std::ptrdiff_t ahead, T* block, std::ptrdiff_t step);
  // The weighted sums of pixels of one or three channels, a channel after the other: resized[(c * count + x) * kBlock].
  // With `swapped` the order of the channels is reversed.
  void (*resize_columns)(const T* block, const Columns& columns, bool swapped, T* resized);
  void (*resize_columns_of_three)(const T* block, const Columns& columns, bool swapped, T* resized);
  // resized[i * kBlock + r]  ->  rows[r * stride + i], i < padded(n).
  void (*deinterleave)(const T* resized, std::ptrdiff_t n, T* rows, std::ptrdiff_t stride);
  // out[i] = the weighted sum of `taps` rows, i < n.
  void (*resize_rows)(const T* rows, std::ptrdiff_t stride, int taps, const std::uint32_t* weights, std::ptrdiff_t n,
                      T* out);
  // Bilinear demosaicking of n samples of a row, given its neighbours; sample -1 and n of each must be there. `own` is
  // the row's colour beside green, and `own_first` says that sample 0 is of it; `other` is the third colour.
  void (*demosaic)(const T* above, const T* row, const T* below, std::ptrdiff_t n, bool own_first, T* own, T* green,
                   T* other);
  // The maximum and sum of three planes.
  void (*pool)(const T* planes, std::ptrdiff_t n, T* largest, std::uint32_t* sum);
};

struct PrepareKernels {
  SampleKernels<std::uint8_t> bytes;
  SampleKernels<std::uint16_t> words;
  // float(v * scale + offset) in double.
  void (*line)(const std::uint8_t* values, std::ptrdiff_t n, double scale, double offset, float* out);
  void (*line_of_sum)(const std::uint32_t* values, std::ptrdiff_t n, double scale, double offset, float* out);
  // fl(fl(v * scale) + offset), of integers less than 2^24.
  void (*affine)(const std::uint16_t* values, std::ptrdiff_t n, float scale, float offset, float* out);
  void (*affine_of_sum)(const std::uint32_t* values, std::ptrdiff_t n, float scale, float offset, float* out);
  void (*to_half)(const float* values, std::ptrdiff_t n, std::uint16_t* out);
};

KIZU_EACH_LEVEL(PrepareKernels, prepare_kernels)

}  // namespace kizu::cpu
