// Stream capture: which calls it takes, which it forbids, and which of those invalidate it. As the header of CUDA's
// runtime and the programming guide's chapter on graphs say; where they say nothing, a call is refused.
#pragma once

#include <memory>
#include <vector>

#include "cudart_api.h"

namespace cuda_on_cpu {

class Stream;
struct Event;
struct Graph;
struct Node;
struct Operation;
using StreamPointer = std::shared_ptr<Stream>;

// One sequence from cudaStreamBeginCapture to cudaStreamEndCapture.
struct Capture;

// A place in a capture: behind some of its nodes.
struct CapturedPlace {
  std::shared_ptr<Capture> capture;  // nullptr: in none
  std::vector<const Node*> nodes;
};

struct CaptureInfo {
  cudaStreamCaptureStatus status;
  unsigned long long id;
  cudaGraph_t graph;
};

cudaError_t begin_capture(const StreamPointer& stream, cudaStreamCaptureMode mode);
// Null if there is an error.
cudaError_t end_capture(const StreamPointer& stream, cudaGraph_t* graph);
CaptureInfo capture_info(const Stream& stream);
// Whether the capture that the stream is in began on it.
bool began_capture(const Stream& stream);
// Not while a stream that it would wait for is capturing.
bool default_stream_is_usable();

// How the calling thread is restricted by captures; returns what it was before.
cudaStreamCaptureMode exchange_thread_mode(cudaStreamCaptureMode mode);

// The functions below return the error of a call that a capture forbids, and then have invalidated that capture.

// Work for a stream.
cudaError_t check_use(const StreamPointer& stream);
// Work that cannot be captured.
cudaError_t check_not_capturing(const StreamPointer& stream, cudaError_t error);
// Waiting for something, or asking whether it is done.
cudaError_t check_wait_for(const StreamPointer& stream);
cudaError_t check_wait_for(const Event& event);
cudaError_t check_wait_for_device();
// A call that no stream sees, such as cudaMalloc.
cudaError_t check_unseen_call();
// A call that puts work on the legacy default stream and waits for it, such as cudaMemcpy.
cudaError_t check_synchronous_call();

// Has the stream wait for the event; if that is a captured one, the stream joins the capture.
cudaError_t wait_for_event(const StreamPointer& stream, const Event& event);
// Puts an operation on a stream, or into the graph that it captures.
void submit(const StreamPointer& stream, Operation operation);

}  // namespace cuda_on_cpu
