// The C++ contract of an engine that computes on a CUDA device: bound once to the tensors of a batch size, then put on
// a stream.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/cuda.h"

namespace kizu::cuda {

class Runner {
 public:
  virtual ~Runner() = default;
  // Puts the computation on the stream, without waiting.
  virtual void enqueue(const Stream& stream) = 0;
  // Whether enqueue may be captured into a graph, once it has run.
  virtual bool capturable(const Stream& stream) = 0;
};

// A graph's input or output in device memory.
struct Tensor {
  std::string name;
  void* data;
};

// Makes the runner of `images`: one for each number of them that comes, until the pipeline ends. All work in
// `workspace`, but never at the same time.
using Bind = std::function<std::unique_ptr<Runner>(int images, const std::vector<Tensor>& tensors, void* workspace)>;

}  // namespace kizu::cuda
