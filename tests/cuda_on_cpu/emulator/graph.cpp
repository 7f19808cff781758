#include "graph.h"

#include <algorithm>

#include "options.h"

namespace cuda_on_cpu {

namespace {

// One launch: steps in an order drawn at random, as far as they wait for each other.
class Run {
 public:
  explicit Run(std::shared_ptr<const Program> program) : program_(std::move(program)) {
    for (std::size_t i = 0; i < program_->size(); ++i) {
      missing_.push_back((*program_)[i].waits_for);
      if (missing_.back() == 0) ready_.push_back(i);
    }
  }

  // True if that was the last.
  bool step() {
    if (ready_.empty()) return true;  // a graph without nodes
    std::swap(ready_[random_below(ready_.size())], ready_.back());
    const Step& step = (*program_)[ready_.back()];
    ready_.pop_back();
    step.operation->run();
    for (const std::size_t next : step.next)
      if (--missing_[next] == 0) ready_.push_back(next);
    return ready_.empty();
  }

 private:
  std::shared_ptr<const Program> program_;
  std::vector<std::size_t> missing_;
  std::vector<std::size_t> ready_;
};

}  // namespace

Graph::~Graph() {
  for (const auto& node : nodes) node_handles().remove(node->handle);
}

const Node* Graph::add(Operation operation, std::vector<const Node*> dependencies) {
  const auto node = std::make_shared<Node>();
  node->handle = node_handles().add(node);
  node->number = nodes.size();
  if (operation.kernel) node->arguments = operation.kernel->grid.call->arguments();
  node->operation = std::make_shared<const Operation>(std::move(operation));
  node->dependencies = std::move(dependencies);
  return nodes.emplace_back(node).get();
}

GraphExec::GraphExec(const Graph& graph) : program_(std::make_shared<Program>()) {
  for (const auto& node : graph.nodes) {
    program_->push_back({node->handle, node->operation, {}, node->dependencies.size()});
    for (const Node* before : node->dependencies) (*program_)[before->number].next.push_back(node->number);
  }
}

cudaError_t GraphExec::set_kernel(cudaGraphNode_t node, const cudaKernelNodeParams& parameters) {
  const auto found = std::find_if(program_->begin(), program_->end(), [&](const Step& s) { return s.node == node; });
  // The node identifies the step only while its graph lives.
  if (found == program_->end() || !node_handles().find(node) || !found->operation->kernel) return cudaErrorInvalidValue;
  const KernelLaunch& before = *found->operation->kernel;
  if (parameters.func != before.kernel.function || parameters.extra) return cudaErrorInvalidValue;
  if (!parameters.kernelParams && !before.grid.call->arguments().empty()) return cudaErrorInvalidValue;

  cudaLaunchConfig_t config = {};
  config.gridDim = parameters.gridDim;
  config.blockDim = parameters.blockDim;
  config.dynamicSmemBytes = parameters.sharedMemBytes;
  Operation operation = {};
  const cudaError_t error = make_kernel_operation(
      before.kernel, config, before.grid.call->with_arguments(parameters.kernelParams), &operation);
  if (error != cudaSuccess) return error;
  const auto number = static_cast<std::size_t>(found - program_->begin());
  if (program_.use_count() > 1) program_ = std::make_shared<Program>(*program_);
  (*program_)[number].operation = std::make_shared<const Operation>(std::move(operation));
  return cudaSuccess;
}

void GraphExec::launch(const StreamPointer& stream) {
  for (const Step& step : *program_) step.operation->check();
  enqueue_steps(stream, [run = std::make_shared<Run>(program_)] { return run->step(); }, {last_launch_});
  last_launch_ = end_of(stream);
}

cudaKernelNodeParams kernel_parameters(Node& node) {
  const KernelLaunch& launch = *node.operation->kernel;
  cudaKernelNodeParams result = {};
  result.func = const_cast<void*>(launch.kernel.function);
  result.gridDim = launch.grid.blocks;
  result.blockDim = launch.grid.threads;
  result.sharedMemBytes = static_cast<unsigned>(launch.grid.dynamic_shared_bytes - launch.kernel.static_shared_bytes);
  result.kernelParams = node.arguments.data();
  return result;
}

Handles<cudaGraph_t, Graph>& graph_handles() {
  static auto& result = *new Handles<cudaGraph_t, Graph>;
  return result;
}

Handles<cudaGraphNode_t, Node>& node_handles() {
  static auto& result = *new Handles<cudaGraphNode_t, Node>;
  return result;
}

Handles<cudaGraphExec_t, GraphExec>& graph_exec_handles() {
  static auto& result = *new Handles<cudaGraphExec_t, GraphExec>;
  return result;
}

}  // namespace cuda_on_cpu
