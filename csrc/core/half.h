// float <-> IEEE half precision, by bit operations: the same on every processor and device. Where a processor has an
// instruction, it gives these bits. The functions are static, so that each instruction-set level has its own.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace kizu {

// Rounds to nearest, ties to even; from 65520 on infinite; a NaN stays one.
[[maybe_unused]] KIZU_HOST_DEVICE static inline std::uint16_t float_to_half(float value) {
  std::uint32_t x;
  memcpy(&x, &value, sizeof x);
  const std::uint32_t sign = (x >> 16) & 0x8000u;
  x &= 0x7fffffffu;
  std::uint32_t half;
  if (x > 0x7f800000u) {
    half = 0x7e00u | ((x >> 13) & 0x3ffu);
  } else if (x >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (x >= 0x38800000u) {
    half = ((x + 0xfffu + ((x >> 13) & 1u)) >> 13) - (112u << 10);
  } else if (x > 0x33000000u) {  // more than 2^-25: subnormal, in units of 2^-24
    const std::uint32_t shift = 126u - (x >> 23), mantissa = (x & 0x7fffffu) | 0x800000u;
    const std::uint32_t whole = mantissa >> shift, rest = mantissa & ((1u << shift) - 1u), tie = 1u << (shift - 1u);
    half = whole + (rest > tie || (rest == tie && (whole & 1u) != 0u) ? 1u : 0u);
  } else {
    half = 0u;
  }
  return static_cast<std::uint16_t>(sign | half);
}

[[maybe_unused]] KIZU_HOST_DEVICE static inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  std::uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu, x;
  if (exponent == 0x1fu) {
    x = 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0u) {
    x = ((exponent + 112u) << 23) | (mantissa << 13);
  } else if (mantissa != 0u) {  // subnormal: shift until the leading bit is the hidden one
    for (exponent = 113u; (mantissa & 0x400u) == 0u; --exponent) mantissa <<= 1;
    x = (exponent << 23) | ((mantissa & 0x3ffu) << 13);
  } else {
    x = 0u;
  }
  x |= sign;
  float value;
  memcpy(&value, &x, sizeof value);
  return value;
}

}  // namespace kizu
