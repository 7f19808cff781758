// PTX's types. A register holds bits; a type says how to read them as a value.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace ptx {

// What a register holds before it is written: nothing that a correct kernel can use.
constexpr std::uint64_t kUnset = 0xcdcdcdcdcdcdcdcd;

template <typename Value, typename Bits>
struct Type {
  using value = Value;
  using bits = Bits;
};

struct pred : Type<bool, bool> {};
struct b8 : Type<std::uint8_t, std::uint8_t> {};
struct b16 : Type<std::uint16_t, std::uint16_t> {};
struct b32 : Type<std::uint32_t, std::uint32_t> {};
struct b64 : Type<std::uint64_t, std::uint64_t> {};
struct u8 : b8 {};
struct u16 : b16 {};
struct u32 : b32 {};
struct u64 : b64 {};
struct s8 : Type<std::int8_t, std::uint8_t> {};
struct s16 : Type<std::int16_t, std::uint16_t> {};
struct s32 : Type<std::int32_t, std::uint32_t> {};
struct s64 : Type<std::int64_t, std::uint64_t> {};
struct f32 : Type<float, std::uint32_t> {};
struct f64 : Type<double, std::uint64_t> {};
// Half precision is computed in float: the sum, the product and the quotient of two halves, rounded to float and then
// to half, are what one rounding gives.
struct f16 : Type<float, std::uint16_t> {};
struct f16x2 : Type<void, std::uint32_t> {};

template <typename T>
using Value = typename T::value;
template <typename T>
using Bits = typename T::bits;

template <typename T>
constexpr bool is_half = std::is_same_v<T, f16>;
template <typename T>
constexpr bool is_pair = std::is_same_v<T, f16x2>;
template <typename T>
constexpr bool is_float = std::is_same_v<T, f32> || std::is_same_v<T, f64> || is_half<T>;
template <typename T>
constexpr int width = 8 * sizeof(Bits<T>);

enum class Rounding { nearest, zero, down, up };

inline float half_to_float(std::uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
template <typename Float>
std::uint16_t float_to_half(Float value) {
  return std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
}

template <typename T>
Value<T> read(Bits<T> bits) {
  if constexpr (is_half<T>)
    return half_to_float(bits);
  else
    return std::bit_cast<Value<T>>(bits);
}

template <typename T>
Bits<T> write(Value<T> value) {
  if constexpr (is_half<T>)
    return float_to_half(value);
  else
    return std::bit_cast<Bits<T>>(value);
}

// A function of halves, for each half of a pair.
template <typename Function, typename... Pairs>
std::uint32_t for_both_halves(Function function, Pairs... pairs) {
  const std::uint32_t low = function(static_cast<std::uint16_t>(pairs)...);
  const std::uint32_t high = function(static_cast<std::uint16_t>(pairs >> 16)...);
  return high << 16 | low;
}

// As an operand of a wider register: signed values keep their sign, others are filled with zeros.
template <typename T>
auto extend(Bits<T> bits) {
  if constexpr (std::is_signed_v<Value<T>> && !is_float<T>)
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(read<T>(bits)));
  else
    return bits;
}

}  // namespace ptx
