// Stream capture and graphs.

#include <algorithm>
#include <utility>

#include "capture.h"
#include "cudart_api.h"
#include "entry.h"
#include "graph.h"

namespace cuda_on_cpu {

namespace {

// As cudaGraphGetNodes and its like give lists: the count alone if there is no array; else what fits, and nulls behind.
void give(const std::vector<cudaGraphNode_t>& nodes, cudaGraphNode_t* array, std::size_t* count) {
  if (array) {
    const std::size_t room = std::exchange(*count, std::min(*count, nodes.size()));
    std::copy_n(nodes.begin(), *count, array);
    std::fill(array + *count, array + room, nullptr);
  } else {
    *count = nodes.size();
  }
}

std::vector<cudaGraphNode_t> handles(const std::vector<const Node*>& nodes) {
  std::vector<cudaGraphNode_t> result;
  for (const Node* node : nodes) result.push_back(node->handle);
  return result;
}

cudaError_t instantiate(cudaGraphExec_t* exec, cudaGraph_t handle, unsigned long long flags) {
  const auto graph = graph_handles().find(handle);
  if (!exec || !graph || graph->capturing) return cudaErrorInvalidValue;
  if (flags & ~static_cast<unsigned long long>(cudaGraphInstantiateFlagUseNodePriority)) return cudaErrorNotSupported;
  *exec = graph_exec_handles().add(std::make_shared<GraphExec>(*graph));
  return cudaSuccess;
}

cudaError_t give_dependencies(cudaGraphNode_t handle, cudaGraphNode_t* array, cudaGraphEdgeData* edges,
                              std::size_t* count) {
  const auto node = node_handles().find(handle);
  if (!node || !count || (edges && !array)) return cudaErrorInvalidValue;
  if (edges) std::fill_n(edges, *count, cudaGraphEdgeData{});
  give(handles(node->dependencies), array, count);
  return cudaSuccess;
}

// Valid until the thread's next call.
struct DependencyArrays {
  std::vector<cudaGraphNode_t> nodes;
  std::vector<cudaGraphEdgeData> edges;
};

cudaError_t give_capture_info(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                              cudaGraph_t* graph, const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges,
                              std::size_t* count) {
  thread_local DependencyArrays arrays;
  return with_stream(handle, [&](const StreamPointer& stream) {
    if (!status || (edges && !dependencies)) return cudaErrorInvalidValue;
    if (stream == default_stream() && !default_stream_is_usable()) return cudaErrorStreamCaptureImplicit;
    const CaptureInfo info = capture_info(*stream);
    *status = info.status;
    if (info.status != cudaStreamCaptureStatusActive) return cudaSuccess;
    arrays.nodes = handles(stream->captured.nodes);
    arrays.edges.assign(arrays.nodes.size(), {});
    if (id) *id = info.id;
    if (graph) *graph = info.graph;
    if (dependencies) *dependencies = arrays.nodes.data();
    if (edges) *edges = arrays.edges.data();
    if (count) *count = arrays.nodes.size();
    return cudaSuccess;
  });
}

}  // namespace

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;  // NOLINT: everything below is C

extern "C" {

// Capture

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return enter_with_stream(handle, [&](const StreamPointer& stream) { return begin_capture(stream, mode); });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  cudaGraph_t captured = nullptr;
  const cudaError_t error = enter_to_release([&] {
    if (!graph) return cudaErrorInvalidValue;
    return with_stream(handle, [&](const StreamPointer& stream) { return end_capture(stream, &captured); });
  });
  if (error != cudaSuccess && captured) {  // a test has asked for the error
    const Lock lock;
    graph_handles().remove(std::exchange(captured, nullptr));
  }
  if (graph) *graph = captured;
  return error;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return enter([&] { return give_capture_info(handle, status, nullptr, nullptr, nullptr, nullptr, nullptr); });
}

#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, std::size_t* count) {
  return enter([&] { return give_capture_info(handle, status, id, graph, dependencies, edges, count); });
}
#else  // the header calls the first one _v2
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies, std::size_t* count) {
  return enter([&] { return give_capture_info(handle, status, id, graph, dependencies, nullptr, count); });
}

