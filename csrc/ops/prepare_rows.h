// The inner loops of cpu::prepare, compiled once an instruction set from prepare_rows.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kizu::cpu {

constexpr int kLanes = 16;  // input rows resized side by side
constexpr int kPrecisionBits = 22;

// Rounds up to whole vectors.
constexpr std::ptrdiff_t padded(std::ptrdiff_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

struct RowKernels {
  // rows[r][i], r < kLanes, i < n  ->  block[i * kLanes + r].
  void (*interleave)(const std::uint8_t* const* rows, std::ptrdiff_t n, std::uint8_t* block);
  // The weighted sums of `taps` pixels of the block for n_out outputs of each channel, one channel after the other;
  // with three channels, `swapped` reverses their order.
  void (*resize_columns)(const std::uint8_t* block, bool swapped, const int* first, const std::int32_t* weights,
                         int taps, int n_out, std::uint8_t* resized);
  void (*resize_columns_of_three)(const std::uint8_t* block, bool swapped, const int* first,
                                  const std::int32_t* weights, int taps, int n_out, std::uint8_t* resized);
  // resized[i * kLanes + r]  ->  rows[r * row_stride + i], i < padded(n).
  void (*deinterleave)(const std::uint8_t* resized, std::ptrdiff_t n, std::uint8_t* rows, std::ptrdiff_t row_stride);
  // out[i] = the weighted sum of `taps` rows, i < n.
  void (*resize_rows)(const std::uint8_t* rows, std::ptrdiff_t row_stride, int taps, const std::int32_t* weights,
                      std::ptrdiff_t n, std::uint8_t* out);
};

namespace baseline {
extern const RowKernels kernels;
}
#ifdef KIZU_X86_LEVELS
namespace avx512 {
extern const RowKernels kernels;
}
#endif

}  // namespace kizu::cpu
