// Instructions on integers and bits. Arithmetic wraps around.
#pragma once

#include <algorithm>
#include <limits>

#include "types.h"

namespace ptx {

// Twice as wide as T, for products.
template <typename T>
using Wide = std::conditional_t<
    std::is_signed_v<Value<T>>,
    std::conditional_t<width<T> == 16, std::int32_t, std::conditional_t<width<T> == 32, std::int64_t, __int128>>,
    std::conditional_t<width<T> == 16, std::uint32_t,
                       std::conditional_t<width<T> == 32, std::uint64_t, unsigned __int128>>>;

template <typename T>
constexpr bool is_integer = !is_float<T> && !is_pair<T> && !std::is_same_v<T, pred>;

template <typename T>
Wide<T> product(Bits<T> a, Bits<T> b) {
  return static_cast<Wide<T>>(read<T>(a)) * static_cast<Wide<T>>(read<T>(b));
}

template <typename T>
Bits<T> mul_lo_(Bits<T> a, Bits<T> b) {
  return static_cast<Bits<T>>(static_cast<std::uint64_t>(a) * b);
}
template <typename T>
Bits<T> mul_hi_(Bits<T> a, Bits<T> b) {
  return static_cast<Bits<T>>(product<T>(a, b) >> width<T>);
}
template <typename T>
auto mul_wide_(Bits<T> a, Bits<T> b) {
  return static_cast<std::make_unsigned_t<Wide<T>>>(product<T>(a, b));
}
template <typename T>
Bits<T> mad_lo_(Bits<T> a, Bits<T> b, Bits<T> c) {
  return static_cast<Bits<T>>(static_cast<std::uint64_t>(a) * b + c);
}
template <typename T>
Bits<T> mad_hi_(Bits<T> a, Bits<T> b, Bits<T> c) {
  return static_cast<Bits<T>>(mul_hi_<T>(a, b) + c);
}
template <typename T>
auto mad_wide_(Bits<T> a, Bits<T> b, std::make_unsigned_t<Wide<T>> c) {
  return static_cast<std::make_unsigned_t<Wide<T>>>(mul_wide_<T>(a, b) + c);
}

// The low 24 bits as a number of type T.
template <typename T>
Bits<T> low24(Bits<T> a) {
  return std::is_signed_v<Value<T>> ? static_cast<Bits<T>>(static_cast<std::int32_t>(a << 8) >> 8) : a & 0xffffff;
}
template <typename T>
Bits<T> mul24_lo_(Bits<T> a, Bits<T> b) {
  return mul_lo_<T>(low24<T>(a), low24<T>(b));
}
template <typename T>
Bits<T> mad24_lo_(Bits<T> a, Bits<T> b, Bits<T> c) {
  return mul24_lo_<T>(a, b) + c;
}

template <typename T>
Bits<T> sad_(Bits<T> a, Bits<T> b, Bits<T> c) {
  return static_cast<Bits<T>>((read<T>(a) > read<T>(b) ? a - b : b - a) + c);
}

// Saturating, for s32 alone.
template <typename T>
Bits<T> clamp_to_type(std::int64_t value) {
  using Limits = std::numeric_limits<Value<T>>;
  return static_cast<Bits<T>>(std::clamp<std::int64_t>(value, Limits::min(), Limits::max()));
}
template <typename T>
Bits<T> add_saturated(Bits<T> a, Bits<T> b) {
  static_assert(std::is_same_v<T, s32>, "add.sat is covered for s32");
  return clamp_to_type<T>(std::int64_t{read<T>(a)} + read<T>(b));
}
template <typename T>
Bits<T> sub_saturated(Bits<T> a, Bits<T> b) {
  static_assert(std::is_same_v<T, s32>, "sub.sat is covered for s32");
  return clamp_to_type<T>(std::int64_t{read<T>(a)} - read<T>(b));
}

// PTX leaves a division by zero open; the GPU gives all ones.
template <typename T>
  requires is_integer<T>
Bits<T> div_(Bits<T> a, Bits<T> b) {
  if (b == 0) return static_cast<Bits<T>>(~Bits<T>{0});
  if (std::is_signed_v<Value<T>> && b == static_cast<Bits<T>>(-1)) return static_cast<Bits<T>>(0 - a);
  return static_cast<Bits<T>>(read<T>(a) / read<T>(b));
}
template <typename T>
Bits<T> rem_(Bits<T> a, Bits<T> b) {
  if (b == 0) return a;
  if (std::is_signed_v<Value<T>> && b == static_cast<Bits<T>>(-1)) return 0;
  return static_cast<Bits<T>>(read<T>(a) % read<T>(b));
}

template <typename T>
Bits<T> and_(Bits<T> a, Bits<T> b) {
  return a & b;
}
template <typename T>
Bits<T> or_(Bits<T> a, Bits<T> b) {
  return a | b;
}
template <typename T>
Bits<T> xor_(Bits<T> a, Bits<T> b) {
  return a ^ b;
}
template <typename T>
Bits<T> not_(Bits<T> a) {
  if constexpr (std::is_same_v<T, pred>)
    return !a;
  else
    return static_cast<Bits<T>>(~a);
}
template <typename T>
Bits<T> cnot_(Bits<T> a) {
  return a == 0;
}

// Shifts by the width or more give what shifting bit by bit would.
template <typename T>
Bits<T> shl_(Bits<T> a, std::uint32_t count) {
  return count >= width<T> ? 0 : static_cast<Bits<T>>(static_cast<std::uint64_t>(a) << count);
}
template <typename T>
Bits<T> shr_(Bits<T> a, std::uint32_t count) {
  const int within = static_cast<int>(std::min<std::uint32_t>(count, width<T> - 1));
  const auto shifted = static_cast<Bits<T>>(read<T>(a) >> within);
  return count < width<T> ? shifted : static_cast<Bits<T>>(shifted >> 1 | (std::is_signed_v<Value<T>> ? shifted : 0));
}

template <typename T>
Bits<T> shf_l(Bits<T> low, Bits<T> high, std::uint32_t count) {
  const std::uint64_t both = std::uint64_t{high} << 32 | low;
  return count >= 32 ? low : static_cast<Bits<T>>(both << count >> 32);
}
template <typename T>
Bits<T> shf_r(Bits<T> low, Bits<T> high, std::uint32_t count) {
  return static_cast<Bits<T>>((std::uint64_t{high} << 32 | low) >> count);
}
template <typename T>
Bits<T> shf_l_wrap_(Bits<T> low, Bits<T> high, std::uint32_t count) {
  return shf_l<T>(low, high, count & 31);
}
template <typename T>
Bits<T> shf_l_clamp_(Bits<T> low, Bits<T> high, std::uint32_t count) {
  return shf_l<T>(low, high, std::min(count, 32u));
}
template <typename T>
Bits<T> shf_r_wrap_(Bits<T> low, Bits<T> high, std::uint32_t count) {
  return shf_r<T>(low, high, count & 31);
}
template <typename T>
Bits<T> shf_r_clamp_(Bits<T> low, Bits<T> high, std::uint32_t count) {
  return shf_r<T>(low, high, std::min(count, 32u));
}

template <typename T>
Bits<T> bfe_(Bits<T> a, std::uint32_t start, std::uint32_t length) {
  start &= 0xff;
  length &= 0xff;
  if (length == 0) return 0;
  const unsigned last = std::min<unsigned>(start + length - 1, width<T> - 1);
  const Bits<T> sign = std::is_signed_v<Value<T>> ? a >> last & 1 : 0;
  Bits<T> result = 0;
  for (unsigned i = 0; i < width<T>; ++i) {
    const bool inside = i < length && start + i < width<T>;
    result |= (inside ? a >> (start + i) & 1 : sign) << i;
  }
  return result;
}
template <typename T>
Bits<T> bfi_(Bits<T> field, Bits<T> into, std::uint32_t start, std::uint32_t length) {
  start &= 0xff;
  length &= 0xff;
  Bits<T> result = into;
  for (unsigned i = 0; i < length && start + i < width<T>; ++i) {
    const Bits<T> bit = Bits<T>{1} << (start + i);
    result = field >> i & 1 ? result | bit : result & ~bit;
  }
  return result;
}

// The place of the highest bit that differs from the sign; all ones if there is none.
template <typename T>
std::uint32_t bfind_(Bits<T> a) {
  if (std::is_signed_v<Value<T>> && read<T>(a) < 0) a = ~a;
  return a == 0 ? ~0u : static_cast<std::uint32_t>(width<T> - 1 - std::countl_zero(a));
}
template <typename T>
std::uint32_t bfind_shiftamt_(Bits<T> a) {
  const std::uint32_t place = bfind_<T>(a);
  return place == ~0u ? place : width<T> - 1 - place;
}
template <typename T>
Bits<T> brev_(Bits<T> a) {
  Bits<T> result = 0;
  for (int i = 0; i < width<T>; ++i) result |= (a >> i & 1) << (width<T> - 1 - i);
  return result;
}
template <typename T>
std::uint32_t popc_(Bits<T> a) {
  return static_cast<std::uint32_t>(std::popcount(a));
}
template <typename T>
std::uint32_t clz_(Bits<T> a) {
  return static_cast<std::uint32_t>(std::countl_zero(a));
}

// Each nibble of the selector picks one of eight bytes, or, with its highest bit, that byte's sign.
template <typename T>
Bits<T> prmt_(Bits<T> a, Bits<T> b, std::uint32_t selector) {
  const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
  Bits<T> result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> 4 * i & 15;
    const auto byte = static_cast<std::int8_t>(bytes >> 8 * (nibble & 7));
    const auto picked = static_cast<std::uint8_t>(nibble & 8 ? byte >> 7 : byte);
    result |= Bits<T>{picked} << 8 * i;
  }
  return result;
}
// Bit i of the table is the result where a, b and c spell i.
template <typename T>
Bits<T> lop3_(Bits<T> a, Bits<T> b, Bits<T> c, std::uint32_t table) {
  Bits<T> result = 0;
  for (unsigned i = 0; i < 8; ++i)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}
