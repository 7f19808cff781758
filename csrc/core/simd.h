// Instruction sets, chosen at run time. A file csrc/ops/*_kernels.cpp is compiled once for each of the processor
// family's levels, with KIZU_LEVEL as the namespace; everything else is compiled for the oldest.
#pragma once

#include <span>

namespace kizu::simd {

enum class Level { scalar, sse4, avx2, avx512, neon };

const char* name(Level level);

// Levels of this build that this processor has, best first; the last is scalar.
std::span<const Level> available();

// The best, or the one that the environment variable KIZU_SIMD named when this was first asked; throws
// std::invalid_argument if that is not available.
Level chosen();

}  // namespace kizu::simd

// Declares `extern const Type object;` in the namespace of each level, within the current one; KIZU_EACH_LEVEL_PICK
// names the chosen level's.
#if defined(__x86_64__)
#define KIZU_EACH_LEVEL(Type, object) \
  namespace scalar {                  \
  extern const Type object;           \
  }                                   \
  namespace sse4 {                    \
  extern const Type object;           \
  }                                   \
  namespace avx2 {                    \
  extern const Type object;           \
  }                                   \
  namespace avx512 {                  \
  extern const Type object;           \
  }
#define KIZU_EACH_LEVEL_PICK(object)                                      \
  (::kizu::simd::chosen() == ::kizu::simd::Level::avx512 ? avx512::object \
   : ::kizu::simd::chosen() == ::kizu::simd::Level::avx2 ? avx2::object   \
   : ::kizu::simd::chosen() == ::kizu::simd::Level::sse4 ? sse4::object   \
                                                         : scalar::object)
#elif defined(__aarch64__)
#define KIZU_EACH_LEVEL(Type, object) \
  namespace scalar {                  \
  extern const Type object;           \
  }                                   \
  namespace neon {                    \
  extern const Type object;           \
  }
#define KIZU_EACH_LEVEL_PICK(object) \
  (::kizu::simd::chosen() == ::kizu::simd::Level::neon ? neon::object : scalar::object)
#else
#define KIZU_EACH_LEVEL(Type, object) \
  namespace scalar {                  \
  extern const Type object;           \
  }
#define KIZU_EACH_LEVEL_PICK(object) (::kizu::simd::chosen(), scalar::object)
#endif
