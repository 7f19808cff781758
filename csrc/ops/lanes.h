// Sixteen 32-bit lanes for the *_kernels.cpp, which alone may include this: all of it is local to the file, since each
// is compiled once a level. A level's backend is a Register of some lanes and a few operations on it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#pragma GCC diagnostic push
#if !defined(__clang__)  // GCC 12 takes the operands that its own AVX-512 intrinsics leave undefined for a mistake
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace kizu {
namespace {

constexpr int kLanes = 16;

#if defined(KIZU_LEVEL_avx512)

using Register = __m512i;
inline Register broadcast(std::uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
inline Register widen(const std::uint8_t* from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Register widen(const std::uint16_t* from) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Register add(Register a, Register b) { return _mm512_add_epi32(a, b); }
inline Register multiply(Register a, Register b) { return _mm512_mullo_epi32(a, b); }
template <int bits>
inline Register shift_right(Register a) {
  return _mm512_srli_epi32(a, bits);
}
inline void narrow(const Register* from, std::uint8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(from[0]));
}
inline void narrow(const Register* from, std::uint16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtusepi32_epi16(from[0]));
}

#elif defined(KIZU_LEVEL_avx2)

using Register = __m256i;
inline Register broadcast(std::uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
inline Register widen(const std::uint8_t* from) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
inline Register widen(const std::uint16_t* from) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Register add(Register a, Register b) { return _mm256_add_epi32(a, b); }
inline Register multiply(Register a, Register b) { return _mm256_mullo_epi32(a, b); }
template <int bits>
inline Register shift_right(Register a) {
  return _mm256_srli_epi32(a, bits);
}
inline Register pack(const Register* from) {  // its instruction packs within halves
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(from[0], from[1]), 0xd8);
}
inline void narrow(const Register* from, std::uint8_t* to) {
  const Register words = pack(from);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline void narrow(const Register* from, std::uint16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), pack(from));
}

#elif defined(KIZU_LEVEL_sse4)

using Register = __m128i;
inline Register broadcast(std::uint32_t value) { return _mm_set1_epi32(static_cast<int>(value)); }
inline Register widen(const std::uint8_t* from) { return _mm_cvtepu8_epi32(_mm_loadu_si32(from)); }
inline Register widen(const std::uint16_t* from) {
  return _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
inline Register add(Register a, Register b) { return _mm_add_epi32(a, b); }
inline Register multiply(Register a, Register b) { return _mm_mullo_epi32(a, b); }
template <int bits>
inline Register shift_right(Register a) {
  return _mm_srli_epi32(a, bits);
}
inline void narrow(const Register* from, std::uint8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi16(_mm_packus_epi32(from[0], from[1]), _mm_packus_epi32(from[2], from[3])));
}
inline void narrow(const Register* from, std::uint16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packus_epi32(from[0], from[1]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8), _mm_packus_epi32(from[2], from[3]));
}

#elif defined(KIZU_LEVEL_neon)

using Register = uint32x4_t;
inline Register broadcast(std::uint32_t value) { return vdupq_n_u32(value); }
inline Register widen(const std::uint8_t* from) {
  std::uint32_t four;
  __builtin_memcpy(&four, from, sizeof four);
  return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}
inline Register widen(const std::uint16_t* from) { return vmovl_u16(vld1_u16(from)); }
inline Register add(Register a, Register b) { return vaddq_u32(a, b); }
inline Register multiply(Register a, Register b) { return vmulq_u32(a, b); }
template <int bits>
inline Register shift_right(Register a) {
  return vshrq_n_u32(a, bits);
}
inline uint16x8_t pack(const Register* from) { return vcombine_u16(vqmovn_u32(from[0]), vqmovn_u32(from[1])); }
inline void narrow(const Register* from, std::uint8_t* to) {
  vst1q_u8(to, vcombine_u8(vqmovn_u16(pack(from)), vqmovn_u16(pack(from + 2))));
}
inline void narrow(const Register* from, std::uint16_t* to) {
  vst1q_u16(to, pack(from));
  vst1q_u16(to + 8, pack(from + 2));
}

#else

