// The entry points of libcudart that programs call. State is global; a lock lets any thread of the process call.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "block.h"
#include "error.h"
#include "launch.h"
#include "memory.h"
#include "shared_memory.h"
#include "stream.h"

namespace cuda_on_cpu {

namespace {

constexpr int kRuntimeVersion = CUDART_VERSION;
constexpr int kWorstPriority = 0;
constexpr int kBestPriority = -5;

std::recursive_mutex& runtime_lock() {
  static auto& result = *new std::recursive_mutex;
  return result;
}

thread_local cudaError_t last_error = cudaSuccess;

// One call of an entry point: holds the lock, and keeps what cudaGetLastError will say.
class Call {
 public:
  cudaError_t done(cudaError_t error = cudaSuccess) const {
    if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
    return error;
  }

 private:
  std::lock_guard<std::recursive_mutex> lock_{runtime_lock()};
};

// Streams and events by handle.
std::map<cudaStream_t, StreamPointer>& stream_handles() {
  static auto& result = *new std::map<cudaStream_t, StreamPointer>;
  return result;
}

struct TimedEvent : Event {
  bool timed = true;
};

std::set<TimedEvent*>& event_handles() {
  static auto& result = *new std::set<TimedEvent*>;
  return result;
}

// nullptr if there is no such stream.
StreamPointer find_stream(cudaStream_t handle) {
  if (!handle || handle == cudaStreamLegacy) return default_stream();
  const auto& handles = stream_handles();
  const auto found = handles.find(handle);
  return found == handles.end() ? nullptr : found->second;
}

TimedEvent* find_event(cudaEvent_t handle) {
  auto* event = reinterpret_cast<TimedEvent*>(handle);
  return event_handles().count(event) ? event : nullptr;
}

cudaError_t create_stream_handle(cudaStream_t* handle, unsigned flags, int priority) {
  if (!handle || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
  const StreamPointer stream =
      create_stream(flags != cudaStreamNonBlocking, std::clamp(priority, kBestPriority, kWorstPriority));
  *handle = reinterpret_cast<cudaStream_t>(stream.get());
  stream_handles()[*handle] = stream;
  return cudaSuccess;
}

// The pointer's kind. Freed memory has no business in any call.
MemoryKind living_kind(const char* what, const void* pointer) {
  const MemoryKind kind = kind_of(pointer);
  if (kind == MemoryKind::freed) fail("%s of memory that was freed", what);
  return kind;
}

// Rows of bytes, `pitch` apart.
struct Rows {
  char* data;
  std::size_t pitch;
};

void copy_rows(Rows to, Rows from, std::size_t width, std::size_t height) {
  const DeviceAccess access;
  for (std::size_t y = 0; y < height; ++y) std::memmove(to.data + y * to.pitch, from.data + y * from.pitch, width);
}

bool direction_is(cudaMemcpyKind kind, bool from_device, bool to_device) {
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !from_device && !to_device;
    case cudaMemcpyHostToDevice:
      return !from_device && to_device;
    case cudaMemcpyDeviceToHost:
      return from_device && !to_device;
    case cudaMemcpyDeviceToDevice:
      return from_device && to_device;
    default:
      return kind == cudaMemcpyDefault;
  }
}

// As CUDA does it: from pageable memory, the bytes are taken at once; to pageable memory, the call returns when they
// have arrived; otherwise the copy happens when the stream comes to it.
cudaError_t copy(Rows to, Rows from, std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t handle) {
  const StreamPointer stream = find_stream(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (width == 0 || height == 0) return cudaSuccess;
  if (height > 1 && (to.pitch < width || from.pitch < width)) return cudaErrorInvalidPitchValue;
  const MemoryKind to_kind = living_kind("copy", to.data);
  const MemoryKind from_kind = living_kind("copy", from.data);
  if (!direction_is(kind, from_kind == MemoryKind::device, to_kind == MemoryKind::device)) return cudaErrorInvalidValue;
  check_range("copy", to.data, (height - 1) * to.pitch + width);
  check_range("copy", from.data, (height - 1) * from.pitch + width);

  if (from_kind == MemoryKind::host) {
    auto staged = std::make_shared<std::vector<char>>(width * height);
    copy_rows({staged->data(), width}, from, width, height);
    enqueue(stream, [=] { copy_rows(to, {staged->data(), width}, width, height); });
  } else {
    enqueue(stream, [=] { copy_rows(to, from, width, height); });
  }
  if (to_kind == MemoryKind::host) finish(end_of(stream));
  return cudaSuccess;
}

Rows rows(const void* data, std::size_t pitch) { return {static_cast<char*>(const_cast<void*>(data)), pitch}; }

cudaError_t fill(void* to, int value, std::size_t bytes, cudaStream_t handle) {
  const StreamPointer stream = find_stream(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (bytes == 0) return cudaSuccess;
  if (living_kind("memset", to) == MemoryKind::host) return cudaErrorInvalidValue;
  check_range("memset", to, bytes);
  enqueue(stream, [=] {
    const DeviceAccess access;
    std::memset(to, value, bytes);
  });
  return cudaSuccess;
}

cudaError_t allocate_into(void** pointer, std::size_t bytes, MemoryKind kind) {
  if (!pointer) return cudaErrorInvalidValue;
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  *pointer = allocate(kind, bytes);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t free_memory(void* pointer, MemoryKind kind) {
  if (!pointer) return cudaSuccess;
  finish_all();
  return release(kind, pointer) ? cudaSuccess : cudaErrorInvalidValue;
}

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

double now_in_milliseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

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
      return 0;
    default:
      return -1;
  }
}

}  // namespace

cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const Kernel& kernel, std::function<void()> thread) {
  const Call call;
  const StreamPointer stream = find_stream(config.stream);
  if (!stream) return call.done(cudaErrorInvalidResourceHandle);
  if (!valid(config, kernel)) return call.done(cudaErrorInvalidConfiguration);
  if (!attributes_supported(config)) return call.done(cudaErrorNotSupported);
  const auto granted = granted_shared_bytes().find(kernel.function);
  const bool opted_in = granted != granted_shared_bytes().end();
  const std::size_t shared_bytes = config.dynamicSmemBytes + kernel.static_shared_bytes;
  const std::size_t shared_limit = opted_in ? kSharedBytesOptIn : kSharedBytes;
  if (opted_in && config.dynamicSmemBytes > granted->second) return call.done(cudaErrorInvalidValue);
  if (shared_bytes > shared_limit) return call.done(cudaErrorInvalidValue);
  const Grid grid{config.gridDim, config.blockDim, shared_bytes, shared_limit, std::move(thread)};
  enqueue(stream, [grid] { run(grid); });
  return call.done();
}

void check_kernel_pointer(int position, const void* pointer) {
  const Call call;
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

// Devices

cudaError_t cudaGetDeviceCount(int* count) {
  const Call call;
  *count = 1;
  return call.done();
}

cudaError_t cudaSetDevice(int device) {
  const Call call;
  return call.done(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int* device) {
  const Call call;
  *device = 0;
  return call.done();
}

cudaError_t cudaDeviceSynchronize() {
  const Call call;
  finish_all();
  return call.done();
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const Call call;
  if (device != 0) return call.done(cudaErrorInvalidDevice);
  const int known = device_attribute(attribute);
  if (known < 0) return call.done(cudaErrorInvalidValue);
  *value = known;
  return call.done();
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  const Call call;
  if (least) *least = kWorstPriority;
  if (greatest) *greatest = kBestPriority;
  return call.done();
}

cudaError_t cudaDriverGetVersion(int* version) {
  const Call call;
  *version = kRuntimeVersion;
  return call.done();
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  const Call call;
  *version = kRuntimeVersion;
  return call.done();
}

// Errors

cudaError_t cudaGetLastError() {
  const Call call;
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() {
  const Call call;
  return last_error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidPitchValue:
      return "cudaErrorInvalidPitchValue";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    default:
      return "unrecognized error code";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidPitchValue:
      return "invalid pitch argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorNotSupported:
      return "operation not supported";
    default:
      return "unrecognized error code";
  }
}

// Memory

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  const Call call;
  return call.done(allocate_into(pointer, bytes, MemoryKind::device));
}

cudaError_t cudaFree(void* pointer) {
  const Call call;
  return call.done(free_memory(pointer, MemoryKind::device));
}

cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  const Call call;
  return call.done(allocate_into(pointer, bytes, MemoryKind::pinned));
}

cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) { return cudaMallocHost(pointer, bytes); }

