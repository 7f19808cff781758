// What the kernels of prepare.cu are made of: reading samples of any pixel format, rounding, rotation, and the ways in
// which results are written.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ops/prepare.h"

namespace kizu::cuda {
namespace {

constexpr int kMostFrames = 64;  // of a launch

struct FramePointers {
  const void* data[kMostFrames];
};

// Frames and how their bytes are read.
struct Source {
  FramePointers frames{};
  int count;
  int height, width;
  std::ptrdiff_t row, column, channel;  // bytes
  Bayer bayer;
  Packing packing;
  bool packed;   // a row's samples lie side by side
  bool swapped;  // ... with the channels in reverse order

  Source(const PixelFormat& format, const Frames& from, std::size_t first, std::size_t most)
      : count(static_cast<int>(std::min(from.data.size() - first, most))),
        height(static_cast<int>(from.height)),
        width(static_cast<int>(from.width)),
        row(from.row),
        column(from.column),
        channel(from.channel),
        bayer(format.bayer),
        packing(format.packing),
        packed(false),
        swapped(false) {
    const std::ptrdiff_t size = format.deep() ? 2 : 1, channels = format.channels;
    std::ptrdiff_t shift = 0;
    if (format.bgr) {  // begin with red and go backwards
      shift = 2 * channel;
      channel = -channel;
    }
    if (bayer == Bayer::none && packing == Packing::none && column == channels * size) {
      swapped = channels > 1 && channel == -size;
      packed = channels == 1 || channel == size || swapped;
      if (swapped) shift += (channels - 1) * channel;  // begin with what lies first in memory
    }
    for (int i = 0; i < count; ++i) frames.data[i] = static_cast<const unsigned char*>(from.data[first + i]) + shift;
  }

  // Where a staged row begins within its first 16 bytes.
  __device__ int phase(const void* frame, int y, int x) const {
    const auto address = reinterpret_cast<std::uintptr_t>(frame) + y * row + x * column;
    return packed ? static_cast<int>(address % 16) : 0;
  }
};

template <typename Sample>
__device__ inline Sample stored_sample(const Source& source, const void* frame, int y, int x, int c) {
  return *reinterpret_cast<const Sample*>(static_cast<const unsigned char*>(frame) + y * source.row +
                                          x * source.column + c * source.channel);
}

__device__ inline int mirrored(int i, int n) {
  if (i < 0) i = -i;
  if (i >= n) i = 2 * n - 2 - i;
  return i < 0 ? 0 : i;  // a side of one pixel has nothing to mirror
}

// The bilinear demosaic of one pixel: its own colour, and the means of the neighbours that have the others.
template <typename Sample>
__device__ inline void demosaic(const Source& source, const void* frame, int y, int x, Sample (&pixel)[3]) {
  const auto row = [&](int i) {
    return static_cast<const unsigned char*>(frame) + mirrored(i, source.height) * source.row;
  };
  const auto column = [&](int i) { return mirrored(i, source.width) * source.column; };
  const unsigned char* const rows[3] = {row(y - 1), row(y), row(y + 1)};
  const std::ptrdiff_t columns[3] = {column(x - 1), column(x), column(x + 1)};
  const auto at = [&](int dy, int dx) -> std::uint32_t {
    return *reinterpret_cast<const Sample*>(rows[1 + dy] + columns[1 + dx]);
  };
  // Where red lies in the 2x2 cell.
  const int red_y = source.bayer == Bayer::gbrg || source.bayer == Bayer::bggr;
  const int red_x = source.bayer == Bayer::grbg || source.bayer == Bayer::bggr;
  const bool row_of_red = (y & 1) == red_y, column_of_red = (x & 1) == red_x;
  const std::uint32_t own = at(0, 0);
  if (row_of_red == column_of_red) {  // a red or a blue sample
    const std::uint32_t cross = (at(-1, 0) + at(1, 0) + at(0, -1) + at(0, 1) + 2) >> 2;
    const std::uint32_t corners = (at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1) + 2) >> 2;
    pixel[0] = static_cast<Sample>(row_of_red ? own : corners);
    pixel[1] = static_cast<Sample>(cross);
    pixel[2] = static_cast<Sample>(row_of_red ? corners : own);
  } else {
    const std::uint32_t across = (at(0, -1) + at(0, 1) + 1) >> 1, down = (at(-1, 0) + at(1, 0) + 1) >> 1;
    pixel[0] = static_cast<Sample>(row_of_red ? across : down);
    pixel[1] = static_cast<Sample>(own);
    pixel[2] = static_cast<Sample>(row_of_red ? down : across);
  }
}

// A sample of the packed formats of GenICam's PFNC.
__device__ inline std::uint32_t unpacked(Packing packing, const unsigned char* row, int x) {
  if (packing == Packing::mono12packed) {  // two pixels in three bytes: high bits, both low halves, high bits
    const unsigned char* const three = row + x / 2 * 3;
    // The last byte of a pixel that has no neighbour is not there.
    return x % 2 == 0 ? three[0] * 16u + three[1] % 16u : three[2] * 16u + three[1] / 16u;
  }
  const int bits = packing == Packing::mono10p ? 10 : 12;
  const std::ptrdiff_t bit = static_cast<std::ptrdiff_t>(x) * bits;
  const std::uint32_t two = row[bit / 8] | static_cast<std::uint32_t>(row[bit / 8 + 1]) << 8;
  return two >> bit % 8 & ((1u << bits) - 1);
}

// One pixel of a frame in any format, channels in the order of the model.
template <typename Sample, int Channels>
__device__ inline void decode(const Source& source, const void* frame, int y, int x, Sample (&pixel)[Channels]) {
  if constexpr (Channels == 3) {
    if (source.bayer != Bayer::none) return demosaic<Sample>(source, frame, y, x, pixel);
  } else if constexpr (sizeof(Sample) == 2) {
    if (source.packing != Packing::none) {
      pixel[0] =
          static_cast<Sample>(unpacked(source.packing, static_cast<const unsigned char*>(frame) + y * source.row, x));
      return;
    }
  }
  if (source.swapped) {  // `frame` is the last channel's
#pragma unroll
    for (int c = 0; c < Channels; ++c) pixel[c] = stored_sample<Sample>(source, frame, y, x, c - (Channels - 1));
    return;
  }
#pragma unroll
  for (int c = 0; c < Channels; ++c) pixel[c] = stored_sample<Sample>(source, frame, y, x, c);
}

// Fixed-point sums and their rounding back to samples.
template <typename Sample>
struct Rounding;

template <>
struct Rounding<std::uint8_t> {
  static constexpr std::uint32_t half = 1u << 21;
  __device__ static std::uint8_t round(std::uint32_t sum) { return static_cast<std::uint8_t>(min(sum >> 22, 255u)); }
};

template <>
struct Rounding<std::uint16_t> {
  static constexpr std::uint32_t half = 1u << 15;
  __device__ static std::uint16_t round(std::uint32_t sum) { return static_cast<std::uint16_t>(sum >> 16); }
};

// One output pixel of a rotation; the formula is in prepare.h.
struct RotatedPixel {
  bool inside;
  int x0, x1, y0, y1;
  std::uint32_t fx, fy;  // 1/256

