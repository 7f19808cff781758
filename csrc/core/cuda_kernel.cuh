// What every kernel is written with: shared memory is declared and kernels are launched through this header alone, so
// that the same source also runs on a CPU (tests/cuda_on_cpu).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/cuda.h"
#include "core/cuda_check.h"

// KIZU_SHARED(float, tile, [32][33]): a shared variable of a kernel, aligned to 16 bytes.
// KIZU_DYNAMIC_SHARED(float, values): a pointer to the shared memory that the launch asked for, aligned likewise.
#ifndef KIZU_SHARED  // the emulator has its own
#define KIZU_SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
#define KIZU_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char kizu_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(kizu_dynamic_shared)
#endif

namespace kizu::cuda {

// A grid's size, from an integer or a dim3, and where the launch stands in the source.
struct GridSize {
  template <typename Size>
  GridSize(Size size, const char* from_file = __builtin_FILE(), int from_line = __builtin_LINE())  // NOLINT: implicit
      : blocks(size), file(from_file), line(from_line) {}

  dim3 blocks;
  const char* file;
  int line;
};

// Puts a grid on a stream. `shared_bytes` is the dynamic shared memory of a block; more than 48 KiB needs
// cudaFuncSetAttribute first. Throws std::runtime_error if CUDA refuses the launch.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), GridSize grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check_call(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "kernel launch", grid.file,
             grid.line);
}

// The same on a stream of ours, whose log is told.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), GridSize grid, dim3 block, std::size_t shared_bytes, const Stream& stream,
            Arguments&&... arguments) {
  if (!stream.log_only())
    launch(kernel, grid, block, shared_bytes, stream.get(), static_cast<const Arguments&>(arguments)...);
  if (!stream.log()) return;
  LaunchLog::Launch& entry = stream.log()->add();
  entry.kernel = reinterpret_cast<const void*>(kernel);
  entry.grid[0] = grid.blocks.x, entry.grid[1] = grid.blocks.y, entry.grid[2] = grid.blocks.z;
  entry.block[0] = block.x, entry.block[1] = block.y, entry.block[2] = block.z;
  entry.shared_bytes = shared_bytes;
  const auto add = [&entry](const auto& argument) {
    static_assert(std::is_trivially_copyable_v<std::decay_t<decltype(argument)>>);
    const std::size_t begin = (entry.arguments.size() + 15) / 16 * 16;
    entry.begins.push_back(begin);
    entry.arguments.resize(begin + sizeof argument);
    std::memcpy(entry.arguments.data() + begin, &argument, sizeof argument);
  };
  (add(static_cast<const std::decay_t<Parameters>&>(arguments)), ...);
  entry.node = stream.log_only() ? nullptr : stream.last_node();
}

}  // namespace kizu::cuda