cudaError_t cudaFreeHost(void* pointer) {
  const Call call;
  return call.done(free_memory(pointer, MemoryKind::pinned));
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const Call call;
  *attributes = {};
  void* const address = const_cast<void*>(pointer);
  switch (kind_of(pointer)) {
    case MemoryKind::device:
      attributes->type = cudaMemoryTypeDevice;
      attributes->devicePointer = address;
      break;
    case MemoryKind::pinned:
      attributes->type = cudaMemoryTypeHost;
      attributes->devicePointer = attributes->hostPointer = address;
      break;
    default:
      attributes->type = cudaMemoryTypeUnregistered;
      attributes->device = -1;
      attributes->hostPointer = address;
      break;
  }
  return call.done();
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const Call call;
  return call.done(copy(rows(to, bytes), rows(from, bytes), bytes, 1, kind, stream));
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const Call call;
  const cudaError_t error = copy(rows(to, bytes), rows(from, bytes), bytes, 1, kind, nullptr);
  finish(end_of(default_stream()));
  return call.done(error);
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  const Call call;
  return call.done(copy(rows(to, to_pitch), rows(from, from_pitch), width, height, kind, stream));
}

cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                         std::size_t height, cudaMemcpyKind kind) {
  const Call call;
  const cudaError_t error = copy(rows(to, to_pitch), rows(from, from_pitch), width, height, kind, nullptr);
  finish(end_of(default_stream()));
  return call.done(error);
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  const Call call;
  return call.done(fill(to, value, bytes, stream));
}

