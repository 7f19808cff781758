// What a kernel may ask of the block that runs it. Both routes use it: the built-ins of the emulator and the code that
// is translated from PTX.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>

// Plain variables rather than macros, so that `config.blockDim` still names a member.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace cuda_on_cpu {

constexpr unsigned kWarpSize = 32;

// Where in the kernel a thread is. The threads of a barrier or of a warp operation must agree on it. A source line, and
// not a return address, because compilers duplicate calls.
struct Site {
  const char* file;
  int line;
  int instruction;  // within translated PTX; 0 where the source line is all there is

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line, 0};
  }
};

inline unsigned thread_number() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
inline unsigned lane() { return thread_number() % kWarpSize; }

// __syncthreads and its kin. Returns the vote of the block's predicates; 0 for `none`.
enum class BlockVote { none, any, all, count };
int barrier(Site site, BlockVote vote = BlockVote::none, bool predicate = false);

// An operation of the lanes that `mask` names; each waits there until all have come.
enum class WarpOperation { sync, ballot, all, shuffle_index, shuffle_up, shuffle_down, shuffle_xor };
struct WarpResult {
  std::uint64_t value;  // of a shuffle; the mask of a ballot; the answer of `all`
  bool in_range;        // of a shuffle: whether the source lane lay within the segment
};
// `offset` and `clamp` are the operands b and c of PTX shfl.sync.
WarpResult warp_operation(Site site, WarpOperation operation, unsigned mask, std::uint64_t value, unsigned offset = 0,
                          unsigned clamp = 0);

// The lanes of the calling warp that have not exited: the widest answer that CUDA allows.
unsigned active_mask();

// __threadfence of any scope.
void fence();

// Dynamic shared memory of the block. Its size is the launch's.
void* dynamic_shared();
std::size_t dynamic_shared_bytes();
// The block's instance of the shared variable that `key` stands for, filled with 0xff (NaN) when first met.
void* shared_variable(const void* key, std::size_t bytes);

}  // namespace cuda_on_cpu
