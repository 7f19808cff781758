#include "ops/frame_rows.h"

#include <algorithm>
#include <cstring>

namespace kizu::cpu {
namespace {

// Samples [begin, end) of a row of bytes that holds `bits` bits a sample, lowest first, without gaps.
void unpack_lsb_first(const std::uint8_t* row, int bits, std::ptrdiff_t begin, std::ptrdiff_t end, std::uint16_t* to) {
  const unsigned mask = (1u << bits) - 1;
  for (std::ptrdiff_t i = begin, bit = begin * bits; i < end; ++i, bit += bits) {
    const std::uint8_t* at = row + (bit >> 3);  // 10 and 12 bits lie within two bytes
    *to++ = static_cast<std::uint16_t>((at[0] | at[1] << 8) >> (bit & 7) & mask);
  }
}

// GigE Vision's: two samples in three bytes; the middle one has the low bits of both.
void unpack_mono12packed(const std::uint8_t* row, std::ptrdiff_t begin, std::ptrdiff_t end, std::uint16_t* to) {
  for (std::ptrdiff_t i = begin; i < end; ++i) {
    const std::uint8_t* at = row + i / 2 * 3;
    *to++ = static_cast<std::uint16_t>(i % 2 == 0 ? at[0] << 4 | (at[1] & 15) : at[2] << 4 | at[1] >> 4);
  }
}

}  // namespace

template <typename T>
bool FrameRows<T>::in_place(const PixelFormat& format, const Frames& frames) {
  constexpr std::ptrdiff_t size = sizeof(T);
  if (format.bayer != Bayer::none || format.packing != Packing::none) return false;
  if (frames.column != format.channels * size) return false;
  if (format.channels == 3 && frames.channel != size && frames.channel != -size) return false;
  if (frames.row % size != 0) return false;
  return std::all_of(frames.data.begin(), frames.data.end(),
                     [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % alignof(T) == 0; });
}

// Twice the rows read at once, so that few are moved to the front.
static int capacity_for(int count) { return 2 * count; }

template <typename T>
void FrameRows<T>::fit(const PixelFormat& format, const Frames& frames, int width, int count,
                       std::vector<std::uint8_t>& mosaic, std::vector<std::uint8_t>& decoded) {
  if (in_place(format, frames)) return;
  const auto grow = [](std::vector<std::uint8_t>& v, std::size_t samples) {
    if (v.size() < samples * sizeof(T)) v.resize(samples * sizeof(T));
  };
  if (format.bayer != Bayer::none) grow(mosaic, 4 * (static_cast<std::size_t>(width) + 2));
  grow(decoded, static_cast<std::size_t>(format.channels) * width * capacity_for(count));
}

template <typename T>
FrameRows<T>::FrameRows(const PixelFormat& format, const Frames& frames, const void* frame,
                        const SampleKernels<T>& kernels, int left, int top, int width,
                        std::vector<std::uint8_t>& mosaic, std::vector<std::uint8_t>& decoded)
    : format_(format),
      frames_(frames),
      data_(static_cast<const std::uint8_t*>(frame)),
      kernels_(kernels),
      left_(left),
      top_(top),
      width_(width),
      in_place_(in_place(format, frames)),
      interleaved_(in_place_ || format.channels == 1),
      swapped_(in_place_ && format.channels == 3 && (frames.channel < 0) != format.bgr),
      stride_(in_place_ ? frames.row / static_cast<std::ptrdiff_t>(sizeof(T))
                        : static_cast<std::ptrdiff_t>(format.channels) * width),
      mosaic_(reinterpret_cast<T*>(mosaic.data())),
      decoded_(reinterpret_cast<T*>(decoded.data())),
      capacity_(in_place_ ? 0 : static_cast<int>(decoded.size() / sizeof(T) / stride_)) {
  // The lowest address of a pixel, whichever colour it is.
  if (in_place_ && format.channels == 3 && frames.channel < 0) data_ += 2 * frames.channel;
}

template <typename T>
const T* FrameRows<T>::rows(int y, int count) {
  if (in_place_) return reinterpret_cast<const T*>(data_ + (top_ + y) * frames_.row + left_ * frames_.column);
  if (y >= end_ || y + count > begin_ + capacity_) {
    const int kept = std::max(0, end_ - y);
    if (kept > 0) std::memmove(decoded_, decoded_ + (y - begin_) * stride_, kept * stride_ * sizeof(T));
    begin_ = y;
    end_ = y + kept;
  }
  for (; end_ < y + count; ++end_) decode(end_, decoded_ + (end_ - begin_) * stride_);
  return decoded_ + (y - begin_) * stride_;
}

template <typename T>
void FrameRows<T>::gather(const std::uint8_t* row, int left, int width, T* to) const {
  const std::ptrdiff_t column = frames_.column;
  const std::uint8_t* from = row + left * column;
  if (column == sizeof(T)) {
    std::memcpy(to, from, width * sizeof(T));
    return;
  }
  for (int x = 0; x < width; ++x, from += column) std::memcpy(to + x, from, sizeof(T));
}

template <typename T>
const T* FrameRows<T>::mosaic_row(int y) {
  const int height = static_cast<int>(frames_.height), width = static_cast<int>(frames_.width);
  y = y < 0 ? 1 : y >= height ? height - 2 : y;  // mirrored about the edge's row
  T* to = mosaic_ + (y % 4) * (static_cast<std::ptrdiff_t>(width_) + 2) + 1;
  if (mosaic_rows_[y % 4] == y) return to;
  mosaic_rows_[y % 4] = y;
  const std::uint8_t* row = data_ + y * frames_.row;
  gather(row, left_, width_, to);
  gather(row, left_ > 0 ? left_ - 1 : 1, 1, to - 1);
  gather(row, left_ + width_ < width ? left_ + width_ : width - 2, 1, to + width_);
  return to;
}

template <typename T>
void FrameRows<T>::decode(int y, T* to) {
  y += top_;
  if (format_.bayer != Bayer::none) {
    const bool red_row = (y % 2 == 1) == (format_.bayer == Bayer::gbrg || format_.bayer == Bayer::bggr);
    const bool red_first = format_.bayer == Bayer::rggb || format_.bayer == Bayer::gbrg;  // in a red row's column 0
    const bool own_first = (red_row == red_first) == (left_ % 2 == 0);
    T *red = to, *green = to + width_, *blue = to + 2 * static_cast<std::ptrdiff_t>(width_);
    const T *above = mosaic_row(y - 1), *row = mosaic_row(y), *below = mosaic_row(y + 1);
    kernels_.demosaic(above, row, below, width_, own_first, red_row ? red : blue, green, red_row ? blue : red);
  } else if (format_.packing != Packing::none) {
    if constexpr (sizeof(T) == 2) {
      const std::uint8_t* row = data_ + y * frames_.row;
      if (format_.packing == Packing::mono12packed)
        unpack_mono12packed(row, left_, left_ + width_, to);
      else
        unpack_lsb_first(row, format_.bit_depth, left_, left_ + width_, to);
    }
  } else {
    for (int c = 0; c < format_.channels; ++c) {
      const int from = format_.bgr ? format_.channels - 1 - c : c;
      gather(data_ + y * frames_.row + from * frames_.channel, left_, width_,
             to + c * static_cast<std::ptrdiff_t>(width_));
    }
  }
}

template class FrameRows<std::uint8_t>;
template class FrameRows<std::uint16_t>;

}  // namespace kizu::cpu
