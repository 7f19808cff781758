// Compiled once an instruction set, with KIZU_TARGET as the namespace. Everything here is local to this file: an
// inline function of a shared header, compiled for a newer processor, could replace the one that older ones run.
#include "ops/prepare_rows.h"

#ifndef KIZU_TARGET
#define KIZU_TARGET baseline
#endif

namespace kizu::cpu::KIZU_TARGET {
namespace {

using Bytes = std::uint8_t __attribute__((vector_size(kLanes)));

inline void load(const std::uint8_t* from, Bytes& to) { __builtin_memcpy(&to, from, sizeof to); }
inline void store(const Bytes& from, std::uint8_t* to) { __builtin_memcpy(to, &from, sizeof from); }

// a0 b0 a1 b1 ... of the low or the high halves of a and b.
#if defined(__clang__)
#define KIZU_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define KIZU_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Bytes{__VA_ARGS__})
#endif
#define KIZU_ZIP_LOW(a, b) KIZU_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define KIZU_ZIP_HIGH(a, b) KIZU_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)

// Transposes 16x16 bytes: four rounds of zipping row i with row i + 8.
inline void transpose(Bytes (&m)[kLanes]) {
  for (int round = 0; round < 4; ++round) {
    Bytes t[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      t[2 * i] = KIZU_ZIP_LOW(m[i], m[i + 8]);
      t[2 * i + 1] = KIZU_ZIP_HIGH(m[i], m[i + 8]);
    }
    for (int i = 0; i < kLanes; ++i) m[i] = t[i];
  }
}

// Sums of one output's pixels in kLanes places, written as loops over the lanes that compilers turn into vectors as
// wide as the processor's: with AVX-512 one load, one product and one sum a pixel.
#define KIZU_EACH_LANE for (int l = 0; l < kLanes; ++l)

struct Sums {
  std::int32_t lane[kLanes];

  Sums() { KIZU_EACH_LANE lane[l] = 1 << (kPrecisionBits - 1); }
  void add(const std::uint8_t* from, std::int32_t weight) { KIZU_EACH_LANE lane[l] += from[l] * weight; }
  // sum >> 22, at most 255; weights are not negative, so neither is the sum.
  void round_to(std::uint8_t* to) const {
    KIZU_EACH_LANE {
      const std::int32_t value = lane[l] >> kPrecisionBits;
      to[l] = static_cast<std::uint8_t>(value > 255 ? 255 : value);
    }
  }
};

void interleave(const std::uint8_t* const* rows, std::ptrdiff_t n, std::uint8_t* block) {
  std::ptrdiff_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Bytes m[kLanes];
    for (int r = 0; r < kLanes; ++r) load(rows[r] + i, m[r]);
    transpose(m);
    for (int k = 0; k < kLanes; ++k) store(m[k], block + (i + k) * kLanes);
  }
  for (; i < n; ++i)
    for (int r = 0; r < kLanes; ++r) block[i * kLanes + r] = rows[r][i];
}

template <int Channels>
void resize_columns(const std::uint8_t* block, bool swapped, const int* first, const std::int32_t* weights, int taps,
                    int n_out, std::uint8_t* resized) {
  constexpr std::ptrdiff_t step = Channels * kLanes;
  for (std::ptrdiff_t x = 0; x < n_out; ++x, weights += taps) {
    const std::uint8_t* from = block + first[x] * step;
    Sums sums[Channels];
    for (int k = 0; k < taps; ++k, from += step)
      for (int c = 0; c < Channels; ++c) sums[c].add(from + c * kLanes, weights[k]);
    for (int c = 0; c < Channels; ++c)
      sums[c].round_to(resized + ((swapped ? Channels - 1 - c : c) * n_out + x) * kLanes);
  }
}

void deinterleave(const std::uint8_t* resized, std::ptrdiff_t n, std::uint8_t* rows, std::ptrdiff_t row_stride) {
  for (std::ptrdiff_t i = 0; i < n; i += kLanes) {
    Bytes m[kLanes];
    for (int k = 0; k < kLanes; ++k) load(resized + (i + k) * kLanes, m[k]);
    transpose(m);
    for (int r = 0; r < kLanes; ++r) store(m[r], rows + r * row_stride + i);
  }
}

void resize_rows(const std::uint8_t* rows, std::ptrdiff_t row_stride, int taps, const std::int32_t* weights,
                 std::ptrdiff_t n, std::uint8_t* out) {
  std::ptrdiff_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Sums sums;
    for (int k = 0; k < taps; ++k) sums.add(rows + k * row_stride + i, weights[k]);
    sums.round_to(out + i);
  }
  for (; i < n; ++i) {
    std::int32_t sum = 1 << (kPrecisionBits - 1);
    for (int k = 0; k < taps; ++k) sum += rows[k * row_stride + i] * weights[k];
    sum >>= kPrecisionBits;
    out[i] = static_cast<std::uint8_t>(sum > 255 ? 255 : sum);
  }
}

}  // namespace

extern const RowKernels kernels;
const RowKernels kernels = {interleave, resize_columns<1>, resize_columns<3>, deinterleave, resize_rows};

}  // namespace kizu::cpu::KIZU_TARGET
