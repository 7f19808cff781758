// Arithmetic of floats and integers under one name, comparisons, and conversions.
#pragma once

#include <cfenv>
#include <cmath>

#include "integers.h"

namespace ptx {

// Rounds otherwise than to nearest while it lives. Operands must reach the operation through `volatile`.
class RoundingScope {
 public:
  explicit RoundingScope(Rounding rounding) {
    std::fesetround(rounding == Rounding::zero ? FE_TOWARDZERO : rounding == Rounding::down ? FE_DOWNWARD : FE_UPWARD);
  }
  ~RoundingScope() { std::fesetround(FE_TONEAREST); }
  RoundingScope(const RoundingScope&) = delete;
  RoundingScope& operator=(const RoundingScope&) = delete;
};

// operation(values...), rounded so.
template <typename T, Rounding R, typename Operation, typename... Operands>
Bits<T> rounded(Operation operation, Operands... operands) {
  if constexpr (R == Rounding::nearest) {
    return write<T>(static_cast<Value<T>>(operation(read<T>(operands)...)));
  } else {
    static_assert(!is_half<T>, "halves are rounded to nearest alone");
    const RoundingScope scope(R);
    return [&](const volatile auto... values) {
      const volatile auto result = operation(values...);
      return write<T>(result);
    }(read<T>(operands)...);
  }
}

// Defines an arithmetic instruction for all types: wrapping integers, floats, pairs of halves.
#define PTX_ARITHMETIC(name, sign)                                                                       \
  template <typename T, Rounding R = Rounding::nearest>                                                  \
  Bits<T> name##_(Bits<T> a, Bits<T> b) {                                                                \
    if constexpr (is_pair<T>)                                                                            \
      return for_both_halves([](std::uint16_t x, std::uint16_t y) { return name##_<f16>(x, y); }, a, b); \
    else if constexpr (is_float<T>)                                                                      \
      return rounded<T, R>([](auto x, auto y) { return x sign y; }, a, b);                               \
    else                                                                                                 \
      return static_cast<Bits<T>>(static_cast<std::uint64_t>(a) sign static_cast<std::uint64_t>(b));     \
  }
PTX_ARITHMETIC(add, +)
PTX_ARITHMETIC(sub, -)
PTX_ARITHMETIC(mul, *)
#undef PTX_ARITHMETIC

template <typename T, Rounding R = Rounding::nearest>
  requires(!is_integer<T>)
Bits<T> div_(Bits<T> a, Bits<T> b) {
  return rounded<T, R>([](auto x, auto y) { return x / y; }, a, b);
}

template <typename T, Rounding R = Rounding::nearest>
Bits<T> fma_(Bits<T> a, Bits<T> b, Bits<T> c) {
  if constexpr (is_pair<T>) {
    return for_both_halves([](std::uint16_t x, std::uint16_t y, std::uint16_t z) { return fma_<f16>(x, y, z); }, a, b,
                           c);
  } else if constexpr (is_half<T>) {
    // Exact in double, but for bits that cannot decide the rounding to half.
    return float_to_half(static_cast<double>(read<T>(a)) * static_cast<double>(read<T>(b)) +
                         static_cast<double>(read<T>(c)));
  } else {
    return rounded<T, R>([](Value<T> x, Value<T> y, Value<T> z) { return std::fma(x, y, z); }, a, b, c);
  }
}
template <typename T, Rounding R = Rounding::nearest>
Bits<T> mad_(Bits<T> a, Bits<T> b, Bits<T> c) {
  return fma_<T, R>(a, b, c);
}

template <typename T, Rounding R = Rounding::nearest>
Bits<T> sqrt_(Bits<T> a) {
  return rounded<T, R>([](Value<T> x) { return std::sqrt(x); }, a);
}
template <typename T, Rounding R = Rounding::nearest>
Bits<T> rcp_(Bits<T> a) {
  return rounded<T, R>([](Value<T> x) { return 1 / x; }, a);
}

// The canonical NaN, which is what the GPU's min, max and conversions return.
template <typename T>
Bits<T> nan_bits() {
  if constexpr (is_half<T>)
    return 0x7fff;
  else if constexpr (std::is_same_v<T, f32>)
    return 0x7fffffff;
  else
    return 0x7fffffffffffffff;
}

template <typename T>
bool is_nan(Bits<T> a) {
  return read<T>(a) != read<T>(a);
}

// Of two zeros, -0 is the lesser; a NaN yields to a number.
template <typename T, bool Least>
Bits<T> pick_float(Bits<T> a, Bits<T> b) {
  if (is_nan<T>(a) && is_nan<T>(b)) return nan_bits<T>();
  if (is_nan<T>(a)) return b;
  if (is_nan<T>(b)) return a;
  if (read<T>(a) == read<T>(b)) return std::signbit(read<T>(a)) == Least ? a : b;
  return (read<T>(a) < read<T>(b)) == Least ? a : b;
}
template <typename T, bool Least>
Bits<T> pick(Bits<T> a, Bits<T> b) {
  if constexpr (is_pair<T>)
    return for_both_halves([](std::uint16_t x, std::uint16_t y) { return pick_float<f16, Least>(x, y); }, a, b);
  else if constexpr (is_float<T>)
    return pick_float<T, Least>(a, b);
  else
    return (read<T>(a) < read<T>(b)) == Least ? a : b;
}
template <typename T, bool Least>
Bits<T> pick_or_nan(Bits<T> a, Bits<T> b) {
  if constexpr (is_pair<T>)
    return for_both_halves([](std::uint16_t x, std::uint16_t y) { return pick_or_nan<f16, Least>(x, y); }, a, b);
  else
    return is_nan<T>(a) || is_nan<T>(b) ? nan_bits<T>() : pick_float<T, Least>(a, b);
}
template <typename T>
Bits<T> min_(Bits<T> a, Bits<T> b) {
  return pick<T, true>(a, b);
}
template <typename T>
Bits<T> max_(Bits<T> a, Bits<T> b) {
  return pick<T, false>(a, b);
}
template <typename T>
Bits<T> min_NaN_(Bits<T> a, Bits<T> b) {
  return pick_or_nan<T, true>(a, b);
}
template <typename T>
Bits<T> max_NaN_(Bits<T> a, Bits<T> b) {
  return pick_or_nan<T, false>(a, b);
}

template <typename T>
constexpr Bits<T> sign_bits() {
  return is_pair<T> ? Bits<T>(0x80008000) : static_cast<Bits<T>>(Bits<T>{1} << (width<T> - 1));
}
template <typename T>
Bits<T> abs_(Bits<T> a) {
  if constexpr (is_integer<T>)
    return static_cast<Bits<T>>(read<T>(a) < 0 ? 0 - a : a);
  else
    return a & static_cast<Bits<T>>(~sign_bits<T>());
}
template <typename T>
Bits<T> neg_(Bits<T> a) {
  if constexpr (is_integer<T>)
    return static_cast<Bits<T>>(0 - a);
  else
    return a ^ sign_bits<T>();
}
// The second operand's magnitude with the first one's sign.
template <typename T>
Bits<T> copysign_(Bits<T> a, Bits<T> b) {
  return (a & sign_bits<T>()) | abs_<T>(b);
}

// Approximations: here the value nearest to the function's.
#define PTX_FUNCTION(name, expression)                                            \
  template <typename T>                                                           \
  Bits<T> name##_(Bits<T> a) {                                                    \
    if constexpr (is_pair<T>) {                                                   \
      return for_both_halves([](std::uint16_t h) { return name##_<f16>(h); }, a); \
    } else {                                                                      \
      const double x = static_cast<double>(read<T>(a));                           \
      return write<T>(static_cast<Value<T>>(expression));                         \
    }                                                                             \
  }
PTX_FUNCTION(rsqrt, 1 / std::sqrt(x))
PTX_FUNCTION(sin, std::sin(x))
PTX_FUNCTION(cos, std::cos(x))
PTX_FUNCTION(lg2, std::log2(x))
PTX_FUNCTION(ex2, std::exp2(x))
PTX_FUNCTION(tanh, std::tanh(x))
#undef PTX_FUNCTION

// .ftz: a subnormal float is zero of its sign. It means nothing to other types.
template <typename T>
Bits<T> flush(Bits<T> a) {
  if constexpr (std::is_same_v<T, f32>) return (a & 0x7f800000) == 0 ? a & 0x80000000 : a;
  return a;
}

// .sat of floats: to [0, 1], NaN to 0.
template <typename T>
Bits<T> saturate(Bits<T> a) {
  if constexpr (is_pair<T>) {
    return for_both_halves([](std::uint16_t h) { return saturate<f16>(h); }, a);
  } else {
    const Value<T> value = read<T>(a);
    return write<T>(value > 0 ? (value < 1 ? value : 1) : 0);
  }
}

// Comparisons. Those that end in u are also true of unordered operands, that is if one is NaN.
enum class Comparison {
  eq_,
  ne_,
  lt_,
  le_,
  gt_,
  ge_,
  lo_,
  ls_,
  hi_,
  hs_,
  equ_,
  neu_,
  ltu_,
  leu_,
  gtu_,
  geu_,
  num_,
  nan_
};

template <Comparison C, typename Number>
bool compare_numbers(Number a, Number b) {
  const bool unordered = a != a || b != b;
  switch (C) {
    case Comparison::eq_:
      return a == b;
    case Comparison::ne_:
      return a < b || a > b;
    case Comparison::lt_:
    case Comparison::lo_:
      return a < b;
    case Comparison::le_:
    case Comparison::ls_:
      return a <= b;
    case Comparison::gt_:
    case Comparison::hi_:
      return a > b;
    case Comparison::ge_:
    case Comparison::hs_:
      return a >= b;
    case Comparison::equ_:
      return unordered || a == b;
    case Comparison::neu_:
      return a != b;
    case Comparison::ltu_:
      return unordered || a < b;
    case Comparison::leu_:
      return unordered || a <= b;
    case Comparison::gtu_:
      return unordered || a > b;
    case Comparison::geu_:
      return unordered || a >= b;
    case Comparison::num_:
      return !unordered;
    case Comparison::nan_:
      return unordered;
  }
}
// For a pair of halves, bit 0 is about the lower and bit 1 about the upper.
template <typename T, Comparison C>
auto compare(Bits<T> a, Bits<T> b) {
  if constexpr (is_pair<T>) {
    const unsigned both = for_both_halves(
        [](std::uint16_t x, std::uint16_t y) -> unsigned { return compare_numbers<C>(read<f16>(x), read<f16>(y)); }, a,
        b);
    return (both & 1) | (both >> 15 & 2);
  } else {
    return compare_numbers<C>(read<T>(a), read<T>(b));
  }
}

// The result of `set`: one in a float, all ones in an integer.
template <typename To>
Bits<To> truth_bits(bool is_true) {
  if (!is_true) return 0;
  if constexpr (is_float<To>)
    return write<To>(1);
  else
    return static_cast<Bits<To>>(~Bits<To>{0});
}
template <typename To, typename Compared>
Bits<To> truth(unsigned compared) {
  if constexpr (!is_pair<Compared>)
    return truth_bits<To>(compared != 0);
  else if constexpr (is_pair<To>)
    return truth_bits<f16>(compared & 1) | static_cast<Bits<To>>(truth_bits<f16>(compared >> 1 & 1)) << 16;
  else
    return truth_bits<u16>(compared & 1) | static_cast<Bits<To>>(truth_bits<u16>(compared >> 1 & 1)) << 16;
}

// Conversions

template <Rounding R, typename Float>
Float round_to_integer(Float value) {
  switch (R) {
    case Rounding::nearest:
      return std::nearbyint(value);
    case Rounding::zero:
      return std::trunc(value);
    case Rounding::down:
      return std::floor(value);
    case Rounding::up:
      return std::ceil(value);
  }
}

// To the nearest representable number; NaN is 0.
template <typename To, typename Float>
Bits<To> clamp_to_integer(Float whole) {
  using Limits = std::numeric_limits<Value<To>>;
  if (whole != whole) return 0;
  if (whole >= std::ldexp(Float{1}, Limits::digits)) return static_cast<Bits<To>>(Limits::max());
  if (whole < static_cast<Float>(Limits::min())) return static_cast<Bits<To>>(Limits::min());
  return static_cast<Bits<To>>(static_cast<Value<To>>(whole));
}

template <typename To, typename From, bool Saturate>
Bits<To> integer_to_integer(Bits<From> bits) {
  const __int128 value = read<From>(bits);
  if (!Saturate) return static_cast<Bits<To>>(value);
  using Limits = std::numeric_limits<Value<To>>;
  return static_cast<Bits<To>>(std::clamp<__int128>(value, Limits::min(), Limits::max()));
}

template <typename To, Rounding R, typename Number>
Bits<To> number_to_float(Number number) {
  if constexpr (R == Rounding::nearest) {
    if constexpr (is_half<To>)
      return float_to_half(static_cast<std::conditional_t<(sizeof(Number) > 4), double, Number>>(number));
    else
      return write<To>(static_cast<Value<To>>(number));
  } else {
    static_assert(!is_half<To>, "halves are rounded to nearest alone");
    const RoundingScope scope(R);
    const volatile Number operand = number;
    const volatile Value<To> result = static_cast<Value<To>>(operand);
    return write<To>(result);
  }
}

// cvt. `WholeNumber`: the rounding is one to an integral value (.rni, .rzi, .rmi, .rpi).
template <typename To, typename From, Rounding R, bool WholeNumber, bool Saturate>
Bits<To> convert(Bits<From> bits) {
  if constexpr (is_integer<To> && is_integer<From>) {
    return integer_to_integer<To, From, Saturate>(bits);
  } else if constexpr (is_integer<To>) {
    return clamp_to_integer<To>(round_to_integer<R>(read<From>(bits)));
  } else if constexpr (WholeNumber) {
    return number_to_float<To, Rounding::nearest>(round_to_integer<R>(read<From>(bits)));
  } else {
    if constexpr (is_float<From>)
      if (is_nan<From>(bits))
        return Saturate ? 0 : std::is_same_v<To, From> ? static_cast<Bits<To>>(bits) : nan_bits<To>();
    const Bits<To> result = number_to_float<To, R>(read<From>(bits));
    return Saturate ? saturate<To>(result) : result;
  }
}

inline std::uint32_t pack_halves(std::uint32_t high, std::uint32_t low) {
  const std::uint32_t upper = convert<f16, f32, Rounding::nearest, false, false>(high);
  return upper << 16 | convert<f16, f32, Rounding::nearest, false, false>(low);
}

}  // namespace ptx
