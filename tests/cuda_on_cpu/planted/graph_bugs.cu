// Stream capture, graphs and host functions, with one thing wrong each.

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "buffers.h"
#include "core/cuda_kernel.cuh"
#include "graphs.h"
#include "planted.h"

namespace planted {

namespace {

constexpr int kCount = 64;
constexpr std::size_t kBytes = kCount * sizeof(float);

__global__ void fill(float* out, float value) { out[threadIdx.x] = value; }
__global__ void fill_with_one(float* out) { out[threadIdx.x] = 1; }

struct Holder {
  float* values;
};

__global__ void fill_through_struct(Holder holder) { holder.values[threadIdx.x] = 1; }

void launch_fill(cudaStream_t stream, float* out) { kizu::cuda::launch(fill, 1, kCount, 0, stream, out, 1.0f); }

// During capture

void allocate_in_capture() {
  const Stream stream;
  const Capture capture(stream);
  const Buffer<float> buffer(kCount);
}

void synchronize_in_capture() {
  const Stream stream;
  const Capture capture(stream);
  stream.synchronize();
}

void synchronize_device_in_capture() {
  const Stream stream;
  const Capture capture(stream, cudaStreamCaptureModeRelaxed);
  KIZU_CUDA_CHECK(cudaDeviceSynchronize());
}

// Nobody looks at the call that fails; the capture remembers it.
void ignore_error_in_capture() {
  const Stream stream;
  const Buffer<float> out(kCount);
  Capture capture(stream);
  launch_fill(stream, out.data());
  cudaStreamQuery(stream);
  const Graph graph(capture);
}

void use_default_stream_in_capture() {
  const Stream stream(cudaStreamDefault);
  const Buffer<float> out(kCount);
  const Capture capture(stream, cudaStreamCaptureModeRelaxed);
  KIZU_CUDA_CHECK(cudaMemset(out.data(), 0, kBytes));
}

void wait_for_captured_event() {
  const Stream stream;
  const Event event;
  const Capture capture(stream);
  KIZU_CUDA_CHECK(cudaEventRecord(event, stream));
  KIZU_CUDA_CHECK(cudaEventSynchronize(event));
}

void copy_pageable_in_capture() {
  const Stream stream;
  const Buffer<float> buffer(kCount);
  const std::vector<float> host(kCount);
  const Capture capture(stream);
  KIZU_CUDA_CHECK(cudaMemcpyAsync(buffer.data(), host.data(), kBytes, cudaMemcpyHostToDevice, stream));
}

void leave_fork_unjoined() {
  const Stream main;
  const Stream side;
  const Event fork;
  const Buffer<float> left(kCount);
  const Buffer<float> right(kCount);
  Capture capture(main);
  fork.order(main, side);
  launch_fill(side, left.data());
  launch_fill(main, right.data());
  const Graph graph(capture);
}

// What the side stream was asked to do before is no part of the capture.
void wait_for_uncaptured_event() {
  const Stream main;
  const Stream side;
  const Event event;
  const Capture capture(main);
  event.order(side, main);
}

void never_end_capture() {
  const Stream stream;
  KIZU_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
}

// Launches

template <typename Work>
void launch_after_free(Work work) {
  const Stream stream;
  std::optional<Buffer<float>> buffer(kCount);
  Capture capture(stream);
  work(stream, buffer->data());
  const Graph graph(capture);
  buffer.reset();
  graph.launch(stream);
  stream.synchronize();
}

void launch_copy_after_free() {
  const Pinned<float> host(kCount);
  launch_after_free([&](cudaStream_t stream, float* device) {
    KIZU_CUDA_CHECK(cudaMemcpyAsync(device, host.data(), kBytes, cudaMemcpyHostToDevice, stream));
  });
}

void launch_kernel_after_free() { launch_after_free(launch_fill); }

void launch_struct_after_free() {
  launch_after_free([](cudaStream_t stream, float* device) {
    kizu::cuda::launch(fill_through_struct, 1, kCount, 0, stream, Holder{device});
  });
}

void read_before_graph_is_done() {
  const Stream stream;
  const Pinned<float> host(kCount);
  const Buffer<float> device(std::vector<float>(kCount, 1.0f));
  Capture capture(stream);
  KIZU_CUDA_CHECK(cudaMemcpyAsync(host.data(), device.data(), kBytes, cudaMemcpyDeviceToHost, stream));
  const Graph graph(capture);
  graph.launch(stream);
  if (!std::isfinite(host.values()[0])) throw std::runtime_error("the result is not finite");
}

// Host functions

void call_cuda_in_host_function() {
  const Stream stream;
  cudaError_t error = cudaSuccess;
  const auto function = [](void* data) {
    std::size_t free = 0;
    std::size_t total = 0;
    *static_cast<cudaError_t*>(data) = cudaMemGetInfo(&free, &total);
  };
  KIZU_CUDA_CHECK(cudaLaunchHostFunc(stream, function, &error));
  stream.synchronize();
  KIZU_CUDA_CHECK(error);
}

void touch_device_in_host_function() {
  const Stream stream;
  const Buffer<float> device(std::vector<float>(kCount, 1.0f));
  Capture capture(stream);
  launch_fill(stream, device.data());
  const auto function = [](void* data) { *static_cast<volatile float*>(data) = 2; };
  KIZU_CUDA_CHECK(cudaLaunchHostFunc(stream, function, device.data()));
  const Graph graph(capture);
  graph.launch(stream);
  stream.synchronize();
}

// Updates

// Of a graph with one kernel; `change` changes the node's parameters.
template <typename Change>
void update(Change change) {
  const Stream stream;
  const Buffer<float> out(kCount);
  Capture capture(stream);
  launch_fill(stream, out.data());
  Graph graph(capture);
  const cudaGraphNode_t node = graph.nodes(cudaGraphNodeTypeKernel).at(0);
  cudaKernelNodeParams parameters = {};
  KIZU_CUDA_CHECK(cudaGraphKernelNodeGetParams(node, &parameters));
  float* pointer = out.data();
  float value = 2;
  std::array<void*, 2> arguments = {&pointer, &value};
  parameters.kernelParams = arguments.data();
  change(graph, parameters, pointer);
  KIZU_CUDA_CHECK(cudaGraphExecKernelNodeSetParams(graph.exec(), node, &parameters));
}

using Parameters = cudaKernelNodeParams;

void update_to_other_kernel() {
  update([](Graph&, Parameters& p, float*&) { p.func = reinterpret_cast<void*>(fill_with_one); });
}

void update_to_many_threads() {
  update([](Graph&, Parameters& p, float*&) { p.blockDim.x = 2048; });
}

void update_to_host_pointer() {
  std::vector<float> host(kCount);
  update([&](Graph&, Parameters&, float*& pointer) { pointer = host.data(); });
}

void update_after_graph_is_destroyed() {
  update([](Graph& graph, Parameters&, float*&) { graph.forget_nodes(); });
}

struct Bug {
  std::string_view name;
  void (*run)();
};

constexpr std::array kBugs = {
    Bug{"allocate_in_capture", allocate_in_capture},
    Bug{"synchronize_in_capture", synchronize_in_capture},
    Bug{"synchronize_device_in_capture", synchronize_device_in_capture},
    Bug{"ignore_error_in_capture", ignore_error_in_capture},
    Bug{"use_default_stream_in_capture", use_default_stream_in_capture},
    Bug{"wait_for_captured_event", wait_for_captured_event},
    Bug{"copy_pageable_in_capture", copy_pageable_in_capture},
    Bug{"leave_fork_unjoined", leave_fork_unjoined},
    Bug{"wait_for_uncaptured_event", wait_for_uncaptured_event},
    Bug{"never_end_capture", never_end_capture},
    Bug{"launch_copy_after_free", launch_copy_after_free},
    Bug{"launch_kernel_after_free", launch_kernel_after_free},
    Bug{"launch_struct_after_free", launch_struct_after_free},
    Bug{"read_before_graph_is_done", read_before_graph_is_done},
    Bug{"call_cuda_in_host_function", call_cuda_in_host_function},
    Bug{"touch_device_in_host_function", touch_device_in_host_function},
    Bug{"update_to_other_kernel", update_to_other_kernel},
    Bug{"update_to_many_threads", update_to_many_threads},
    Bug{"update_to_host_pointer", update_to_host_pointer},
    Bug{"update_after_graph_is_destroyed", update_after_graph_is_destroyed},
};

}  // namespace

bool run_graph_bug(const std::string& name) {
  const auto bug = std::find_if(kBugs.begin(), kBugs.end(), [&](const Bug& b) { return b.name == name; });
  if (bug == kBugs.end()) return false;
  bug->run();
  return true;
}

}  // namespace planted
