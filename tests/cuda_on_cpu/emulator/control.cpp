#include "control.h"

#include <map>
#include <string>
#include <string_view>

#include "graph.h"
#include "memory.h"
#include "runtime.h"
#include "stream.h"

namespace cuda_on_cpu {

namespace {

struct Control {
  std::map<std::string, unsigned long long, std::less<>> calls;  // by entry point
  unsigned long long all_calls = 0;
  unsigned long long until_failure = 0;  // calls, the failing one among them; 0 if none is to fail
  cudaError_t error = cudaSuccess;
  bool sticky = false;
  std::string failed;  // the first call that did
};

Control& control() {
  static auto& result = *new Control;
  return result;
}

}  // namespace

cudaError_t count_call(const char* name) {
  Control& c = control();
  ++c.all_calls;
  const auto found = c.calls.find(std::string_view(name));
  ++(found == c.calls.end() ? c.calls[name] : found->second);
  if (c.until_failure == 0 || --c.until_failure > 0) return cudaSuccess;
  if (c.failed.empty()) c.failed = name;
  if (c.sticky) c.until_failure = 1;
  return c.error;
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;  // NOLINT: everything below is C

void cuda_on_cpu_fail_call(unsigned long long n, int error, int sticky) {
  const Lock lock;
  control().until_failure = n;
  control().error = static_cast<cudaError_t>(error);
  control().sticky = sticky != 0;
  if (n) control().failed.clear();
}

const char* cuda_on_cpu_failed_call() {
  const Lock lock;
  return control().failed.c_str();
}

unsigned long long cuda_on_cpu_calls(const char* name) {
  const Lock lock;
  if (!name) return control().all_calls;
  const auto found = control().calls.find(std::string_view(name));
  return found == control().calls.end() ? 0 : found->second;
}

void cuda_on_cpu_reset_calls() {
  const Lock lock;
  control().calls.clear();
  control().all_calls = 0;
}

long long cuda_on_cpu_live(const char* what) {
  const Lock lock;
  const Usage device = usage(MemoryKind::device);
  const Usage pinned = usage(MemoryKind::pinned);
  const std::map<std::string_view, std::size_t> known = {
      {"device_bytes", device.bytes},       {"device_allocations", device.allocations},
      {"pinned_bytes", pinned.bytes},       {"pinned_allocations", pinned.allocations},
      {"streams", stream_handles().size()}, {"events", event_handles().size()},
      {"graphs", graph_handles().size()},   {"graph_execs", graph_exec_handles().size()},
  };
  const auto found = known.find(what);
  return found == known.end() ? -1 : static_cast<long long>(found->second);
}
