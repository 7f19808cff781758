// What translated code says about itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "execution.h"

namespace ptx {

struct Place {
  const char* file;
  int line;
};

struct ParameterPlace {
  std::size_t offset;
  std::size_t size;
};

struct KernelCode {
  const char* name;                     // mangled
  void (*run)(const char* parameters);  // one thread's share
  std::vector<ParameterPlace> parameters;
  std::vector<std::size_t> pointers;  // offsets of what the kernel takes for addresses of global memory
  std::size_t parameter_bytes;
  std::size_t static_shared_bytes;
  unsigned max_threads;
  const std::vector<Place>& places;  // of each instruction
};

// Makes a kernel known to nvcc's host code.
class Registration {
 public:
  explicit Registration(const KernelCode& code);
};

// Makes a .global or .const variable known as memory that kernels may touch.
class VariableRegistration {
 public:
  VariableRegistration(const void* address, std::size_t bytes);
};

inline cuda_on_cpu::Site site_of(const KernelCode& code, int instruction) {
  const Place& place = code.places[static_cast<std::size_t>(instruction)];
  return {place.file, place.line, instruction + 1};
}

enum class Space { generic, global, shared, local, param, constant };

// Ends the process unless the access is aligned and lies in one allocation or variable.
void check_access(const KernelCode& code, int instruction, Space space, bool write, const void* address,
                  std::size_t bytes);

// The counters of PTX_PROFILE.
enum class AccessKind { read, write, atomic };
void count_instruction(const KernelCode& code, int instruction);
void count_access(const KernelCode& code, int instruction, Space space, AccessKind kind, const void* address,
                  std::size_t bytes);

}  // namespace ptx
