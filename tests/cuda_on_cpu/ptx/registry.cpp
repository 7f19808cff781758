#include "registry.h"

#include <map>

#include "error.h"
#include "memory.h"

namespace ptx {

namespace {

std::map<std::string, const KernelCode*>& kernels() {
  static auto& result = *new std::map<std::string, const KernelCode*>;
  return result;
}

// Ends of module variables, by their beginnings.
std::map<const char*, const char*>& variables() {
  static auto& result = *new std::map<const char*, const char*>;
  return result;
}

const KernelCode* running = nullptr;

bool in_variable(const char* address, std::size_t bytes) {
  const auto next = variables().upper_bound(address);
  return next != variables().begin() && address + bytes <= std::prev(next)->second;
}

}  // namespace

Registration::Registration(const KernelCode& code) { kernels()[code.name] = &code; }

VariableRegistration::VariableRegistration(const void* address, std::size_t bytes) {
  const char* begin = static_cast<const char*>(address);
  variables()[begin] = begin + bytes;
}

const KernelCode* find_kernel(const std::string& mangled_name) {
  const auto found = kernels().find(mangled_name);
  return found == kernels().end() ? nullptr : found->second;
}

const KernelCode* running_kernel() { return running; }
void set_running_kernel(const KernelCode& code) { running = &code; }

void check_access(const KernelCode& code, int instruction, Space space, bool write, const void* address,
                  std::size_t bytes) {
  // Most accesses are to the allocation of the access before.
  static const cuda_on_cpu::Allocation* recent = nullptr;
  const char* begin = static_cast<const char*>(address);
  const Place& place = code.places[static_cast<std::size_t>(instruction)];
  const char* verb = write ? "write" : "read";
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0)
    cuda_on_cpu::fail("misaligned %s of %zu bytes at %s:%d", verb, bytes, place.file, place.line);

  if (space == Space::shared) {
    const char* shared = static_cast<const char*>(cuda_on_cpu::dynamic_shared());
    if (begin < shared || begin + bytes > shared + cuda_on_cpu::dynamic_shared_bytes())
      cuda_on_cpu::fail("out-of-bounds %s of shared memory at %s:%d: offset %td of %zu bytes", verb, place.file,
                        place.line, begin - shared, cuda_on_cpu::dynamic_shared_bytes());
    return;
  }
  const auto holds = [&](const cuda_on_cpu::Allocation* a) {
    return a && a->kind != cuda_on_cpu::MemoryKind::freed && begin >= a->begin && begin + bytes <= a->end();
  };
  if (holds(recent)) return;
  const cuda_on_cpu::Allocation* found = cuda_on_cpu::find_allocation(address);
  if (holds(found)) {
    recent = found;
    return;
  }
  if (found && found->kind == cuda_on_cpu::MemoryKind::freed)
    cuda_on_cpu::fail("%s of memory that was freed at %s:%d", verb, place.file, place.line);
  if (found)
    cuda_on_cpu::fail("out-of-bounds %s at %s:%d: offset %td of an allocation of %zu bytes", verb, place.file,
                      place.line, begin - found->begin, found->bytes);
  // A generic address may also be of shared or local memory.
  if (space != Space::generic && !in_variable(begin, bytes))
    cuda_on_cpu::fail("%s of %p at %s:%d, which is not device memory", verb, address, place.file, place.line);
}

}  // namespace ptx
