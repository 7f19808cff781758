#include "options.h"

#include <cstdlib>
#include <random>
#include <string>

#include "error.h"

namespace cuda_on_cpu {

namespace {

std::uint64_t number(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  if (!text || !*text) return otherwise;
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (*end) fail("%s is \"%s\", but must be a whole number", variable, text);
  return value;
}

Order order() {
  const char* text = std::getenv("CUDA_ON_CPU_ORDER");
  const std::string name = text && *text ? text : "random";
  if (name == "forward") return Order::forward;
  if (name == "reverse") return Order::reverse;
  if (name == "random") return Order::random;
  fail("CUDA_ON_CPU_ORDER is \"%s\", but must be forward, reverse or random", name.c_str());
}

Options read() {
  Options result;
  result.order = order();
  result.seed = number("CUDA_ON_CPU_SEED", result.seed);
  result.stack_bytes = number("CUDA_ON_CPU_STACK_KIB", result.stack_bytes >> 10) << 10;
  if (result.stack_bytes < (32 << 10)) fail("CUDA_ON_CPU_STACK_KIB is below 32");
  const std::uint64_t integrated = number("CUDA_ON_CPU_INTEGRATED", 0);
  if (integrated > 1) fail("CUDA_ON_CPU_INTEGRATED is %zu, but must be 0 or 1", std::size_t{integrated});
  result.integrated = integrated == 1;
  return result;
}

}  // namespace

const Options& options() {
  static const Options result = read();
  return result;
}

std::size_t random_below(std::size_t count) {
  static std::mt19937_64 generator(options().seed);
  return generator() % count;
}

}  // namespace cuda_on_cpu
