// Rows of a frame as plain samples: in place where the memory allows it, else copied, unpacked or demosaicked into
// scratch just ahead of their use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/prepare.h"
#include "ops/prepare_kernels.h"

namespace kizu::cpu {

// A window of columns of one frame's rows; T is uint8_t, or uint16_t for deep formats.
template <typename T>
class FrameRows {
 public:
  // Work space, in bytes, for windows of up to `width` columns of which up to `count` rows are read at once.
  static void fit(const PixelFormat& format, const Frames& frames, int width, int count,
                  std::vector<std::uint8_t>& mosaic, std::vector<std::uint8_t>& decoded);

  // `left` and `width` say the window, `top` which row of the frame is row 0.
  FrameRows(const PixelFormat& format, const Frames& frames, const void* frame, const SampleKernels<T>& kernels,
            int left, int top, int width, std::vector<std::uint8_t>& mosaic, std::vector<std::uint8_t>& decoded);

  // The first sample of row y, which `count` rows follow, stride() apart. Valid until the next call; y may not fall.
  const T* rows(int y, int count);

  std::ptrdiff_t stride() const { return stride_; }  // in samples
  bool interleaved() const { return interleaved_; }  // a pixel's channels lie side by side; else in planes of
  std::ptrdiff_t plane() const { return width_; }    // `width` samples, one after the other
  bool swapped() const { return swapped_; }          // blue comes first

 private:
  static bool in_place(const PixelFormat& format, const Frames& frames);
  void decode(int y, T* to);
  // The stored samples of a channel in row y from column `left` on.
  void gather(const std::uint8_t* row, int left, int width, T* to) const;
  // Row y of a Bayer frame, with one more sample on either side.
  const T* mosaic_row(int y);

  const PixelFormat& format_;
  const Frames& frames_;
  const std::uint8_t* data_;
  const SampleKernels<T>& kernels_;
  int left_, top_, width_;
  bool in_place_, interleaved_, swapped_;
  std::ptrdiff_t stride_;
  T* mosaic_;
  int mosaic_rows_[4] = {-1, -1, -1, -1};  // which row each slot holds
  T* decoded_;
  int capacity_;             // rows
  int begin_ = 0, end_ = 0;  // the rows in decoded_
};

extern template class FrameRows<std::uint8_t>;
extern template class FrameRows<std::uint16_t>;

}  // namespace kizu::cpu
