// Barriers, fences and warp operations, by their CUDA names.
#pragma once

#include <cstring>
#include <type_traits>

#include "execution.h"

constexpr int warpSize = cuda_on_cpu::kWarpSize;

namespace cuda_on_cpu {

// A value of up to eight bytes, through a shuffle.
template <typename T>
T shuffle(Site site, WarpOperation operation, unsigned mask, T value, unsigned offset, int width) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
  const unsigned last_lane = operation == WarpOperation::shuffle_up ? 0 : kWarpSize - 1;
  const unsigned clamp = (kWarpSize - static_cast<unsigned>(width)) << 8 | last_lane;
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(site, operation, mask, bits, offset, clamp).value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

// Every built-in takes the place of its call as a last, defaulted argument.
#define CUDA_ON_CPU_SITE cuda_on_cpu::Site site = cuda_on_cpu::Site::here()

inline void __syncthreads(CUDA_ON_CPU_SITE) { cuda_on_cpu::barrier(site); }
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::barrier(site, cuda_on_cpu::BlockVote::any, predicate != 0);
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::barrier(site, cuda_on_cpu::BlockVote::all, predicate != 0);
}
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::barrier(site, cuda_on_cpu::BlockVote::count, predicate != 0);
}

inline void __threadfence() { cuda_on_cpu::fence(); }
inline void __threadfence_block() { cuda_on_cpu::fence(); }
inline void __threadfence_system() { cuda_on_cpu::fence(); }

inline void __syncwarp(unsigned mask = 0xffffffff, CUDA_ON_CPU_SITE) {
  cuda_on_cpu::warp_operation(site, cuda_on_cpu::WarpOperation::sync, mask, 0);
}
inline unsigned __activemask() { return cuda_on_cpu::active_mask(); }
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  const auto result = cuda_on_cpu::warp_operation(site, cuda_on_cpu::WarpOperation::ballot, mask, predicate != 0);
  return static_cast<unsigned>(result.value);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
  const auto result = cuda_on_cpu::warp_operation(site, cuda_on_cpu::WarpOperation::all, mask, predicate != 0);
  return static_cast<int>(result.value);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, CUDA_ON_CPU_SITE) {
  const auto offset = static_cast<unsigned>(lane);
  return cuda_on_cpu::shuffle(site, cuda_on_cpu::WarpOperation::shuffle_index, mask, value, offset, width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::shuffle(site, cuda_on_cpu::WarpOperation::shuffle_up, mask, value, delta, width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_ON_CPU_SITE) {
  return cuda_on_cpu::shuffle(site, cuda_on_cpu::WarpOperation::shuffle_down, mask, value, delta, width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, CUDA_ON_CPU_SITE) {
  const auto offset = static_cast<unsigned>(lane_mask);
  return cuda_on_cpu::shuffle(site, cuda_on_cpu::WarpOperation::shuffle_xor, mask, value, offset, width);
}

#undef CUDA_ON_CPU_SITE
