#include "pipeline/frame_slot.h"

#include <cstdint>
#include <cstring>

namespace kizu {

DenseFrame::DenseFrame(const PixelFormat& format, std::ptrdiff_t height, std::ptrdiff_t width) {
  const bool packed = format.packing != Packing::none;
  channel = format.deep() && !packed ? 2 : 1;
  column = channel * format.stored_channels();
  columns = packed ? (width * format.bit_depth + 7) / 8 : width;
  row = columns * column;
  size = static_cast<std::size_t>(height * row);
  pitch = (size + 255) / 256 * 256;
}

void copy_dense(const Frames& frames, const void* frame, const PixelFormat& format, void* to, std::ptrdiff_t first,
                std::ptrdiff_t last) {
  const DenseFrame dense(format, frames.height, frames.width);
  const auto* from = static_cast<const std::uint8_t*>(frame) + first * frames.row;
  auto* out = static_cast<std::uint8_t*>(to) + first * dense.row;
  const std::ptrdiff_t channels = dense.column / dense.channel;
  const bool packed = format.packing != Packing::none;
  const bool whole_pixels = packed || channels == 1 || frames.channel == dense.channel;
  const bool whole_rows = packed || (whole_pixels && frames.column == dense.column);
  if (whole_rows && frames.row == dense.row) {
    std::memcpy(out, from, static_cast<std::size_t>((last - first) * dense.row));
    return;
  }
  for (std::ptrdiff_t y = first; y < last; ++y, from += frames.row) {
    if (whole_rows) {
      std::memcpy(out, from, static_cast<std::size_t>(dense.row));
      out += dense.row;
      continue;
    }
    for (std::ptrdiff_t x = 0; x < dense.columns; ++x)
      for (std::ptrdiff_t c = 0; c < channels; ++c, out += dense.channel)
        std::memcpy(out, from + x * frames.column + c * frames.channel, static_cast<std::size_t>(dense.channel));
  }
}

}  // namespace kizu
