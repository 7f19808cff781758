// Graphs, and their executable forms.
#pragma once

#include <memory>
#include <vector>

#include "handles.h"
#include "operation.h"
#include "stream.h"

namespace cuda_on_cpu {

struct Node {
  cudaGraphNode_t handle = nullptr;
  std::size_t number = 0;  // in its graph
  std::shared_ptr<const Operation> operation;
  std::vector<const Node*> dependencies;  // of lesser numbers
  std::vector<void*> arguments;           // of a kernel
};

struct Graph {
  std::vector<std::shared_ptr<Node>> nodes;
  bool capturing = false;  // into it

  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  const Node* add(Operation operation, std::vector<const Node*> dependencies);
};

// What a launch needs of a node.
struct Step {
  cudaGraphNode_t node;
  std::shared_ptr<const Operation> operation;
  std::vector<std::size_t> next;  // the steps that wait for this one
  std::size_t waits_for = 0;      // so many steps
};
using Program = std::vector<Step>;

class GraphExec {
 public:
  explicit GraphExec(const Graph& graph);

  // Launches that are under way keep what they had.
  cudaError_t set_kernel(cudaGraphNode_t node, const cudaKernelNodeParams& parameters);
  // After the launch before, wherever that was put.
  void launch(const StreamPointer& stream);

 private:
  std::shared_ptr<Program> program_;
  StreamPlace last_launch_;
};

cudaKernelNodeParams kernel_parameters(Node& node);

Handles<cudaGraph_t, Graph>& graph_handles();
Handles<cudaGraphNode_t, Node>& node_handles();
Handles<cudaGraphExec_t, GraphExec>& graph_exec_handles();

}  // namespace cuda_on_cpu
