// Runs grids: one block after another, the threads of a block as fibers.
#pragma once

#include <driver_types.h>

#include <memory>

#include "kernel_call.h"

namespace cuda_on_cpu {

struct Grid {
  dim3 blocks;
  dim3 threads;
  std::size_t dynamic_shared_bytes = 0;
  std::size_t shared_limit = 0;  // of these and the kernel's shared variables together
  std::shared_ptr<const KernelCall> call;
};

void run(const Grid& grid);

// Whether a CUDA thread is running, rather than host code.
bool kernel_is_running();

// Called around each grid and after each block. The PTX route's profile hangs on them.
struct GridObserver {
  void (*grid_begins)(const Grid& grid);
  void (*block_ended)();
  void (*grid_ended)();
};
void observe_grids(const GridObserver& observer);

}  // namespace cuda_on_cpu
