// What the environment sets: CUDA_ON_CPU_ORDER, CUDA_ON_CPU_SEED, CUDA_ON_CPU_STACK_KIB,
// CUDA_ON_CPU_INTEGRATED.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu {

// The order of blocks, of threads within a block, and of threads that a barrier sets free.
enum class Order { forward, reverse, random };

struct Options {
  Order order = Order::random;
  std::uint64_t seed = 1;
  std::size_t stack_bytes = 256 << 10;  // of one CUDA thread
  bool integrated = false;              // whether the device shares the host's memory, as Jetson's do
};

// Read once. A value that is not understood ends the process with a message.
const Options& options();

// A number in [0, count), from the one generator that CUDA_ON_CPU_SEED seeds.
std::size_t random_below(std::size_t count);

}  // namespace cuda_on_cpu
