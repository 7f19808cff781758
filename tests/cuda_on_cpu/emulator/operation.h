// What a stream does at one place, or a graph at one node.
#pragma once

#include <functional>
#include <memory>

#include "block.h"
#include "cudart_api.h"

namespace cuda_on_cpu {

struct KernelLaunch {
  Kernel kernel;
  Grid grid;
};

struct Operation {
  cudaGraphNodeType type;
  std::function<void()> run;
  // Of a node, when its graph is launched: ends the process if what it names has been freed since.
  std::function<void()> check = [] {};
  std::shared_ptr<const KernelLaunch> kernel = nullptr;
};

// A launch as an operation, or why CUDA would refuse it.
cudaError_t make_kernel_operation(const Kernel& kernel, const cudaLaunchConfig_t& config,
                                  std::shared_ptr<const KernelCall> call, Operation* operation);

}  // namespace cuda_on_cpu
