// Streams, events, pinned memory and graphs for the planted programs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "core/cuda_check.h"

namespace planted {

class Stream {
 public:
  explicit Stream(unsigned flags = cudaStreamNonBlocking) {
    KIZU_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, flags));
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  operator cudaStream_t() const { return stream_; }  // NOLINT: implicit
  void synchronize() const { KIZU_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { KIZU_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  operator cudaEvent_t() const { return event_; }  // NOLINT: implicit
  // `later` goes on when `earlier` has come to where it is now.
  void order(cudaStream_t earlier, cudaStream_t later) const {
    KIZU_CUDA_CHECK(cudaEventRecord(event_, earlier));
    KIZU_CUDA_CHECK(cudaStreamWaitEvent(later, event_));
  }

 private:
  cudaEvent_t event_ = nullptr;
};

template <typename T>
class Pinned {
 public:
  explicit Pinned(std::size_t count) : count_(count) {
    void* memory = nullptr;
    KIZU_CUDA_CHECK(cudaHostAlloc(&memory, bytes(), cudaHostAllocMapped));
    data_ = static_cast<T*>(memory);
  }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

  T* data() const { return data_; }
  std::size_t bytes() const { return count_ * sizeof(T); }
  std::vector<T> values() const { return {data_, data_ + count_}; }
  void assign(const std::vector<T>& values) const { std::copy(values.begin(), values.end(), data_); }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

// Ends itself if nobody makes a graph of it.
class Capture {
 public:
  explicit Capture(const Stream& stream, cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal)
      : stream_(stream) {
    KIZU_CUDA_CHECK(cudaStreamBeginCapture(stream, mode));
  }
  ~Capture() {
    cudaGraph_t graph = nullptr;
    if (under_way_ && cudaStreamEndCapture(stream_, &graph) == cudaSuccess) cudaGraphDestroy(graph);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraph_t end() {
    under_way_ = false;
    cudaGraph_t graph = nullptr;
    KIZU_CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    return graph;
  }

 private:
  cudaStream_t stream_;
  bool under_way_ = true;
};

// What was captured, and its executable form.
class Graph {
 public:
  explicit Graph(Capture& capture) : graph_(capture.end()) { KIZU_CUDA_CHECK(cudaGraphInstantiate(&exec_, graph_, 0)); }
  ~Graph() {
    cudaGraphExecDestroy(exec_);
    forget_nodes();
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(cudaStream_t stream) const { KIZU_CUDA_CHECK(cudaGraphLaunch(exec_, stream)); }
  cudaGraphExec_t exec() const { return exec_; }

  // The executable form does not need it.
  void forget_nodes() {
    if (graph_) cudaGraphDestroy(graph_);
    graph_ = nullptr;
  }

  std::vector<cudaGraphNode_t> nodes(cudaGraphNodeType of_type) const {
    std::size_t count = 0;
    KIZU_CUDA_CHECK(cudaGraphGetNodes(graph_, nullptr, &count));
    std::vector<cudaGraphNode_t> all(count);
    KIZU_CUDA_CHECK(cudaGraphGetNodes(graph_, all.data(), &count));
    std::vector<cudaGraphNode_t> result;
    for (const cudaGraphNode_t node : all) {
      cudaGraphNodeType type = {};
      KIZU_CUDA_CHECK(cudaGraphNodeGetType(node, &type));
      if (type == of_type) result.push_back(node);
    }
    return result;
  }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace planted
