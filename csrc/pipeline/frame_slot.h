// Frames side by side in one block of memory: how they lie there, and how they come there.
#pragma once

#include <cstddef>

#include "ops/prepare.h"

namespace kizu {

// Where a frame's samples lie when nothing is left between them, in bytes.
struct DenseFrame {
  std::ptrdiff_t columns;               // samples' groups in a row: pixels, or bytes of a packed row
  std::ptrdiff_t row, column, channel;  // strides
  std::size_t size, pitch;              // of a frame, and from one to the next: a multiple of 256

  DenseFrame(const PixelFormat& format, std::ptrdiff_t height, std::ptrdiff_t width);
};

// Copies the rows [first, last) of one frame of `frames` to where they lie in a dense frame that begins at `to`.
void copy_dense(const Frames& frames, const void* frame, const PixelFormat& format, void* to, std::ptrdiff_t first,
                std::ptrdiff_t last);

}  // namespace kizu
