// Loads, stores and atomics. The access itself is in the translated file, so that the sanitizers see it.
#pragma once

#include <array>

#include "atomics.h"
#include "floats.h"
#include "kernel_code.h"

namespace ptx {

#ifdef PTX_PROFILE
#define PTX_EXECUTED(instruction) ptx::count_instruction(kCode, instruction);
constexpr bool kProfile = true;
#else
#define PTX_EXECUTED(instruction)
constexpr bool kProfile = false;
#endif

// Registers of a vector access, aligned as the GPU demands it.
template <typename T, int Count>
struct alignas(sizeof(Bits<T>) * Count) Vector {
  Bits<T> element[Count];

  Bits<T> operator[](int i) const { return element[i]; }
};

template <Space S>
void before_access(const KernelCode& code, int instruction, AccessKind kind, const void* address, std::size_t bytes) {
  if constexpr (S != Space::param && S != Space::local) {
    check_access(code, instruction, S, kind != AccessKind::read, address, bytes);
    if constexpr (kProfile) count_access(code, instruction, S, kind, address, bytes);
  }
}

template <typename T, int Count, Space S>
Vector<T, Count> load(const KernelCode& code, int instruction, const char* address) {
  before_access<S>(code, instruction, AccessKind::read, address, sizeof(Bits<T>) * Count);
  return *reinterpret_cast<const Vector<T, Count>*>(address);
}

template <typename T, int Count, Space S>
void store(const KernelCode& code, int instruction, char* address, const Vector<T, Count>& values) {
  before_access<S>(code, instruction, AccessKind::write, address, sizeof(Bits<T>) * Count);
  *reinterpret_cast<Vector<T, Count>*>(address) = values;
}

template <typename T, Space S, typename Change>
Bits<T> atomic(const KernelCode& code, int instruction, char* address, Change change) {
  before_access<S>(code, instruction, AccessKind::atomic, address, sizeof(Bits<T>));
  return cuda_on_cpu::read_modify_write(reinterpret_cast<Bits<T>*>(address), change);
}

#define PTX_ATOMIC(name, change)                                                                                   \
  template <typename T, Space S>                                                                                   \
  Bits<T> atom_##name(const KernelCode& code, int instruction, char* address, Bits<T> operand) {                   \
    return atomic<T, S>(code, instruction, address, [=](Bits<T> before) { return static_cast<Bits<T>>(change); }); \
  }
PTX_ATOMIC(add, add_<T>(before, operand))
PTX_ATOMIC(min, min_<T>(before, operand))
PTX_ATOMIC(max, max_<T>(before, operand))
PTX_ATOMIC(and, before& operand)
PTX_ATOMIC(or, before | operand)
PTX_ATOMIC(xor, before ^ operand)
PTX_ATOMIC(exch, operand)
PTX_ATOMIC(inc, before >= operand ? 0 : before + 1)
PTX_ATOMIC(dec, before == 0 || before > operand ? operand : before - 1)
#undef PTX_ATOMIC

template <typename T, Space S>
Bits<T> atom_cas(const KernelCode& code, int instruction, char* address, Bits<T> compare, Bits<T> value) {
  return atomic<T, S>(code, instruction, address, [=](Bits<T> before) { return before == compare ? value : before; });
}

}  // namespace ptx
