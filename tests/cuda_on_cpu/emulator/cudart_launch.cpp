// Launches of kernels and of host functions.

#include <algorithm>
#include <map>

#include "capture.h"
#include "cudart_api.h"
#include "entry.h"
#include "error.h"
#include "launch.h"
#include "memory.h"
#include "operation.h"
#include "shared_memory.h"

namespace cuda_on_cpu {

namespace {

// The dynamic shared memory that cudaFuncSetAttribute has granted, where that is more than 48 KiB, by kernel.
std::map<const void*, std::size_t>& granted_shared_bytes() {
  static auto& result = *new std::map<const void*, std::size_t>;
  return result;
}

bool valid(const cudaLaunchConfig_t& c, const Kernel& kernel) {
  const auto g = c.gridDim;
  const auto b = c.blockDim;
  const bool grid = g.x >= 1 && g.x <= 0x7fffffff && g.y >= 1 && g.y <= 65535 && g.z >= 1 && g.z <= 65535;
  const bool block = b.x >= 1 && b.x <= 1024 && b.y >= 1 && b.y <= 1024 && b.z >= 1 && b.z <= 64;
  return grid && block && std::size_t{b.x} * b.y * b.z <= kernel.max_threads;
}

bool attributes_supported(const cudaLaunchConfig_t& config) {
  return std::all_of(config.attrs, config.attrs + config.numAttrs, [](const cudaLaunchAttribute& attribute) {
    return attribute.id == cudaLaunchAttributeIgnore || attribute.id == cudaLaunchAttributePriority;
  });
}

}  // namespace

cudaError_t make_kernel_operation(const Kernel& kernel, const cudaLaunchConfig_t& config,
                                  std::shared_ptr<const KernelCall> call, Operation* operation) {
  call->check_pointers();
  if (!valid(config, kernel)) return cudaErrorInvalidConfiguration;
  if (!attributes_supported(config)) return cudaErrorNotSupported;
  const auto granted = granted_shared_bytes().find(kernel.function);
  const bool opted_in = granted != granted_shared_bytes().end();
  const std::size_t shared_bytes = config.dynamicSmemBytes + kernel.static_shared_bytes;
  const std::size_t shared_limit = opted_in ? kSharedBytesOptIn : kSharedBytes;
  if (opted_in && config.dynamicSmemBytes > granted->second) return cudaErrorInvalidValue;
  if (shared_bytes > shared_limit) return cudaErrorInvalidValue;
  const auto launch = std::make_shared<const KernelLaunch>(
      KernelLaunch{kernel, {config.gridDim, config.blockDim, shared_bytes, shared_limit, std::move(call)}});
  operation->type = cudaGraphNodeTypeKernel;
  operation->run = [launch] { run(launch->grid); };
  operation->check = [launch] { launch->grid.call->check_pointers(); };
  operation->kernel = launch;
  return cudaSuccess;
}

cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const Kernel& kernel,
                          std::shared_ptr<const KernelCall> call) {
  const auto put = [&](const StreamPointer& stream) {
    Operation operation = {};
    const cudaError_t invalid = make_kernel_operation(kernel, config, std::move(call), &operation);
    if (invalid != cudaSuccess) return invalid;
    const cudaError_t refused = check_use(stream);
    if (refused == cudaSuccess) submit(stream, std::move(operation));
    return refused;
  };
  return enter_with_stream(config.stream, put, "cudaLaunchKernelExC");
}

void check_kernel_pointer(int position, const void* pointer) {
  if (!pointer) return;
  switch (kind_of(pointer)) {
    case MemoryKind::host:
      fail("argument %d of the kernel, %p, points to host memory or nowhere, not to device memory", position, pointer);
    case MemoryKind::freed:
      fail("argument %d of the kernel points to device memory that was freed", position);
    default:
      return;
  }
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;  // NOLINT: everything below is C

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  return enter([&] {
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<std::size_t>(value) > kSharedBytesOptIn)
      return cudaErrorInvalidValue;
    const auto bytes = static_cast<std::size_t>(value);
    if (bytes > kSharedBytes) granted_shared_bytes()[function] = bytes;
    return cudaSuccess;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  return enter_with_stream(handle, [&](const StreamPointer& stream) {
    if (!function) return cudaErrorInvalidValue;
    if (const cudaError_t refused = check_use(stream); refused != cudaSuccess) return refused;
    const auto call = [function, data] { function(data); };
    submit(stream, {cudaGraphNodeTypeHost, [call] { run_host_function(call); }});
    return cudaSuccess;
  });
}

}  // extern "C"
