#include "ops/prepare_kernels.h"

#include "core/half.h"
#include "ops/lanes.h"

namespace kizu::cpu::KIZU_LEVEL {
namespace {

static_assert(kLanes == kBlock);

// Fixed-point weights have these many bits.
template <typename T>
constexpr int kBits = sizeof(T) == 1 ? 22 : 16;
template <typename T>
constexpr std::uint32_t kHalf = 1u << (kBits<T> - 1);

// ---- transposes

// Transposes a square of 16 / sizeof(T) rows and columns: from(i) is where row i is, to(i) where column i goes.
template <typename T, typename From, typename To>
inline void transpose(const From& from, const To& to) {
  constexpr int n = 16 / sizeof(T);
  Bytes m[n];
  for (int i = 0; i < n; ++i) m[i] = load(from(i));
  for (int round = 1; round < n; round *= 2) {  // each zips vector i with vector i + n / 2
    Bytes t[n];
    for (int i = 0; i < n / 2; ++i) {
      t[2 * i] = zip_low<T>(m[i], m[i + n / 2]);
      t[2 * i + 1] = zip_high<T>(m[i], m[i + n / 2]);
    }
    for (int i = 0; i < n; ++i) m[i] = t[i];
  }
  for (int i = 0; i < n; ++i) store(m[i], to(i));
}

template <typename T>
void interleave(const T* const* rows, std::ptrdiff_t n, std::ptrdiff_t ahead, T* block, std::ptrdiff_t step) {
  constexpr int side = 16 / sizeof(T), line = 64 / sizeof(T);
  std::ptrdiff_t i = 0;
  for (; i + side <= n; i += side) {
    if (i % line == 0)
      for (int r = 0; r < kBlock; ++r) __builtin_prefetch(rows[r] + i + ahead, 0, 2);
    for (int r = 0; r < kBlock; r += side)
      transpose<T>([&](int k) { return rows[r + k] + i; }, [&](int k) { return block + (i + k) * step + r; });
  }
  for (; i < n; ++i)
    for (int r = 0; r < kBlock; ++r) block[i * step + r] = rows[r][i];
}

template <typename T>
void deinterleave(const T* resized, std::ptrdiff_t n, T* rows, std::ptrdiff_t stride) {
  constexpr int side = 16 / sizeof(T);
  for (std::ptrdiff_t i = 0; i < n; i += side)
    for (int r = 0; r < kBlock; r += side)
      transpose<T>([&](int k) { return resized + (i + k) * kBlock + r; },
                   [&](int k) { return rows + (r + k) * stride + i; });
}

// ---- resize

// Most outputs need an input less than the one that needs the most.
inline int needed(const std::uint32_t* weights, int taps) { return taps - (weights[taps - 1] == 0 ? 1 : 0); }

template <typename T, int Channels>
void resize_columns(const T* block, const Columns& columns, bool swapped, T* resized) {
  constexpr std::ptrdiff_t step = Channels * kBlock;
  const int taps = columns.taps;
  const std::uint32_t* weights = columns.weights;
  for (std::ptrdiff_t x = 0; x < columns.count; ++x, weights += taps) {
    const T* from = block + (columns.first[x] - columns.first[0]) * step;
    Lanes sums[Channels];
    for (auto& sum : sums) sum = Lanes(kHalf<T>);
    const int n = needed(weights, taps);
    for (int k = 0; k < n; ++k, from += step) {
      const Register weight = broadcast(weights[k]);
      for (int c = 0; c < Channels; ++c) sums[c].add_product(from + c * kBlock, weight);
    }
    for (int c = 0; c < Channels; ++c)
      sums[c].template store<kBits<T>>(resized + ((swapped ? Channels - 1 - c : c) * columns.count + x) * kBlock);
  }
}

template <typename T>
void resize_rows(const T* rows, std::ptrdiff_t stride, int taps, const std::uint32_t* weights, std::ptrdiff_t n,
                 T* out) {
  taps = needed(weights, taps);
  std::ptrdiff_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    Lanes a(kHalf<T>), b(kHalf<T>);
    const T* from = rows + i;
    for (int k = 0; k < taps; ++k, from += stride) {
      const Register weight = broadcast(weights[k]);
      a.add_product(from, weight);
      b.add_product(from + kLanes, weight);
    }
    a.template store<kBits<T>>(out + i);
    b.template store<kBits<T>>(out + i + kLanes);
  }
  for (; i < n; ++i) {
    std::uint32_t sum = kHalf<T>;
    for (int k = 0; k < taps; ++k) sum += rows[k * stride + i] * weights[k];
    sum >>= kBits<T>;
    constexpr std::uint32_t most = static_cast<T>(~T{0});
    out[i] = static_cast<T>(sum > most ? most : sum);
  }
}

// ---- plain loops

template <typename T>
void demosaic(const T* above, const T* row, const T* below, std::ptrdiff_t n, bool own_first, T* __restrict own,
              T* __restrict green, T* __restrict other) {
  const unsigned own_site = own_first ? 0 : 1;
  for (std::ptrdiff_t x = 0; x < n; ++x) {
    const std::uint32_t sides = row[x - 1] + row[x + 1], ends = above[x] + below[x];
    const std::uint32_t corners = above[x - 1] + above[x + 1] + below[x - 1] + below[x + 1];
    const bool at_own = (static_cast<unsigned>(x) & 1u) == own_site;
    own[x] = static_cast<T>(at_own ? row[x] : (sides + 1) >> 1);
    green[x] = static_cast<T>(at_own ? (sides + ends + 2) >> 2 : row[x]);
    other[x] = static_cast<T>(at_own ? (corners + 2) >> 2 : (ends + 1) >> 1);
  }
}

template <typename T>
void pool(const T* planes, std::ptrdiff_t n, T* largest, std::uint32_t* sum) {
  const T *r = planes, *g = planes + n, *b = planes + 2 * n;
  for (std::ptrdiff_t x = 0; x < n; ++x) {
    const T rg = r[x] > g[x] ? r[x] : g[x];
    largest[x] = rg > b[x] ? rg : b[x];
    sum[x] = static_cast<std::uint32_t>(r[x]) + g[x] + b[x];
  }
}

template <typename T>
void affine(const T* values, std::ptrdiff_t n, float scale, float offset, float* out) {
  for (std::ptrdiff_t x = 0; x < n; ++x)
    out[x] = static_cast<float>(static_cast<std::int32_t>(values[x])) * scale + offset;
}

template <typename T>
void line(const T* values, std::ptrdiff_t n, double scale, double offset, float* out) {
  for (std::ptrdiff_t x = 0; x < n; ++x)
    out[x] = static_cast<float>(static_cast<double>(static_cast<std::int32_t>(values[x])) * scale + offset);
}

void to_half(const float* values, std::ptrdiff_t n, std::uint16_t* out) {
  std::ptrdiff_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(KIZU_LEVEL_neon)
  for (; i + 4 <= n; i += 4) vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(values + i))));
#endif
  for (; i < n; ++i) out[i] = float_to_half(values[i]);
}

template <typename T>
constexpr SampleKernels<T> sample_kernels() {
  return {interleave<T>, resize_columns<T, 1>, resize_columns<T, 3>, deinterleave<T>, resize_rows<T>, demosaic<T>,
          pool<T>};
}

}  // namespace

extern const PrepareKernels prepare_kernels;
const PrepareKernels prepare_kernels = {sample_kernels<std::uint8_t>(),
                                        sample_kernels<std::uint16_t>(),
                                        line<std::uint8_t>,
                                        line<std::uint32_t>,
                                        affine<std::uint16_t>,
                                        affine<std::uint32_t>,
                                        to_half};

}  // namespace kizu::cpu::KIZU_LEVEL
