// Entry points whose first step is to find what a handle stands for.
#pragma once

#include "runtime.h"
#include "stream.h"

namespace cuda_on_cpu {

template <typename Work>
cudaError_t with_stream(cudaStream_t handle, Work work) {
  const bool is_default = !handle || handle == cudaStreamLegacy;
  const StreamPointer stream = is_default ? default_stream() : stream_handles().find(handle);
  return stream ? work(stream) : cudaErrorInvalidResourceHandle;
}

template <typename Work>
cudaError_t with_event(cudaEvent_t handle, Work work) {
  const EventPointer event = event_handles().find(handle);
  return event ? work(event) : cudaErrorInvalidResourceHandle;
}

template <typename Work>
cudaError_t enter_with_stream(cudaStream_t handle, Work work, const char* name = __builtin_FUNCTION()) {
  return enter([&] { return with_stream(handle, work); }, name);
}

template <typename Work>
cudaError_t enter_with_event(cudaEvent_t handle, Work work, const char* name = __builtin_FUNCTION()) {
  return enter([&] { return with_event(handle, work); }, name);
}

}  // namespace cuda_on_cpu
