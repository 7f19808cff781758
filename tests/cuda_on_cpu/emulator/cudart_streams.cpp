// Streams and events.

#include <algorithm>
#include <chrono>

#include "capture.h"
#include "cudart_api.h"
#include "entry.h"
#include "error.h"
#include "stream.h"

namespace cuda_on_cpu {

namespace {

constexpr int kWorstPriority = 0;
constexpr int kBestPriority = -5;

cudaError_t create_stream_handle(cudaStream_t* handle, unsigned flags, int priority) {
  if (!handle || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
  const bool blocking = flags != cudaStreamNonBlocking;
  *handle = stream_handles().add(create_stream(blocking, std::clamp(priority, kBestPriority, kWorstPriority)));
  return cudaSuccess;
}

double now_in_milliseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

cudaError_t create_event(cudaEvent_t* handle, unsigned flags) {
  if (!handle) return cudaErrorInvalidValue;
  const auto event = std::make_shared<Event>();
  event->timed = !(flags & cudaEventDisableTiming);
  *handle = event_handles().add(event);
  return cudaSuccess;
}

cudaError_t record(Event& event, const StreamPointer& stream) {
  if (const cudaError_t refused = check_use(stream); refused != cudaSuccess) return refused;
  event.captured = stream->captured;
  if (event.captured.capture) return cudaSuccess;
  enqueue(stream, [time = event.milliseconds] { *time = now_in_milliseconds(); });
  event.place = end_of(stream);
  return cudaSuccess;
}

}  // namespace

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;  // NOLINT: everything below is C

extern "C" {

// Streams

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return enter([&] {
    if (least) *least = kWorstPriority;
    if (greatest) *greatest = kBestPriority;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return enter([&] { return create_stream_handle(stream, flags, priority); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return enter([&] { return create_stream_handle(stream, flags, kWorstPriority); });
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return enter([&] { return create_stream_handle(stream, cudaStreamDefault, kWorstPriority); });
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const auto destroy = [&](const StreamPointer& stream) {
    if (stream == default_stream()) return cudaErrorInvalidResourceHandle;
    if (began_capture(*stream)) fail("a stream was destroyed before the capture that began on it had ended");
    destroy_stream(stream);
    stream_handles().remove(handle);
    return cudaSuccess;
  };
  return enter_to_release([&] { return with_stream(handle, destroy); });
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  return enter_with_stream(handle, [&](const StreamPointer& stream) {
    *priority = stream->priority();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return enter_with_stream(handle, [&](const StreamPointer& stream) {
    const cudaError_t refused = check_wait_for(stream);
    if (refused == cudaSuccess) finish(end_of(stream));
    return refused;
  });
}

// Who asks is taken to ask again: each question lets some stream advance.
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return enter_with_stream(handle, [&](const StreamPointer& stream) {
    if (const cudaError_t refused = check_wait_for(stream); refused != cudaSuccess) return refused;
    if (!stream->idle()) advance_any();
    return stream->idle() ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned flags) {
  return enter_with_stream(handle, [&](const StreamPointer& stream) {
    return with_event(event_handle, [&](const EventPointer& event) {
      if (const cudaError_t refused = check_use(stream); refused != cudaSuccess) return refused;
      return flags == cudaEventWaitDefault ? wait_for_event(stream, *event) : cudaErrorNotSupported;
    });
  });
}

// Events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return enter([&] { return create_event(event, flags); });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return enter([&] { return create_event(event, cudaEventDefault); });
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return enter_to_release([&] {
    return with_event(handle, [&](const EventPointer&) {
      event_handles().remove(handle);
      return cudaSuccess;
    });
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event_handle, cudaStream_t stream_handle) {
  return enter_with_stream(stream_handle, [&](const StreamPointer& stream) {
    return with_event(event_handle, [&](const EventPointer& event) { return record(*event, stream); });
  });
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event_handle, cudaStream_t stream_handle, unsigned flags) {
  return enter_with_stream(stream_handle, [&](const StreamPointer& stream) {
    return with_event(event_handle, [&](const EventPointer& event) {
      return flags == cudaEventRecordDefault ? record(*event, stream) : cudaErrorNotSupported;
    });
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  return enter_with_event(handle, [&](const EventPointer& event) {
    const cudaError_t refused = check_wait_for(*event);
    if (refused == cudaSuccess) finish(event->place);
    return refused;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return enter_with_event(handle, [&](const EventPointer& event) {
    if (const cudaError_t refused = check_wait_for(*event); refused != cudaSuccess) return refused;
    if (!event->reached()) advance_any();
    return event->reached() ? cudaSuccess : cudaErrorNotReady;
  });
}

// The time is the CPU's: it says nothing about a GPU.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from_handle, cudaEvent_t to_handle) {
  return enter_with_event(from_handle, [&](const EventPointer& from) {
    return with_event(to_handle, [&](const EventPointer& to) {
      for (const EventPointer& event : {from, to}) {
        if (event->captured.capture) return check_wait_for(*event);
        if (!event->timed || !event->place.stream) return cudaErrorInvalidResourceHandle;
      }
      if (!from->reached() || !to->reached()) return cudaErrorNotReady;
      *milliseconds = static_cast<float>(*to->milliseconds - *from->milliseconds);
      return cudaSuccess;
    });
  });
}

}  // extern "C"
