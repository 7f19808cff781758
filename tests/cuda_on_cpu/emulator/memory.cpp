#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <vector>

#include "error.h"
#include "faults.h"
#include "sanitizers.h"

namespace cuda_on_cpu {

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kAlignment = 256;  // what cudaMalloc promises
constexpr unsigned char kCanary = 0xff;

// By the address of the mapping. Never destroyed: static destructors of the program may still free memory.
std::map<const char*, Allocation>& allocations() {
  static auto& result = *new std::map<const char*, Allocation>;
  return result;
}

// The living ones alone.
std::vector<const Allocation*>& living() {
  static auto& result = *new std::vector<const Allocation*>;
  return result;
}

bool device_memory_is_open = false;

std::size_t round_up(std::size_t value, std::size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

char* accessible_begin(const Allocation& a) { return a.mapping + kPage; }
char* accessible_end(const Allocation& a) { return a.mapping + a.mapping_bytes - kPage; }

void protect(const Allocation& a, int protection) {
  mprotect(accessible_begin(a), static_cast<std::size_t>(accessible_end(a) - accessible_begin(a)), protection);
}

void protect_device_memory(int protection) {
  for (const Allocation* a : living())
    if (a->kind == MemoryKind::device) protect(*a, protection);
}

// The first byte of [begin, end) that is not a canary, or nullptr. The canaries are poisoned under ASan, but this file
// is not instrumented, and the loop is no call that ASan intercepts.
const char* damaged(const char* begin, const char* end) {
  using Word = std::uint64_t;
  const auto aligned = [](const char* byte) { return reinterpret_cast<std::uintptr_t>(byte) % sizeof(Word) == 0; };
  while (begin != end) {
    if (aligned(begin) && end - begin >= static_cast<std::ptrdiff_t>(sizeof(Word)) &&
        *reinterpret_cast<const volatile Word*>(begin) == ~Word{0}) {
      begin += sizeof(Word);
    } else {
      if (static_cast<unsigned char>(*static_cast<const volatile char*>(begin)) != kCanary) return begin;
      ++begin;
    }
  }
  return nullptr;
}

void check_canaries(const Allocation& a) {
  if (const char* byte = damaged(accessible_begin(a), a.begin))
    fail("somebody wrote out of bounds: %zu bytes before an allocation of %zu bytes",
         static_cast<std::size_t>(a.begin - byte), a.bytes);
  if (const char* byte = damaged(a.end(), accessible_end(a)))
    fail("somebody wrote out of bounds: %zu bytes past the end of an allocation of %zu bytes",
         static_cast<std::size_t>(byte - a.end()), a.bytes);
}

}  // namespace

void* allocate(MemoryKind kind, std::size_t bytes, unsigned flags) {
  catch_faults();
  if (bytes > SIZE_MAX / 2) return nullptr;
  if (kind == MemoryKind::device && bytes > kDeviceBytes - usage(kind).bytes) return nullptr;
  const std::size_t room = round_up(bytes, kAlignment);
  const std::size_t accessible = round_up(room, kPage);
  void* mapping = mmap(nullptr, accessible + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;

  Allocation a;
  a.mapping = static_cast<char*>(mapping);
  a.mapping_bytes = accessible + 2 * kPage;
  a.begin = a.mapping + kPage + (accessible - room);
  a.bytes = bytes;
  a.kind = kind;
  a.flags = flags;
  // Sets the pages apart from their neighbours, so that to protect them need not split and merge the system's areas.
  madvise(accessible_begin(a), accessible, MADV_DONTDUMP);
  protect(a, PROT_READ | PROT_WRITE);
  std::memset(accessible_begin(a), kCanary, accessible);
  asan::poison(a.mapping, a.mapping_bytes);
  asan::unpoison(a.begin, a.bytes);
  if (kind == MemoryKind::device && !device_memory_is_open) protect(a, PROT_NONE);
  living().push_back(&(allocations()[a.mapping] = a));
  return a.begin;
}

bool release(MemoryKind kind, void* pointer) {
  auto& all = allocations();
  auto next = all.upper_bound(static_cast<const char*>(pointer));
  if (next == all.begin()) return false;
  Allocation& a = std::prev(next)->second;
  if (a.begin != pointer || a.kind != kind) return false;
  if (kind == MemoryKind::pinned) check_canaries(a);
  // Gives the pages back to the system and keeps the addresses.
  mmap(a.mapping, a.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  asan::poison(a.mapping, a.mapping_bytes);
  a.kind = MemoryKind::freed;
  living().erase(std::find(living().begin(), living().end(), &a));
  return true;
}

Usage usage(MemoryKind kind) {
  Usage result;
  for (const Allocation* a : living()) {
    if (a->kind != kind) continue;
    result.bytes += a->bytes;
    ++result.allocations;
  }
  return result;
}

const Allocation* find_allocation(const void* address) {
  const auto& all = allocations();
  const char* byte = static_cast<const char*>(address);
  const auto next = all.upper_bound(byte);
  if (next == all.begin()) return nullptr;
  const Allocation& a = std::prev(next)->second;
  return byte < a.mapping + a.mapping_bytes ? &a : nullptr;
}

MemoryKind kind_of(const void* address) {
  const Allocation* a = find_allocation(address);
  return a && address >= a->begin && address <= a->end() ? a->kind : MemoryKind::host;
}

void check_range(const char* what, const void* address, std::size_t bytes) {
  const Allocation* a = find_allocation(address);
  if (!a) return;
  if (a->kind == MemoryKind::freed) fail("%s of memory that was freed", what);
  const char* begin = static_cast<const char*>(address);
  if (begin < a->begin || begin + bytes > a->end())
    fail("%s of %zu bytes at offset %td of an allocation of %zu bytes", what, bytes, begin - a->begin, a->bytes);
}

void check_canaries() {
  for (const Allocation* a : living()) check_canaries(*a);
}

void open_device_memory() {
  if (device_memory_is_open) return;
  device_memory_is_open = true;
  protect_device_memory(PROT_READ | PROT_WRITE);
}

void close_device_memory() {
  if (!device_memory_is_open) return;
  device_memory_is_open = false;
  protect_device_memory(PROT_NONE);
}

}  // namespace cuda_on_cpu