cudaError_t cudaStreamGetCaptureInfo_v3(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                        cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                        const cudaGraphEdgeData** edges, std::size_t* count) {
  return enter([&] { return give_capture_info(handle, status, id, graph, dependencies, edges, count); });
}
#endif

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return enter([&] {
    if (!mode || *mode < cudaStreamCaptureModeGlobal || *mode > cudaStreamCaptureModeRelaxed)
      return cudaErrorInvalidValue;
    *mode = exchange_thread_mode(*mode);
    return cudaSuccess;
  });
}

// Graphs

cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
  return enter_to_release([&] {
    const auto graph = graph_handles().find(handle);
    if (!graph || graph->capturing) return cudaErrorInvalidValue;
    graph_handles().remove(handle);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t handle, cudaGraphNode_t* nodes, std::size_t* count) {
  return enter([&] {
    const auto graph = graph_handles().find(handle);
    if (!graph || !count) return cudaErrorInvalidValue;
    std::vector<cudaGraphNode_t> all;
    for (const auto& node : graph->nodes) all.push_back(node->handle);
    give(all, nodes, count);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t handle, cudaGraphNodeType* type) {
  return enter([&] {
    const auto node = node_handles().find(handle);
    if (!node || !type) return cudaErrorInvalidValue;
    *type = node->operation->type;
    return cudaSuccess;
  });
}

#if CUDART_VERSION >= 13000
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* nodes, cudaGraphEdgeData* edges,
                                         std::size_t* count) {
  return enter([&] { return give_dependencies(node, nodes, edges, count); });
}
#else
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* nodes, std::size_t* count) {
  return enter([&] { return give_dependencies(node, nodes, nullptr, count); });
}

cudaError_t cudaGraphNodeGetDependencies_v2(cudaGraphNode_t node, cudaGraphNode_t* nodes, cudaGraphEdgeData* edges,
                                            std::size_t* count) {
  return enter([&] { return give_dependencies(node, nodes, edges, count); });
}
#endif

cudaError_t cudaGraphKernelNodeGetParams(cudaGraphNode_t handle, cudaKernelNodeParams* parameters) {
  return enter([&] {
    const auto node = node_handles().find(handle);
    if (!node || !node->operation->kernel || !parameters) return cudaErrorInvalidValue;
    *parameters = kernel_parameters(*node);
    return cudaSuccess;
  });
}

// Executable graphs

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags) {
  return enter([&] { return instantiate(exec, graph, flags); });
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags) {
  return enter([&] { return instantiate(exec, graph, flags); });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
  return enter_to_release([&] {
    if (!graph_exec_handles().find(handle)) return cudaErrorInvalidValue;
    graph_exec_handles().remove(handle);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t handle, cudaGraphNode_t node,
                                             const cudaKernelNodeParams* parameters) {
  return enter([&] {
    const auto exec = graph_exec_handles().find(handle);
    return exec && parameters ? exec->set_kernel(node, *parameters) : cudaErrorInvalidValue;
  });
}

// A launch that would be captured, as a child graph, is refused: graphs have no such nodes here.
cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream_handle) {
  return enter_with_stream(stream_handle, [&](const StreamPointer& stream) {
    const auto exec = graph_exec_handles().find(handle);
    if (!exec) return cudaErrorInvalidValue;
    const cudaError_t refused = check_not_capturing(stream, cudaErrorNotSupported);
    if (refused == cudaSuccess) exec->launch(stream);
    return refused;
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t handle, cudaStream_t stream_handle) {
  return enter_with_stream(stream_handle, [&](const StreamPointer& stream) {
    if (!graph_exec_handles().find(handle)) return cudaErrorInvalidValue;
    return check_not_capturing(stream, cudaErrorNotSupported);
  });
}

}  // extern "C"