cudaError_t cudaMemset(void* to, int value, std::size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }

// Streams

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  const Call call;
  return call.done(create_stream_handle(stream, flags, priority));
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, kWorstPriority);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const Call call;
  const StreamPointer stream = find_stream(handle);
  if (!stream || stream == default_stream()) return call.done(cudaErrorInvalidResourceHandle);
  destroy_stream(stream);
  stream_handles().erase(handle);
  return call.done();
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  const Call call;
  const StreamPointer stream = find_stream(handle);
  if (!stream) return call.done(cudaErrorInvalidResourceHandle);
  *priority = stream->priority();
  return call.done();
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const Call call;
  const StreamPointer stream = find_stream(handle);
  if (!stream) return call.done(cudaErrorInvalidResourceHandle);
  finish(end_of(stream));
  return call.done();
}

// Who asks is taken to ask again: each question lets some stream advance.
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  const Call call;
  const StreamPointer stream = find_stream(handle);
  if (!stream) return call.done(cudaErrorInvalidResourceHandle);
  if (!stream->idle()) advance_any();
  return call.done(stream->idle() ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  const Call call;
  const StreamPointer stream = find_stream(handle);
  const TimedEvent* event = find_event(event_handle);
  if (!stream || !event) return call.done(cudaErrorInvalidResourceHandle);
  enqueue(stream, [] {}, {event->place()});
  return call.done();
}

// Events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned flags) {
  const Call call;
  auto* event = new TimedEvent;
  event->timed = !(flags & cudaEventDisableTiming);
  event_handles().insert(event);
  *handle = reinterpret_cast<cudaEvent_t>(event);
  return call.done();
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  const Call call;
  TimedEvent* event = find_event(handle);
  if (!event) return call.done(cudaErrorInvalidResourceHandle);
  event_handles().erase(event);
  delete event;
  return call.done();
}

cudaError_t cudaEventRecord(cudaEvent_t event_handle, cudaStream_t stream_handle) {
  const Call call;
  const StreamPointer stream = find_stream(stream_handle);
  TimedEvent* event = find_event(event_handle);
  if (!stream || !event) return call.done(cudaErrorInvalidResourceHandle);
  enqueue(stream, [time = event->milliseconds] { *time = now_in_milliseconds(); });
  event->record(end_of(stream));
  return call.done();
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  const Call call;
  const TimedEvent* event = find_event(handle);
  if (!event) return call.done(cudaErrorInvalidResourceHandle);
  finish(event->place());
  return call.done();
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  const Call call;
  const TimedEvent* event = find_event(handle);
  if (!event) return call.done(cudaErrorInvalidResourceHandle);
  if (!event->reached()) advance_any();
  return call.done(event->reached() ? cudaSuccess : cudaErrorNotReady);
}

// The time is the CPU's: it says nothing about a GPU.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from_handle, cudaEvent_t to_handle) {
  const Call call;
  const TimedEvent* from = find_event(from_handle);
  const TimedEvent* to = find_event(to_handle);
  if (!from || !to || !from->timed || !to->timed || !from->place().stream || !to->place().stream)
    return call.done(cudaErrorInvalidResourceHandle);
  if (!from->reached() || !to->reached()) return call.done(cudaErrorNotReady);
  *milliseconds = static_cast<float>(*to->milliseconds - *from->milliseconds);
  return call.done();
}

// Kernels

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const Call call;
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return call.done();
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<std::size_t>(value) > kSharedBytesOptIn)
    return call.done(cudaErrorInvalidValue);
  const auto bytes = static_cast<std::size_t>(value);
  if (bytes > kSharedBytes) granted_shared_bytes()[function] = bytes;
  return call.done();
}

}  // extern "C"
