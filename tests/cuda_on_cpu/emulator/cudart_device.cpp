// The device and its limits.

#include <algorithm>
#include <cstring>

#include "capture.h"
#include "cudart_api.h"
#include "memory.h"
#include "options.h"
#include "runtime.h"
#include "shared_memory.h"
#include "stream.h"

namespace cuda_on_cpu {

namespace {

constexpr int kRuntimeVersion = CUDART_VERSION;

// -1 if the attribute is not one of those that programs ask for.
int device_attribute(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxBlockDimX:
      return 1024;
    case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
      return 65535;
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return static_cast<int>(kSharedBytes);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return static_cast<int>(kSharedBytesOptIn);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 164 << 10;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return 1024;
    case cudaDevAttrTotalConstantMemory:
      return 64 << 10;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxRegistersPerBlock:
      return 65536;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 1536;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return 16;
    case cudaDevAttrMultiProcessorCount:
      return 16;
    case cudaDevAttrL2CacheSize:
      return 4 << 20;
    case cudaDevAttrComputeCapabilityMajor:
      return 8;
    case cudaDevAttrComputeCapabilityMinor:
      return 7;
    case cudaDevAttrUnifiedAddressing:
      return 1;
    case cudaDevAttrCanMapHostMemory:
      return 1;
    case cudaDevAttrConcurrentKernels:
      return 1;
    case cudaDevAttrAsyncEngineCount:
      return 2;
    case cudaDevAttrStreamPrioritiesSupported:
      return 1;
    case cudaDevAttrMemoryPoolsSupported:
      return 0;
    case cudaDevAttrCooperativeLaunch:
      return 0;
    case cudaDevAttrManagedMemory:
      return 0;
    case cudaDevAttrIntegrated:
      return options().integrated;
    default:
      return -1;
  }
}

cudaDeviceProp device_properties() {
  cudaDeviceProp p = {};
  std::strcpy(p.name, "cuda_on_cpu");
  p.major = device_attribute(cudaDevAttrComputeCapabilityMajor);
  p.minor = device_attribute(cudaDevAttrComputeCapabilityMinor);
  p.totalGlobalMem = kDeviceBytes;
  p.totalConstMem = static_cast<std::size_t>(device_attribute(cudaDevAttrTotalConstantMemory));
  p.sharedMemPerBlock = kSharedBytes;
  p.sharedMemPerBlockOptin = kSharedBytesOptIn;
  p.sharedMemPerMultiprocessor =
      static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  p.reservedSharedMemPerBlock = static_cast<std::size_t>(device_attribute(cudaDevAttrReservedSharedMemoryPerBlock));
  p.regsPerBlock = device_attribute(cudaDevAttrMaxRegistersPerBlock);
  p.regsPerMultiprocessor = device_attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
  p.warpSize = device_attribute(cudaDevAttrWarpSize);
  p.maxThreadsPerBlock = device_attribute(cudaDevAttrMaxThreadsPerBlock);
  p.maxThreadsPerMultiProcessor = device_attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  p.maxBlocksPerMultiProcessor = device_attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
  for (int axis = 0; axis < 3; ++axis) {
    p.maxThreadsDim[axis] = device_attribute(static_cast<cudaDeviceAttr>(cudaDevAttrMaxBlockDimX + axis));
    p.maxGridSize[axis] = device_attribute(static_cast<cudaDeviceAttr>(cudaDevAttrMaxGridDimX + axis));
  }
  p.multiProcessorCount = device_attribute(cudaDevAttrMultiProcessorCount);
  p.l2CacheSize = device_attribute(cudaDevAttrL2CacheSize);
  p.asyncEngineCount = device_attribute(cudaDevAttrAsyncEngineCount);
  p.concurrentKernels = device_attribute(cudaDevAttrConcurrentKernels);
  p.unifiedAddressing = device_attribute(cudaDevAttrUnifiedAddressing);
  p.canMapHostMemory = device_attribute(cudaDevAttrCanMapHostMemory);
  p.streamPrioritiesSupported = device_attribute(cudaDevAttrStreamPrioritiesSupported);
  p.integrated = device_attribute(cudaDevAttrIntegrated);
  return p;
}

cudaError_t give(int* to, int value) {
  if (!to) return cudaErrorInvalidValue;
  *to = value;
  return cudaSuccess;
}

}  // namespace

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;  // NOLINT: everything below is C

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  return enter([&] { return give(count, 1); });
}

cudaError_t cudaSetDevice(int device) {
  return enter([&] { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; });
}

cudaError_t cudaGetDevice(int* device) {
  return enter([&] { return give(device, 0); });
}

cudaError_t cudaDeviceSynchronize() {
  return enter([] {
    const cudaError_t refused = check_wait_for_device();
    if (refused == cudaSuccess) finish_all();
    return refused;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return enter([&] {
    if (device != 0) return cudaErrorInvalidDevice;
    const int known = device_attribute(attribute);
    return known < 0 ? cudaErrorInvalidValue : give(value, known);
  });
}

// The header may call it by another name.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return enter([&] {
    if (device != 0) return cudaErrorInvalidDevice;
    if (!properties) return cudaErrorInvalidValue;
    *properties = device_properties();
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return enter([&] {
    if (!free || !total) return cudaErrorInvalidValue;
    *total = kDeviceBytes;
    *free = kDeviceBytes - usage(MemoryKind::device).bytes;
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  return enter([&] { return give(version, kRuntimeVersion); });
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  return enter([&] { return give(version, kRuntimeVersion); });
}

}  // extern "C"
