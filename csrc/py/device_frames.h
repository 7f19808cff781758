// Frames of host memory on a CUDA device.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cuda.h"
#include "ops/prepare.h"
#include "pipeline/frame_slot.h"

namespace kizu {

// Copies frames to a device: each with the bytes from its lowest to its highest address, so that strides stay what they
// are; or sample by sample where that would be much more than the frame, or would leave samples unaligned.
class DeviceFrames {
 public:
  // What it returns is valid until the next call. The host's frames may change as soon as the stream has been waited
  // for.
  Frames copy(const Frames& host, const PixelFormat& format, const cuda::Stream& stream) {
    const DenseFrame dense(format, host.height, host.width);
    Frames from = host;
    if (format.packing != Packing::none) from.column = 1;
    std::ptrdiff_t low = 0, high = dense.channel;
    const auto extend = [&](std::ptrdiff_t count, std::ptrdiff_t stride) {
      (stride < 0 ? low : high) += (count - 1) * stride;
    };
    const std::ptrdiff_t channels = dense.column / dense.channel;
    extend(host.height, from.row);
    extend(dense.columns, from.column);
    extend(channels, channels > 1 ? from.channel : 0);
    const bool aligned = dense.channel == 1 || (from.row % 2 == 0 && from.column % 2 == 0 && from.channel % 2 == 0);
    const bool in_place = aligned && high - low <= 2 * static_cast<std::ptrdiff_t>(dense.size);
    const std::size_t size = in_place ? high - low : dense.size, pitch = (size + 255) / 256 * 256;
    auto* const to = static_cast<std::uint8_t*>(memory_.reserve(pitch * host.data.size()));
    Frames device = host;
    if (!in_place) {
      dense_.resize(size);
      device.row = dense.row, device.column = dense.column, device.channel = dense.channel;
    }
    pointers_.clear();
    for (const void* const frame : host.data) {
      std::uint8_t* const at = to + pitch * pointers_.size();
      if (in_place) {
        cuda::copy_to_device(at, static_cast<const std::uint8_t*>(frame) + low, size, stream);
        pointers_.push_back(at - low);
        continue;
      }
      copy_dense(host, frame, format, dense_.data(), 0, host.height);
      cuda::copy_to_device(at, dense_.data(), size, stream);
      stream.synchronize();  // the next frame takes its place
      pointers_.push_back(at);
    }
    device.data = pointers_;
    return device;
  }

 private:
  cuda::DeviceBuffer memory_;
  std::vector<std::uint8_t> dense_;
  std::vector<const void*> pointers_;
};

}  // namespace kizu
