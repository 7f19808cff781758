#include "capture.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "graph.h"

namespace cuda_on_cpu {

struct Capture {
  cudaStreamCaptureMode mode;
  const Stream* origin;
  std::thread::id thread = std::this_thread::get_id();
  unsigned long long id;
  cudaGraph_t handle = nullptr;
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  bool invalidated = false;
  bool ended = false;
};

namespace {

std::vector<std::shared_ptr<Capture>>& captures() {
  static auto& result = *new std::vector<std::shared_ptr<Capture>>;
  return result;
}

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

// The error, after invalidating what `applies` to of the captures that are under way; success if that is nothing.
template <typename Applies>
cudaError_t invalidate(cudaError_t error, Applies applies) {
  cudaError_t result = cudaSuccess;
  for (const auto& capture : captures()) {
    if (!applies(*capture)) continue;
    capture->invalidated = true;
    result = error;
  }
  return result;
}

cudaError_t invalidate(const std::shared_ptr<Capture>& capture, cudaError_t error) {
  return invalidate(error, [&](const Capture& other) { return &other == capture.get(); });
}

// A capturing stream with which the legacy default stream would have to wait.
bool has_blocking_stream(const Capture& capture) {
  const auto& streams = all_streams();
  return std::any_of(streams.begin(), streams.end(), [&](const StreamPointer& stream) {
    return stream->blocking() && stream->captured.capture.get() == &capture;
  });
}

// Whether all of the graph comes before its nodes `last`.
bool joined(const Graph& graph, const std::vector<const Node*>& last) {
  std::vector<bool> before(graph.nodes.size());
  for (const Node* node : last) before[node->number] = true;
  for (auto node = graph.nodes.rbegin(); node != graph.nodes.rend(); ++node) {
    if (!before[(*node)->number]) return false;
    for (const Node* dependency : (*node)->dependencies) before[dependency->number] = true;
  }
  return true;
}

void add_nodes(std::vector<const Node*>& to, const std::vector<const Node*>& more) {
  for (const Node* node : more)
    if (std::find(to.begin(), to.end(), node) == to.end()) to.push_back(node);
}

}  // namespace

cudaError_t begin_capture(const StreamPointer& stream, cudaStreamCaptureMode mode) {
  if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
  if (stream == default_stream()) return cudaErrorStreamCaptureUnsupported;
  if (stream->captured.capture) return cudaErrorIllegalState;
  static unsigned long long begun = 0;
  const auto capture = std::make_shared<Capture>(Capture{.mode = mode, .origin = stream.get(), .id = ++begun});
  capture->graph->capturing = true;
  capture->handle = graph_handles().add(capture->graph);
  captures().push_back(capture);
  stream->captured = {capture, {}};
  return cudaSuccess;
}

cudaError_t end_capture(const StreamPointer& stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const CapturedPlace end = stream->captured;
  if (!end.capture) return cudaErrorIllegalState;
  if (end.capture->origin != stream.get()) return cudaErrorStreamCaptureUnmatched;
  if (end.capture->mode != cudaStreamCaptureModeRelaxed && end.capture->thread != std::this_thread::get_id())
    return cudaErrorStreamCaptureWrongThread;

  for (const StreamPointer& other : all_streams())
    if (other->captured.capture == end.capture) other->captured = {};
  captures().erase(std::find(captures().begin(), captures().end(), end.capture));
  end.capture->ended = true;
  end.capture->graph->capturing = false;
  const auto captured = std::exchange(end.capture->graph, nullptr);
  cudaError_t error = cudaSuccess;
  if (end.capture->invalidated)
    error = cudaErrorStreamCaptureInvalidated;
  else if (!joined(*captured, end.nodes))
    error = cudaErrorStreamCaptureUnjoined;
  if (error != cudaSuccess)
    graph_handles().remove(end.capture->handle);
  else
    *graph = end.capture->handle;
  return error;
}

CaptureInfo capture_info(const Stream& stream) {
  const Capture* capture = stream.captured.capture.get();
  if (!capture) return {cudaStreamCaptureStatusNone, 0, nullptr};
  if (capture->invalidated) return {cudaStreamCaptureStatusInvalidated, capture->id, nullptr};
  return {cudaStreamCaptureStatusActive, capture->id, capture->handle};
}

cudaStreamCaptureMode exchange_thread_mode(cudaStreamCaptureMode mode) { return std::exchange(thread_mode, mode); }

bool began_capture(const Stream& stream) {
  return stream.captured.capture && stream.captured.capture->origin == &stream;
}

bool default_stream_is_usable() {
  return std::none_of(captures().begin(), captures().end(), [](const auto& c) { return has_blocking_stream(*c); });
}

cudaError_t check_use(const StreamPointer& stream) {
  if (stream == default_stream()) return invalidate(cudaErrorStreamCaptureImplicit, has_blocking_stream);
  const auto& capture = stream->captured.capture;
  return capture && capture->invalidated ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}

cudaError_t check_not_capturing(const StreamPointer& stream, cudaError_t error) {
  if (const cudaError_t refused = check_use(stream); refused != cudaSuccess) return refused;
  return invalidate(stream->captured.capture, error);
}

cudaError_t check_wait_for(const StreamPointer& stream) {
  const cudaError_t refused = check_not_capturing(stream, cudaErrorStreamCaptureUnsupported);
  return refused != cudaSuccess ? refused : check_unseen_call();
}

cudaError_t check_wait_for(const Event& event) {
  if (event.captured.capture) {
    invalidate(event.captured.capture, cudaErrorCapturedEvent);
    return cudaErrorCapturedEvent;
  }
  return check_unseen_call();
}

cudaError_t check_wait_for_device() {
  return invalidate(cudaErrorStreamCaptureUnsupported, [](const Capture&) { return true; });
}

cudaError_t check_unseen_call() {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  return invalidate(cudaErrorStreamCaptureUnsupported, [](const Capture& capture) {
    if (capture.thread == std::this_thread::get_id()) return capture.mode != cudaStreamCaptureModeRelaxed;
    return capture.mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
  });
}

cudaError_t check_synchronous_call() {
  const cudaError_t refused = check_use(default_stream());
  return refused != cudaSuccess ? refused : check_unseen_call();
}

void submit(const StreamPointer& stream, Operation operation) {
  CapturedPlace& captured = stream->captured;
  if (captured.capture)
    captured.nodes = {captured.capture->graph->add(std::move(operation), captured.nodes)};
  else
    enqueue(stream, std::move(operation.run));
}

cudaError_t wait_for_event(const StreamPointer& stream, const Event& event) {
  const auto& theirs = event.captured.capture;
  CapturedPlace& own = stream->captured;
  if (!own.capture && !theirs) {
    enqueue(stream, [] {}, {event.place});
    return cudaSuccess;
  }
  if (own.capture == theirs) {
    add_nodes(own.nodes, event.captured.nodes);
    return cudaSuccess;
  }
  if (own.capture) {
    if (!theirs || theirs->ended) return invalidate(own.capture, cudaErrorStreamCaptureIsolation);
    invalidate(theirs, cudaErrorStreamCaptureMerge);
    return invalidate(own.capture, cudaErrorStreamCaptureMerge);
  }
  if (theirs->ended) return cudaErrorCapturedEvent;
  if (theirs->invalidated) return cudaErrorStreamCaptureInvalidated;
  if (stream == default_stream()) return invalidate(theirs, cudaErrorStreamCaptureImplicit);
  own = event.captured;
  return cudaSuccess;
}

}  // namespace cuda_on_cpu
