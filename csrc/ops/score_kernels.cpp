// Compiled once an instruction set, with KIZU_LEVEL as the namespace. Everything here is local to this file: an inline
// function shared with other files could replace theirs, compiled for a newer processor than the one that runs it.
#include "ops/score_kernels.h"

#include <cstdint>

#include "ops/score.h"

#if defined(KIZU_LEVEL_avx2) || defined(KIZU_LEVEL_avx512)
#include <immintrin.h>
#elif defined(KIZU_LEVEL_neon)
#include <arm_neon.h>
#endif

namespace kizu::cpu::KIZU_LEVEL {
namespace {

// What becomes of |a - b| at an element besides being summed.
enum class Map { none, write, add, divide };

#if defined(KIZU_LEVEL_avx512)
constexpr int kWidth = 16, kTile = 16;
#elif defined(KIZU_LEVEL_avx2)
constexpr int kWidth = 8, kTile = 8;
#elif defined(KIZU_LEVEL_neon)
constexpr int kWidth = 4, kTile = 16;
#elif defined(KIZU_LEVEL_sse4)
constexpr int kWidth = 4, kTile = 8;
#else
constexpr int kWidth = 1, kTile = 8;
#endif
using Floats [[gnu::vector_size(4 * kWidth)]] = float;
using Words [[gnu::vector_size(4 * kWidth)]] = std::uint32_t;
using Integers [[gnu::vector_size(4 * kWidth)]] = std::int32_t;  // they compare faster
using Halves [[gnu::vector_size(2 * kWidth)]] = std::uint16_t;

Floats load(const float* from) {
  Floats value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

Floats load(const std::uint16_t* from) {
#if defined(KIZU_LEVEL_avx512)  // the masked form, since g++ 12 warns of the other
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(KIZU_LEVEL_avx2)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(KIZU_LEVEL_neon)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#else
  Halves halves;
  __builtin_memcpy(&halves, from, sizeof halves);
  const Words bits = __builtin_convertvector(halves, Words), rest = (bits & 0x7fff) << 13;
  const Words is_finite = reinterpret_cast<Words>(reinterpret_cast<Integers>(rest) < 31 << 23);
  const Words finite = reinterpret_cast<Words>(reinterpret_cast<Floats>(rest) * 0x1p112f);
  return reinterpret_cast<Floats>((bits & 0x8000) << 16 | (finite & is_finite) | ((rest | 0xff << 23) & ~is_finite));
#endif
}

template <Map kMap>
Floats difference(Floats a, Floats b, float* map, float divisor) {
  const Floats d = reinterpret_cast<Floats>(reinterpret_cast<Words>(a - b) & 0x7fffffff);
  if constexpr (kMap == Map::none) return d;
  Floats mapped = d;
  if constexpr (kMap != Map::write) mapped = load(map) + d;
  if constexpr (kMap == Map::divide) mapped /= divisor;
  __builtin_memcpy(map, &mapped, sizeof mapped);
  return d;
}

template <typename T>
float widened(T value) {
  T values[kWidth] = {value};
  return load(values)[0];
}

template <Map kMap, typename T>
float sum_block(const void* of_a, const void* of_b, std::ptrdiff_t n, float* map, float divisor) {
  const T *a = static_cast<const T*>(of_a), *b = static_cast<const T*>(of_b);
  const std::ptrdiff_t rows = n / kScoreLanes;
  alignas(64) float lanes[kScoreLanes];
  // As many lanes at a time as there are registers for their sums.
  for (int tile = 0; tile < kScoreLanes; tile += kTile * kWidth) {
    Floats sums[kTile] = {};
    for (std::ptrdiff_t row = 0; row < rows; ++row)
#pragma GCC unroll 16
      for (int v = 0; v < kTile; ++v) {
        const std::ptrdiff_t i = row * kScoreLanes + tile + v * kWidth;
        // A tile strides through the block, which hides it from the processor's own prefetching.
        if (v * kWidth * sizeof(T) % 64 == 0) {
          __builtin_prefetch(a + i + kScoreBlock);
          __builtin_prefetch(b + i + kScoreBlock);
        }
        sums[v] += difference<kMap>(load(a + i), load(b + i), map + i, divisor);
      }
    __builtin_memcpy(lanes + tile, sums, sizeof sums);
  }
  for (std::ptrdiff_t i = rows * kScoreLanes; i < n; ++i) {
    const float d = __builtin_fabsf(widened(a[i]) - widened(b[i]));
    if constexpr (kMap == Map::write) map[i] = d;
    if constexpr (kMap == Map::add) map[i] += d;
    if constexpr (kMap == Map::divide) map[i] = (map[i] + d) / divisor;
    lanes[i % kScoreLanes] += d;
  }
  for (int half = kScoreLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

template <typename T>
float sum(const void* a, const void* b, std::ptrdiff_t n) {
  return sum_block<Map::none, T>(a, b, n, nullptr, 1);
}
template <typename T>
float sum_and_write(const void* a, const void* b, std::ptrdiff_t n, float* map) {
  return sum_block<Map::write, T>(a, b, n, map, 1);
}
template <typename T>
float sum_and_add(const void* a, const void* b, std::ptrdiff_t n, float* map) {
  return sum_block<Map::add, T>(a, b, n, map, 1);
}

}  // namespace

extern const ScoreKernels score_kernels{
    {sum<float>, sum<std::uint16_t>},
    {sum_and_write<float>, sum_and_write<std::uint16_t>},
    {sum_and_add<float>, sum_and_add<std::uint16_t>},
    {sum_block<Map::divide, float>, sum_block<Map::divide, std::uint16_t>},
};

}  // namespace kizu::cpu::KIZU_LEVEL
