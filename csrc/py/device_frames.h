// Frames of host memory on a CUDA device.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/cuda.h"
#include "ops/prepare.h"

namespace kizu {

// Copies frames to a device: each with the bytes from its lowest to its highest address, so that strides stay what they
// are; or sample by sample where that would be much more than the frame, or would leave samples unaligned.
class DeviceFrames {
 public:
  // What it returns is valid until the next call. The host's frames may change as soon as the stream has been waited
  // for.
  Frames copy(const Frames& host, const PixelFormat& format, const cuda::Stream& stream) {
    const bool packed = format.packing != Packing::none;
    const std::ptrdiff_t sample = format.deep() && !packed ? 2 : 1, channels = format.stored_channels();
    // Along a packed row bytes count, not pixels.
    const std::ptrdiff_t columns = packed ? (host.width * format.bit_depth + 7) / 8 : host.width;
    Frames from = host;
    if (packed) from.column = 1;
    std::ptrdiff_t low = 0, high = sample;
    const auto extend = [&](std::ptrdiff_t count, std::ptrdiff_t stride) {
      (stride < 0 ? low : high) += (count - 1) * stride;
    };
    extend(host.height, from.row);
    extend(columns, from.column);
    extend(channels, channels > 1 ? from.channel : 0);
    const std::ptrdiff_t payload = host.height * columns * channels * sample;
    const bool aligned = sample == 1 || (from.row % 2 == 0 && from.column % 2 == 0 && from.channel % 2 == 0);
    const bool in_place = aligned && high - low <= 2 * payload;
    const std::size_t size = in_place ? high - low : payload, pitch = (size + 255) / 256 * 256;
    auto* const to = static_cast<std::uint8_t*>(memory_.reserve(pitch * host.data.size()));
    Frames device = host;
    if (!in_place) {
      dense_.resize(size);
      device.row = columns * channels * sample, device.column = channels * sample, device.channel = sample;
    }
    pointers_.clear();
    for (const void* const frame : host.data) {
      std::uint8_t* const at = to + pitch * pointers_.size();
      const auto* const first = static_cast<const std::uint8_t*>(frame);
      if (in_place) {
        cuda::copy_to_device(at, first + low, size, stream);
        pointers_.push_back(at - low);
        continue;
      }
      std::uint8_t* dense = dense_.data();
      for (std::ptrdiff_t y = 0; y < host.height; ++y)
        for (std::ptrdiff_t x = 0; x < columns; ++x)
          for (std::ptrdiff_t c = 0; c < channels; ++c, dense += sample)
            std::memcpy(dense, first + y * from.row + x * from.column + c * from.channel, sample);
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
