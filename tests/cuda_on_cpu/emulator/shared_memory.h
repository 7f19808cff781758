// Shared memory of the one block that runs.
#pragma once

#include <cstddef>

namespace cuda_on_cpu {

constexpr std::size_t kSharedBytes = 48 << 10;       // of a block, without opting in
constexpr std::size_t kSharedBytesOptIn = 99 << 10;  // with cudaFuncSetAttribute: the least of the GPUs since Ampere

// Empties shared memory: every byte 0xff, nothing accessible under ASan, nothing remembered by TSan.
// The block's variables and its dynamic part may take `limit` bytes together.
void begin_block_shared(std::size_t dynamic_bytes, std::size_t limit);
// Ends the process if the block wrote outside its variables.
void end_block_shared();

}  // namespace cuda_on_cpu