using Register = std::uint32_t;
inline Register broadcast(std::uint32_t value) { return value; }
inline Register widen(const std::uint8_t* from) { return *from; }
inline Register widen(const std::uint16_t* from) { return *from; }
inline Register add(Register a, Register b) { return a + b; }
inline Register multiply(Register a, Register b) { return a * b; }
template <int bits>
inline Register shift_right(Register a) {
  return a >> bits;
}
inline void narrow(const Register* from, std::uint8_t* to) {
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<std::uint8_t>(from[i] > 255 ? 255 : from[i]);
}
inline void narrow(const Register* from, std::uint16_t* to) {
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<std::uint16_t>(from[i]);
}

#endif

// Sixteen bytes, for transposes of samples: zip_low and zip_high give a0 b0 a1 b1 ... of the low and of the high halves
// of a and b. (Transposing in wider registers was measured to be slower.)

#if defined(KIZU_LEVEL_sse4) || defined(KIZU_LEVEL_avx2) || defined(KIZU_LEVEL_avx512)

using Bytes = __m128i;
inline Bytes load(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline void store(Bytes from, void* to) { _mm_storeu_si128(static_cast<__m128i*>(to), from); }
template <typename T>
inline Bytes zip_low(Bytes a, Bytes b) {
  return sizeof(T) == 1 ? _mm_unpacklo_epi8(a, b) : _mm_unpacklo_epi16(a, b);
}
template <typename T>
inline Bytes zip_high(Bytes a, Bytes b) {
  return sizeof(T) == 1 ? _mm_unpackhi_epi8(a, b) : _mm_unpackhi_epi16(a, b);
}

#elif defined(KIZU_LEVEL_neon)

using Bytes = uint8x16_t;
inline Bytes load(const void* from) { return vld1q_u8(static_cast<const std::uint8_t*>(from)); }
inline void store(Bytes from, void* to) { vst1q_u8(static_cast<std::uint8_t*>(to), from); }
template <typename T>
inline Bytes zip_low(Bytes a, Bytes b) {
  if constexpr (sizeof(T) == 1) return vzip1q_u8(a, b);
  return vreinterpretq_u8_u16(vzip1q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
}
template <typename T>
inline Bytes zip_high(Bytes a, Bytes b) {
  if constexpr (sizeof(T) == 1) return vzip2q_u8(a, b);
  return vreinterpretq_u8_u16(vzip2q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
}

#else

struct Bytes {
  std::uint8_t byte[16];
};
inline Bytes load(const void* from) {
  Bytes to;
  __builtin_memcpy(&to, from, sizeof to);
  return to;
}
inline void store(const Bytes& from, void* to) { __builtin_memcpy(to, &from, sizeof from); }
template <typename T>
inline Bytes zip(const std::uint8_t* a, const std::uint8_t* b) {
  constexpr int size = sizeof(T);
  Bytes to;
  for (int i = 0; i < 16; ++i) {
    const std::uint8_t* from = i / size % 2 == 0 ? a : b;
    to.byte[i] = from[i / (2 * size) * size + i % size];
  }
  return to;
}
template <typename T>
inline Bytes zip_low(const Bytes& a, const Bytes& b) {
  return zip<T>(a.byte, b.byte);
}
template <typename T>
inline Bytes zip_high(const Bytes& a, const Bytes& b) {
  return zip<T>(a.byte + 8, b.byte + 8);
}

#endif

constexpr int kRegisterLanes = static_cast<int>(sizeof(Register) / sizeof(std::uint32_t));
constexpr int kRegisters = kLanes / kRegisterLanes;

// Sixteen sums of products, each less than 2^32.
struct Lanes {
  Register part[kRegisters];

  Lanes() = default;
  explicit Lanes(std::uint32_t value) {
    for (auto& p : part) p = broadcast(value);
  }
  template <typename T>
  void add_product(const T* from, Register weight) {
    for (int i = 0; i < kRegisters; ++i) part[i] = add(part[i], multiply(widen(from + i * kRegisterLanes), weight));
  }
  // lane >> bits, at most T's largest; with uint8_t the shifted lane must be less than 2^15.
  template <int bits, typename T>
  void store(T* to) const {
    Register shifted[kRegisters];
    for (int i = 0; i < kRegisters; ++i) shifted[i] = shift_right<bits>(part[i]);
    narrow(shifted, to);
  }
};

}  // namespace
}  // namespace kizu
