// softplus(x) = log(1 + exp(x)) of float64 by + - * / alone, each rounded by itself (compile with contraction off), so
// that the host and every device give the same bits. Within 1e-15 relative of the true value wherever that is normal.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace kizu {

// 2^k for k from -1022 to 1023.
KIZU_HOST_DEVICE inline double power_of_two(int k) {
  const std::uint64_t bits = static_cast<std::uint64_t>(k + 1023) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return power;
}

// exp(x) for x <= 0; NaN for NaN.
KIZU_HOST_DEVICE inline double exp_of_nonpositive(double x) {
  constexpr double kLog2E = 0x1.71547652b82fep+0;
  constexpr double kLn2High = 0x1.62e42fee00000p-1;  // its last 20 bits are 0: exact times any k here
  constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  if (!(x >= -746)) return x < 0 ? 0 : x;
  const int k = static_cast<int>(x * kLog2E - 0.5);  // to nearest, since x <= 0
  const double r = (x - k * kLn2High) - k * kLn2Low;
  // Taylor's series; |r| <= 0.35
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = 1 + (r + r * r * p);
  const int half = k / 2;  // in two steps, of which the second alone may round (k is -1077 at least)
  return p * power_of_two(half) * power_of_two(k - half);
}

KIZU_HOST_DEVICE inline double softplus(double x) {
  if (x != x) return x;
  const double e = exp_of_nonpositive(x < 0 ? x : -x);
  if (x < -40) return e;  // what follows would round a subnormal twice
  // log(1 + e) = 2 atanh(s), s <= 1/3
  const double s = e / (2 + e), square = s * s;
  double p = 1.0 / 35;
  for (int n = 33; n > 1; n -= 2) p = p * square + 1.0 / n;
  const double log1p = 2 * s + 2 * s * square * p;
  return x < 0 ? log1p : x + log1p;
}

}  // namespace kizu