  __device__ RotatedPixel(const Rotation& turn, int x, int y, int width, int height) {
    const std::int64_t dx = 2 * x - (width - 1), dy = 2 * y - (height - 1);
    const std::int64_t sx = turn.cos * dx - turn.sin * dy + static_cast<std::int64_t>(width - 1) * 65536;
    const std::int64_t sy = turn.sin * dx + turn.cos * dy + static_cast<std::int64_t>(height - 1) * 65536;
    inside = sx >= -65536 && sx < static_cast<std::int64_t>(2 * width - 1) * 65536 &&  //
             sy >= -65536 && sy < static_cast<std::int64_t>(2 * height - 1) * 65536;
    const int qx = static_cast<int>((sx + 256) >> 9), qy = static_cast<int>((sy + 256) >> 9);
    fx = static_cast<std::uint32_t>(qx & 255);
    fy = static_cast<std::uint32_t>(qy & 255);
    x0 = min(max(qx >> 8, 0), width - 1);
    x1 = min(max((qx >> 8) + 1, 0), width - 1);
    y0 = min(max(qy >> 8, 0), height - 1);
    y1 = min(max((qy >> 8) + 1, 0), height - 1);
  }

  template <typename Sample>
  __device__ Sample sample(const Sample* plane, int width) const {
    if (!inside) return 0;
    const Sample *top = plane + static_cast<std::ptrdiff_t>(y0) * width,
                 *bottom = plane + static_cast<std::ptrdiff_t>(y1) * width;
    const std::uint32_t sum =
        (256 - fy) * ((256 - fx) * top[x0] + fx * top[x1]) + fy * ((256 - fx) * bottom[x0] + fx * bottom[x1]);
    return static_cast<Sample>((sum + 32768) >> 16);
  }
};

// The plan's arrays in device memory.
struct Axis {
  const int* first;
  const std::uint32_t* weights;
  int count, taps;
};

struct View {
  int left, top, rows, columns;
  bool rows_first;
};

struct DevicePlan {
  const View* view;
  const Axis* axis;
  const Rotation* rotation;
  const float* tables;  // of all channels, each as often as it differs from those before
  int views, rotations;
};

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

// Where a table's first equal begins among the spec's tables with each left out that has an equal before it.
inline std::size_t table_begin(const PrepareSpec& spec, const std::vector<float>& table) {
  std::size_t begin = 0;
  for (auto each = spec.tables.begin(); *each != table; ++each)
    if (std::find(spec.tables.begin(), each, *each) == each) begin += each->size();
  return begin;
}

__device__ inline void convert(float value, float& out) { out = value; }
__device__ inline void convert(float value, __half& out) { out = __float2half_rn(value); }

// Writes model inputs: tables or affine, pooling.
template <typename Sample, int Channels, typename Out>
struct EmitInputs {
  static constexpr int kPixels = 16 / sizeof(Out);
  static constexpr int kOutputs = Channels == 3 ? 5 : 1;
  Out* out;
  int height, width;
  bool pool, aligned;
  Affine affine[kOutputs];
  int table[kOutputs];  // where the channel's begins

