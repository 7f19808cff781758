// Memory, and copies to and from it.

#include <cstring>
#include <vector>

#include "capture.h"
#include "cudart_api.h"
#include "entry.h"
#include "error.h"
#include "memory.h"
#include "operation.h"

namespace cuda_on_cpu {

namespace {

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
  open_device_memory();
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

Rows rows(const void* data, std::size_t pitch) { return {static_cast<char*>(const_cast<void*>(data)), pitch}; }

// As CUDA does it: from pageable memory, the bytes are taken at once; to pageable memory, the call returns when they
// have arrived; otherwise the copy happens when the stream comes to it. So pageable memory cannot be captured.
cudaError_t copy(Rows to, Rows from, std::size_t width, std::size_t height, cudaMemcpyKind kind,
                 const StreamPointer& stream) {
  if (const cudaError_t refused = check_use(stream); refused != cudaSuccess) return refused;
  if (width == 0 || height == 0) return cudaSuccess;
  if (height > 1 && (to.pitch < width || from.pitch < width)) return cudaErrorInvalidPitchValue;
  const MemoryKind to_kind = living_kind("copy", to.data);
  const MemoryKind from_kind = living_kind("copy", from.data);
  if (!direction_is(kind, from_kind == MemoryKind::device, to_kind == MemoryKind::device)) return cudaErrorInvalidValue;
  const auto check = [=] {
    check_range("copy", to.data, (height - 1) * to.pitch + width);
    check_range("copy", from.data, (height - 1) * from.pitch + width);
  };
  check();
  if (from_kind == MemoryKind::host || to_kind == MemoryKind::host) {
    const cudaError_t refused = check_not_capturing(stream, cudaErrorStreamCaptureUnsupported);
    if (refused != cudaSuccess) return refused;
  }

  if (from_kind == MemoryKind::host) {
    auto staged = std::make_shared<std::vector<char>>(width * height);
    copy_rows({staged->data(), width}, from, width, height);
    enqueue(stream, [=] { copy_rows(to, {staged->data(), width}, width, height); });
  } else {
    submit(stream, {cudaGraphNodeTypeMemcpy, [=] { copy_rows(to, from, width, height); }, check});
  }
  if (to_kind == MemoryKind::host) finish(end_of(stream));
  return cudaSuccess;
}

cudaError_t fill(void* to, int value, std::size_t bytes, const StreamPointer& stream) {
  if (const cudaError_t refused = check_use(stream); refused != cudaSuccess) return refused;
  if (bytes == 0) return cudaSuccess;
  if (living_kind("memset", to) == MemoryKind::host) return cudaErrorInvalidValue;
  const auto check = [=] { check_range("memset", to, bytes); };
  check();
  const auto run = [=] {
    open_device_memory();
    std::memset(to, value, bytes);
  };
  submit(stream, {cudaGraphNodeTypeMemset, run, check});
  return cudaSuccess;
}

// On the default stream, and waits for it.
template <typename Work>
cudaError_t synchronously(Work work) {
  cudaError_t error = check_synchronous_call();
  if (error == cudaSuccess) error = work(default_stream());
  if (error == cudaSuccess) finish(end_of(default_stream()));
  return error;
}

cudaError_t allocate_into(void** pointer, std::size_t bytes, MemoryKind kind, unsigned flags = 0) {
  if (!pointer) return cudaErrorInvalidValue;
  if (const cudaError_t refused = check_unseen_call(); refused != cudaSuccess) return refused;
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  *pointer = allocate(kind, bytes, flags);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t free_memory(void* pointer, MemoryKind kind) {
  if (!pointer) return cudaSuccess;
  if (const cudaError_t refused = check_unseen_call(); refused != cudaSuccess) return refused;
  finish_all();
  return release(kind, pointer) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaPointerAttributes attributes_of(const void* pointer) {
  cudaPointerAttributes result = {};
  void* const address = const_cast<void*>(pointer);
  switch (kind_of(pointer)) {
    case MemoryKind::device:
      result.type = cudaMemoryTypeDevice;
      result.devicePointer = address;
      break;
    case MemoryKind::pinned:
      result.type = cudaMemoryTypeHost;
      result.devicePointer = result.hostPointer = address;
      break;
    default:
      result.type = cudaMemoryTypeUnregistered;
      result.device = -1;
      result.hostPointer = address;
      break;
  }
  return result;
}

}  // namespace

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;  // NOLINT: everything below is C

extern "C" {

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  return enter([&] { return allocate_into(pointer, bytes, MemoryKind::device); });
}

cudaError_t cudaFree(void* pointer) {
  return enter_to_release([&] { return free_memory(pointer, MemoryKind::device); });
}

cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  return enter([&] { return allocate_into(pointer, bytes, MemoryKind::pinned); });
}

cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned flags) {
  return enter([&] {
    constexpr unsigned kKnown = cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
    return flags & ~kKnown ? cudaErrorInvalidValue : allocate_into(pointer, bytes, MemoryKind::pinned, flags);
  });
}

cudaError_t cudaFreeHost(void* pointer) {
  return enter_to_release([&] { return free_memory(pointer, MemoryKind::pinned); });
}

// With unified addressing all pinned memory is mapped, at the host's address.
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  return enter([&] {
    if (!device || flags != 0 || kind_of(host) != MemoryKind::pinned) return cudaErrorInvalidValue;
    *device = host;
    return cudaSuccess;
  });
}

cudaError_t cudaHostGetFlags(unsigned* flags, void* host) {
  return enter([&] {
    if (!flags || kind_of(host) != MemoryKind::pinned) return cudaErrorInvalidValue;
    *flags = find_allocation(host)->flags;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return enter([&] {
    if (!attributes) return cudaErrorInvalidValue;
    *attributes = attributes_of(pointer);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return enter_with_stream(
      stream, [&](const StreamPointer& on) { return copy(rows(to, bytes), rows(from, bytes), bytes, 1, kind, on); });
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return enter([&] {
    return synchronously(
        [&](const StreamPointer& on) { return copy(rows(to, bytes), rows(from, bytes), bytes, 1, kind, on); });
  });
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return enter_with_stream(stream, [&](const StreamPointer& on) {
    return copy(rows(to, to_pitch), rows(from, from_pitch), width, height, kind, on);
  });
}

cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                         std::size_t height, cudaMemcpyKind kind) {
  return enter([&] {
    return synchronously([&](const StreamPointer& on) {
      return copy(rows(to, to_pitch), rows(from, from_pitch), width, height, kind, on);
    });
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return enter_with_stream(stream, [&](const StreamPointer& on) { return fill(to, value, bytes, on); });
}

// Not synchronous: but it uses the default stream, which no capture may wait for.
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return enter([&] { return fill(to, value, bytes, default_stream()); });
}

}  // extern "C"
