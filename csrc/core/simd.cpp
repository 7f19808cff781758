#include "core/simd.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace kizu::simd {

#if defined(__x86_64__)
// What x86-64-v3 has besides AVX2, as compilers may use it; not every compiler knows these features by name.
static bool has_v3() {
  constexpr unsigned kMovbe = 1u << 22, kLzcnt = 1u << 5;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_F16C) == 0 || (c & kMovbe) == 0) return false;
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || (c & kLzcnt) == 0) return false;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}
#endif

const char* name(Level level) {
  switch (level) {
    case Level::sse4:
      return "sse4";
    case Level::avx2:
      return "avx2";
    case Level::avx512:
      return "avx512";
    case Level::neon:
      return "neon";
    case Level::scalar:
      break;
  }
  return "scalar";
}

std::span<const Level> available() {
  static const std::vector<Level> levels = [] {
    std::vector<Level> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v3 = has_v3();
    if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found.push_back(Level::avx512);
    if (v3) found.push_back(Level::avx2);
    found.push_back(Level::sse4);
#elif defined(__aarch64__)
    found.push_back(Level::neon);
#endif
    found.push_back(Level::scalar);
    return found;
  }();
  return levels;
}

Level chosen() {
  static const Level level = [] {
    const char* wanted = std::getenv("KIZU_SIMD");
    if (!wanted || !*wanted) return available().front();
    std::string names;
    for (const Level each : available()) {
      if (std::strcmp(name(each), wanted) == 0) return each;
      names += std::string(names.empty() ? "" : ", ") + name(each);
    }
    check(false, "KIZU_SIMD is '", wanted, "', but this processor and build have: ", names);
    return Level::scalar;
  }();
  return level;
}

}  // namespace kizu::simd
