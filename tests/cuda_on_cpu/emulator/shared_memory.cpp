#include "shared_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <vector>

#include "error.h"
#include "execution.h"
#include "sanitizers.h"

namespace cuda_on_cpu {

namespace {

constexpr std::size_t kAlignment = 16;
constexpr std::size_t kGap = 64;  // a canary between two variables, and around dynamic memory
constexpr std::size_t kVariableRegion = 64 << 10;
constexpr std::size_t kRegion = kVariableRegion + kSharedBytesOptIn + 2 * kGap;
constexpr unsigned char kPoison = 0xff;  // NaN for all floating types

struct Variable {
  const void* key;
  char* begin;
  std::size_t bytes;
};

char* region = nullptr;
char* dynamic_begin = nullptr;
std::size_t dynamic_size = 0;
std::size_t shared_limit = 0;
std::vector<Variable> variables;
std::size_t used = 0;            // of the region, with gaps
std::size_t variable_bytes = 0;  // without

// Not memset: TSan would take it for an access of the thread that happens to run.
void fill(char* begin, std::size_t bytes) {
  volatile char* byte = begin;
  for (std::size_t i = 0; i < bytes; ++i) byte[i] = static_cast<char>(kPoison);
}

void check_gap(const char* begin, const char* what) {
  for (std::size_t i = 0; i < kGap; ++i)
    if (static_cast<unsigned char>(static_cast<const volatile char*>(begin)[i]) != kPoison)
      fail("out-of-bounds write next to %s of shared memory", what);
}

void map_region() {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
  void* mapping = mmap(region, kRegion, PROT_READ | PROT_WRITE, region ? kFlags | MAP_FIXED : kFlags, -1, 0);
  if (mapping == MAP_FAILED) fail("no memory for shared memory");
  region = static_cast<char*>(mapping);
}

}  // namespace

void begin_block_shared(std::size_t dynamic_bytes, std::size_t limit) {
  // Under TSan a fresh mapping forgets the accesses of the block before.
  if (!region || tsan::active()) map_region();
  variables.clear();
  used = kGap;
  variable_bytes = 0;
  shared_limit = limit;
  asan::poison(region, kRegion);
  fill(region, kGap);
  dynamic_begin = region + kVariableRegion + kGap;
  dynamic_size = dynamic_bytes;
  asan::unpoison(dynamic_begin, dynamic_bytes);
  fill(dynamic_begin - kGap, dynamic_bytes + 2 * kGap);
}

void end_block_shared() {
  check_gap(region, "the first variable");
  for (const Variable& v : variables) check_gap(v.begin + v.bytes, "a variable");
  check_gap(dynamic_begin - kGap, "the beginning of the dynamic part");
  check_gap(dynamic_begin + dynamic_size, "the end of the dynamic part");
}

void* shared_variable(const void* key, std::size_t bytes) {
  for (const Variable& v : variables)
    if (v.key == key) return v.begin;
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  variable_bytes += rounded;
  if (variable_bytes > kSharedBytes) fail("the kernel declares more than 48 KiB of shared variables");
  if (variable_bytes + dynamic_size > shared_limit)
    fail("shared variables of %zu bytes and dynamic shared memory of %zu exceed the %zu that the kernel may use",
         variable_bytes, dynamic_size, shared_limit);
  char* begin = region + used;
  used += rounded + kGap;
  if (used > kVariableRegion) fail("the kernel declares too many shared variables");
  asan::unpoison(begin, bytes);
  fill(begin, rounded + kGap);
  variables.push_back({key, begin, bytes});
  return begin;
}

void* dynamic_shared() { return dynamic_begin; }
std::size_t dynamic_shared_bytes() { return dynamic_size; }

}  // namespace cuda_on_cpu