  EmitInputs(const PrepareSpec& spec, Out* out)
      : out(out),
        height(spec.height),
        width(spec.width),
        pool(spec.pool),
        aligned(reinterpret_cast<std::uintptr_t>(out) % 16 == 0 && spec.width % kPixels == 0),
        affine{},
        table{} {
    for (std::size_t c = 0; c < spec.affine.size() && c < kOutputs; ++c) affine[c] = spec.affine[c];
    for (std::size_t c = 0; c < spec.tables.size() && c < kOutputs; ++c)
      table[c] = static_cast<int>(table_begin(spec, spec.tables[c]));
  }

  __device__ float value(const DevicePlan& plan, int channel, std::uint32_t sample) const {
    if constexpr (sizeof(Sample) == 1) return plan.tables[table[channel] + sample];
    return __fadd_rn(__fmul_rn(static_cast<float>(sample), affine[channel].scale), affine[channel].offset);
  }

  // The n <= kPixels pixels from (y, x) on of an image.
  __device__ void store(const DevicePlan& plan, unsigned image, int y, int x, int n,
                        const Sample (&sample)[Channels][kPixels]) const {
    const int channels = Channels + (pool ? 2 : 0);
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(height) * width;
    Out* const to = out + image * channels * plane + static_cast<std::ptrdiff_t>(y) * width + x;
#pragma unroll
    for (int channel = 0; channel < kOutputs; ++channel) {
      if (channel >= channels) break;
      Pack<Out, kPixels> values;
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        if (j >= n) break;
        convert(value(plan, channel, integer(sample, channel, j)), values.value[j]);
      }
      if (aligned && n == kPixels) {
        *reinterpret_cast<Pack<Out, kPixels>*>(to + channel * plane) = values;
      } else {
#pragma unroll
        for (int j = 0; j < kPixels; ++j)
          if (j < n) to[channel * plane + j] = values.value[j];
      }
    }
  }

  __device__ static std::uint32_t integer(const Sample (&sample)[Channels][kPixels], int channel, int j) {
    if constexpr (Channels == 3) {
      const std::uint32_t r = sample[0][j], g = sample[1][j], b = sample[2][j];
      if (channel == 3) return max(max(r, g), b);
      if (channel == 4) return r + g + b;
      return channel == 0 ? r : channel == 1 ? g : b;
    }
    return sample[0][j];
  }
};

// Writes the resized integers themselves.
template <typename Sample, int Channels>
struct EmitIntegers {
  static constexpr int kPixels = 4;
  Sample* out;
  int height, width;
  bool aligned;

  EmitIntegers(const PrepareSpec& spec, Sample* out)
      : out(out),
        height(spec.height),
        width(spec.width),
        aligned(reinterpret_cast<std::uintptr_t>(out) % sizeof(Pack<Sample, kPixels>) == 0 &&
                spec.width % kPixels == 0) {}

  __device__ void store(const DevicePlan&, unsigned image, int y, int x, int n,
                        const Sample (&sample)[Channels][kPixels]) const {
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(height) * width;
    Sample* const to = out + image * Channels * plane + static_cast<std::ptrdiff_t>(y) * width + x;
#pragma unroll
    for (int c = 0; c < Channels; ++c) {
      if (aligned && n == kPixels) {
        Pack<Sample, kPixels> values;
#pragma unroll
        for (int j = 0; j < kPixels; ++j) values.value[j] = sample[c][j];
        *reinterpret_cast<Pack<Sample, kPixels>*>(to + c * plane) = values;
      } else {
#pragma unroll
        for (int j = 0; j < kPixels; ++j)
          if (j < n) to[c * plane + j] = sample[c][j];
      }
    }
  }
};

// The parts of a block of memory that is made on the host and used on the device, each at a multiple of 16 bytes.
class Blob {
 public:
  template <typename T>
  std::size_t add(const T* values, std::size_t n) {
    const std::size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + n * sizeof(T));
    if (n) std::memcpy(bytes_.data() + at, values, n * sizeof(T));
    return at;
  }
  template <typename T>
  void set(std::size_t at, const std::vector<T>& values) {
    std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
  }
  const std::vector<unsigned char>& bytes() const { return bytes_; }

 private:
  std::vector<unsigned char> bytes_;
};

}  // namespace
}  // namespace kizu::cuda