template <typename T>
Bits<T> szext_wrap_(Bits<T> a, std::uint32_t bits) {
  return bfe_<T>(a, 0, bits & 31);
}
template <typename T>
Bits<T> szext_clamp_(Bits<T> a, std::uint32_t bits) {
  return bfe_<T>(a, 0, std::min(bits, 32u));
}

template <typename T>
Bits<T> selp_(Bits<T> a, Bits<T> b, bool predicate) {
  return predicate ? a : b;
}

// Dot products of four bytes, or of two 16-bit numbers with two bytes of one half of b.
template <typename A, typename B>
std::uint32_t dp4a_(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  using ByteA = std::conditional_t<std::is_same_v<A, s32>, std::int8_t, std::uint8_t>;
  using ByteB = std::conditional_t<std::is_same_v<B, s32>, std::int8_t, std::uint8_t>;
  for (int i = 0; i < 4; ++i)
    c += static_cast<std::uint32_t>(static_cast<ByteA>(a >> 8 * i) * static_cast<ByteB>(b >> 8 * i));
  return c;
}
template <typename A, typename B, int Half>
std::uint32_t dp2a_(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  using WordA = std::conditional_t<std::is_same_v<A, s32>, std::int16_t, std::uint16_t>;
  using ByteB = std::conditional_t<std::is_same_v<B, s32>, std::int8_t, std::uint8_t>;
  for (int i = 0; i < 2; ++i)
    c += static_cast<std::uint32_t>(static_cast<WordA>(a >> 16 * i) * static_cast<ByteB>(b >> 8 * (i + 2 * Half)));
  return c;
}

}  // namespace ptx
