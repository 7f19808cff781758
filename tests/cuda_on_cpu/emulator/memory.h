// Device memory and pinned host memory, each allocation on pages of its own.
//
//   | inaccessible page | canary .. | the caller's bytes | canary up to 256 bytes | inaccessible page |
//
// Device memory can be touched only while it is open, that is by kernels and copies. New memory holds 0xff
// (NaN). Freed memory stays inaccessible for ever, so that its use is found. Under ASan the canaries are poisoned.
#pragma once

#include <cstddef>

namespace cuda_on_cpu {

enum class MemoryKind { host, device, pinned, freed };

struct Allocation {
  char* begin = nullptr;
  std::size_t bytes = 0;
  char* mapping = nullptr;
  std::size_t mapping_bytes = 0;
  MemoryKind kind = MemoryKind::host;
  unsigned flags = 0;  // of cudaHostAlloc

  char* end() const { return begin + bytes; }
};

// nullptr if there is no such amount of memory.
void* allocate(MemoryKind kind, std::size_t bytes, unsigned flags = 0);
// False if the pointer is not the beginning of a living allocation of that kind.
bool release(MemoryKind kind, void* pointer);

constexpr std::size_t kDeviceBytes = std::size_t{8} << 30;  // that cudaMalloc can give
struct Usage {
  std::size_t bytes = 0;
  std::size_t allocations = 0;
};
Usage usage(MemoryKind kind);

// The allocation whose pages hold the address, living or freed; nullptr if there is none.
const Allocation* find_allocation(const void* address);
// What the address is: within an allocation or just past its end. `host` if nothing is known about it.
MemoryKind kind_of(const void* address);

// Ends the process if [address, address + bytes) begins in an allocation and runs past its end.
void check_range(const char* what, const void* address, std::size_t bytes);
// Ends the process if somebody wrote outside an allocation since the last check.
void check_canaries();

// Makes device memory accessible. It is closed before the runtime's lock is let go: the host cannot touch it.
void open_device_memory();
void close_device_memory();

}  // namespace cuda_on_cpu
