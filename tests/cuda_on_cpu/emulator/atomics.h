// Atomic functions, by their CUDA names. Relaxed, as CUDA's are: TSan sees an atomic access that orders nothing else.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace cuda_on_cpu {

// Replaces *address by change(*address) and returns what was there.
template <typename T, typename Change>
T read_modify_write(T* address, Change change) {
  using Word = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  static_assert(sizeof(T) == sizeof(Word), "atomics are of four or eight bytes");
  auto* word = reinterpret_cast<Word*>(address);
  Word seen = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (;;) {
    T before;
    std::memcpy(&before, &seen, sizeof(T));
    const T after = change(before);
    Word wanted;
    std::memcpy(&wanted, &after, sizeof(T));
    if (__atomic_compare_exchange_n(word, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return before;
  }
}

// The types that CUDA's integer atomics take. The operand is no deduced context, so that literals convert.
template <typename T>
concept AtomicInteger = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;
template <typename T>
concept AtomicNumber = AtomicInteger<T> || std::is_same_v<T, float> || std::is_same_v<T, double>;

}  // namespace cuda_on_cpu

template <cuda_on_cpu::AtomicNumber T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  if constexpr (std::is_same_v<T, int>)  // wraps around
    return static_cast<int>(atomicAdd(reinterpret_cast<unsigned*>(address), static_cast<unsigned>(value)));
  else
    return cuda_on_cpu::read_modify_write(address, [=](T before) { return before + value; });
}
inline int atomicSub(int* address, int value) {
  return atomicAdd(address, static_cast<int>(0u - static_cast<unsigned>(value)));
}
inline unsigned atomicSub(unsigned* address, unsigned value) { return atomicAdd(address, 0u - value); }
template <cuda_on_cpu::AtomicInteger T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T before) { return value < before ? value : before; });
}
template <cuda_on_cpu::AtomicInteger T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T before) { return before < value ? value : before; });
}
template <cuda_on_cpu::AtomicNumber T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T) { return value; });
}
template <cuda_on_cpu::AtomicInteger T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T before) { return before == compare ? value : before; });
}
template <cuda_on_cpu::AtomicInteger T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T before) { return before & value; });
}
template <cuda_on_cpu::AtomicInteger T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T before) { return before | value; });
}
template <cuda_on_cpu::AtomicInteger T>
T atomicXor(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T before) { return before ^ value; });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return cuda_on_cpu::read_modify_write(address, [=](unsigned before) { return before >= limit ? 0 : before + 1; });
}
inline unsigned atomicDec(unsigned* address, unsigned limit) {
  return cuda_on_cpu::read_modify_write(
      address, [=](unsigned before) { return before == 0 || before > limit ? limit : before - 1; });
}
