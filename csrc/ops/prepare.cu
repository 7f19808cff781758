// One launch prepares up to 64 frames, if the columns come first in all of their views or in none, else two; with
// rotations one more turns the resized integers.
//
// A thread block computes a tile of one view's outputs. Where the columns come first each warp brings input rows to
// shared memory in 16-byte pieces, one at a time, and resizes their columns; where the rows come first the tile's whole
// input is brought there. The second pass, tables, pooling and layout follow from shared memory. A reduction so strong
// that not even the smallest tile fits is computed by one thread an output pixel, straight from global memory.
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/cuda_kernel.cuh"
#include "ops/prepare.h"
#include "ops/prepare_device.cuh"

namespace kizu::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr std::size_t kSharedLimit = 48 << 10;

// Rows of a warp's 16-byte pieces keep the phase of their address in memory.
__host__ __device__ inline int raw_pitch(int samples, int sample_size) {
  return (samples * sample_size + 15 + 15) / 16 * 16;
}

using Tile = PrepareTile;

// The parts of a tile's shared memory.
template <typename Sample>
struct TileMemory {
  std::uint32_t *column_weights, *row_weights;  // (taps, width), (height, taps)
  int *column_first, *row_first;                // relative to the tile's first input
  unsigned char* raw;                           // rows of raw_pitch bytes: one a warp, or all of in_height
  Sample* middle;                               // after the first pass

  __device__ TileMemory(unsigned char* memory, const Tile& tile, int row_taps, int column_taps, int raw_bytes) {
    column_weights = reinterpret_cast<std::uint32_t*>(memory);
    row_weights = column_weights + tile.width * column_taps;
    column_first = reinterpret_cast<int*>(row_weights + tile.height * row_taps);
    row_first = column_first + tile.width;
    raw = memory + tile_words(tile.width, tile.height, row_taps, column_taps);
    middle = reinterpret_cast<Sample*>(raw + raw_bytes);
  }

  // Bytes of the weights and first inputs, rounded up to 16.
  __host__ __device__ static int tile_words(int width, int height, int row_taps, int column_taps) {
    return (4 * (width * column_taps + height * row_taps + width + height) + 15) / 16 * 16;
  }
};

// Brings samples [0, n) of a row to shared memory, by one warp; returns where the first one lies there.
template <typename Sample>
__device__ inline const Sample* stage_direct(const unsigned char* from, int n, unsigned char* raw, int thread) {
  const int bytes = n * static_cast<int>(sizeof(Sample));
  const int phase = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) % 16);
  const int head = min((16 - phase) % 16, bytes), pieces = (bytes - head) / 16, tail = head + 16 * pieces;
  unsigned char* const to = raw + phase;
  // Samples, not bytes: the address of one is a multiple of its size.
  const auto copy = [&](int begin, int end) {
    const int i = begin + thread * static_cast<int>(sizeof(Sample));
    if (i < end) *reinterpret_cast<Sample*>(to + i) = *reinterpret_cast<const Sample*>(from + i);
  };
  copy(0, head);
  for (int i = thread; i < pieces; i += 32)
    *reinterpret_cast<uint4*>(to + head + 16 * i) = *reinterpret_cast<const uint4*>(from + head + 16 * i);
  copy(tail, bytes);
  return reinterpret_cast<const Sample*>(to);
}

// The same for frames that are strided or have to be decoded, sample by sample.
template <typename Sample, int Channels>
__device__ inline const Sample* stage_decoded(const Source& source, const void* frame, int y, int x, int pixels,
                                              unsigned char* raw, int thread) {
  Sample* const to = reinterpret_cast<Sample*>(raw);
#pragma unroll 1  // registers matter more here
  for (int i = thread; i < pixels; i += 32) {
    Sample pixel[Channels];
    decode<Sample, Channels>(source, frame, y, x + i, pixel);
#pragma unroll
    for (int c = 0; c < Channels; ++c) to[i * Channels + c] = pixel[c];
  }
  return to;
}

template <typename Sample, int Channels>
__device__ inline const Sample* stage_row(const Source& source, const void* frame, int y, int x, int pixels,
                                          unsigned char* raw, int thread) {
  if (source.packed) {
    const auto* from = static_cast<const unsigned char*>(frame) + y * source.row + x * source.column;
    return stage_direct<Sample>(from, pixels * Channels, raw, thread);
  }
  return stage_decoded<Sample, Channels>(source, frame, y, x, pixels, raw, thread);
}

// First pass where the columns come first: each warp takes input rows in turn. middle: (in_height, Channels, width).
template <typename Sample, int Channels>
__device__ inline void resize_columns_first(const Source& source, const void* frame, int top, int left, int in_width,
                                            int in_height, int width, int taps, const Tile& t, int pitch,
                                            const TileMemory<Sample>& m) {
  const int warp = static_cast<int>(threadIdx.x / 32), thread = static_cast<int>(threadIdx.x % 32);
  for (int r = warp; r < in_height; r += kWarps) {
    const Sample* const row =
        stage_row<Sample, Channels>(source, frame, top + r, left, in_width, m.raw + warp * pitch, thread);
    __syncwarp();
    for (int x = thread; x < width; x += 32) {
      const Sample* from = row + m.column_first[x] * Channels;
      const std::uint32_t* weight = m.column_weights + x;
      std::uint32_t sum[Channels];  // in memory's order
#pragma unroll
      for (int c = 0; c < Channels; ++c) sum[c] = Rounding<Sample>::half;
      for (int k = 0; k < taps; ++k, weight += t.width, from += Channels) {
#pragma unroll
        for (int c = 0; c < Channels; ++c) sum[c] += *weight * from[c];
      }
#pragma unroll
      for (int c = 0; c < Channels; ++c)
        m.middle[(r * Channels + (source.swapped ? Channels - 1 - c : c)) * t.width + x] =
            Rounding<Sample>::round(sum[c]);
    }
    __syncwarp();
  }
}

// First pass where the rows come first, from all of the tile's input. middle: (height, in_width, Channels).
template <typename Sample, int Channels>
__device__ inline void resize_rows_first(const Source& source, const void* frame, int top, int left, int in_width,
                                         int in_height, int height, int taps, const Tile& t, int pitch,
                                         const TileMemory<Sample>& m) {
  const int warp = static_cast<int>(threadIdx.x / 32), thread = static_cast<int>(threadIdx.x % 32);
  for (int r = warp; r < in_height; r += kWarps)
    stage_row<Sample, Channels>(source, frame, top + r, left, in_width, m.raw + r * pitch, thread);
  __syncthreads();
  for (int y = warp; y < height; y += kWarps) {
    for (int i = thread; i < in_width * Channels; i += 32) {
      std::uint32_t sum = Rounding<Sample>::half;
      for (int k = 0; k < taps; ++k) {
        const int r = m.row_first[y] + k;
        const unsigned char* const row = m.raw + r * pitch + source.phase(frame, top + r, left);
        sum += m.row_weights[y * taps + k] * reinterpret_cast<const Sample*>(row)[i];
      }
      m.middle[y * t.in_width * Channels + i] = Rounding<Sample>::round(sum);
    }
  }
}

// Second pass: Pixels neighbours from (y, x) on, of each channel.
template <bool RowsFirst, typename Sample, int Channels, int Pixels>
__device__ inline void resize_second(const Source& source, int y, int x, int width, int taps, const Tile& t,
                                     const TileMemory<Sample>& m, Sample (&value)[Channels][Pixels]) {
#pragma unroll
  for (int c = 0; c < Channels; ++c) {
    std::uint32_t sum[Pixels];
#pragma unroll
    for (int j = 0; j < Pixels; ++j) sum[j] = Rounding<Sample>::half;
    if constexpr (RowsFirst) {
#pragma unroll
      for (int j = 0; j < Pixels; ++j) {
        const int column = min(x + j, width - 1);
        const Sample* const from =
            m.middle + (y * t.in_width + m.column_first[column]) * Channels + (source.swapped ? Channels - 1 - c : c);
#pragma unroll 1  // of Pixels loops side by side
        for (int k = 0; k < taps; ++k) sum[j] += m.column_weights[k * t.width + column] * from[k * Channels];
      }
    } else {
      // t.width is a multiple of Pixels, so the pack lies inside the row; what it holds beyond `width` is not used.
      const Sample* from = m.middle + (m.row_first[y] * Channels + c) * t.width + x;
      for (int k = 0; k < taps; ++k, from += Channels * t.width) {
        const auto samples = *reinterpret_cast<const Pack<Sample, Pixels>*>(from);
#pragma unroll
        for (int j = 0; j < Pixels; ++j) sum[j] += m.row_weights[y * taps + k] * samples.value[j];
      }
    }
#pragma unroll
    for (int j = 0; j < Pixels; ++j) value[c][j] = Rounding<Sample>::round(sum[j]);
  }
}

// The views of one order. Grid: (tiles across, tiles down, views of all frames).
template <bool RowsFirst, typename Sample, int Channels, typename Emit>
__global__ void __launch_bounds__(kThreads, 3)
    tile_kernel(const Source source, const DevicePlan plan, const Tile t, const Emit emit) {
  KIZU_DYNAMIC_SHARED(unsigned char, memory);
  constexpr int kPixels = Emit::kPixels;
  const View view = plan.view[blockIdx.z % plan.views];
  if (view.rows_first != RowsFirst) return;
  const void* const frame = source.frames.data[blockIdx.z / plan.views];
  const Axis rows = plan.axis[view.rows], columns = plan.axis[view.columns];
  const int x0 = static_cast<int>(blockIdx.x) * t.width, y0 = static_cast<int>(blockIdx.y) * t.height;
  const int width = min(t.width, columns.count - x0), height = min(t.height, rows.count - y0);
  const int in_x = columns.first[x0], in_y = rows.first[y0];
  const int in_width = columns.first[x0 + width - 1] + columns.taps - in_x;
  const int in_height = rows.first[y0 + height - 1] + rows.taps - in_y;
  const int pitch = raw_pitch(t.in_width * Channels, sizeof(Sample));
  const TileMemory<Sample> m(memory, t, rows.taps, columns.taps, pitch * (RowsFirst ? t.in_height : kWarps));

  for (int i = threadIdx.x; i < width; i += kThreads) m.column_first[i] = columns.first[x0 + i] - in_x;
  for (int i = threadIdx.x; i < height; i += kThreads) m.row_first[i] = rows.first[y0 + i] - in_y;
  // Column weights with outputs side by side, so that a warp's threads read different banks.
  for (int i = threadIdx.x; i < width * columns.taps; i += kThreads)
    m.column_weights[i % columns.taps * t.width + i / columns.taps] = columns.weights[x0 * columns.taps + i];
  for (int i = threadIdx.x; i < height * rows.taps; i += kThreads) m.row_weights[i] = rows.weights[y0 * rows.taps + i];
  __syncthreads();
  if constexpr (RowsFirst)
    resize_rows_first<Sample, Channels>(source, frame, view.top + in_y, view.left + in_x, in_width, in_height, height,
                                        rows.taps, t, pitch, m);
  else
    resize_columns_first<Sample, Channels>(source, frame, view.top + in_y, view.left + in_x, in_width, in_height, width,
                                           columns.taps, t, pitch, m);
  __syncthreads();
  const int across = (width + kPixels - 1) / kPixels;
  for (int i = threadIdx.x; i < across * height; i += kThreads) {
    const int x = i % across * kPixels, y = i / across;
    Sample value[Channels][kPixels];
    resize_second<RowsFirst>(source, y, x, width, RowsFirst ? columns.taps : rows.taps, t, m, value);
    emit.store(plan, blockIdx.z, y0 + y, x0 + x, min(kPixels, width - x), value);
  }
}

// One thread an output pixel, both passes from global memory. Grid: (pixels, views of all frames).
template <bool RowsFirst, typename Sample, int Channels, typename Emit>
__global__ void __launch_bounds__(kThreads) pixel_kernel(const Source source, const DevicePlan plan, const Emit emit) {
  const View view = plan.view[blockIdx.y % plan.views];
  if (view.rows_first != RowsFirst) return;
  const void* const frame = source.frames.data[blockIdx.y / plan.views];
  const Axis rows = plan.axis[view.rows], columns = plan.axis[view.columns];
  const int pixel = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (pixel >= rows.count * columns.count) return;
  const int x = pixel % columns.count, y = pixel / columns.count;
  const Axis outer = RowsFirst ? columns : rows, inner = RowsFirst ? rows : columns;
  const int o = RowsFirst ? x : y, i = RowsFirst ? y : x;
  std::uint32_t sum[Channels];
#pragma unroll
  for (int c = 0; c < Channels; ++c) sum[c] = Rounding<Sample>::half;
  for (int k = 0; k < outer.taps; ++k) {
    std::uint32_t inner_sum[Channels];
#pragma unroll
    for (int c = 0; c < Channels; ++c) inner_sum[c] = Rounding<Sample>::half;
    for (int l = 0; l < inner.taps; ++l) {
      const int outer_at = outer.first[o] + k, inner_at = inner.first[i] + l;
      Sample sample[Channels];
      decode<Sample, Channels>(source, frame, view.top + (RowsFirst ? inner_at : outer_at),
                               view.left + (RowsFirst ? outer_at : inner_at), sample);
#pragma unroll
      for (int c = 0; c < Channels; ++c) inner_sum[c] += inner.weights[i * inner.taps + l] * sample[c];
    }
#pragma unroll
    for (int c = 0; c < Channels; ++c)
      sum[c] += outer.weights[o * outer.taps + k] * Rounding<Sample>::round(inner_sum[c]);
  }
  Sample value[Channels][Emit::kPixels] = {};
#pragma unroll
  for (int c = 0; c < Channels; ++c) value[c][0] = Rounding<Sample>::round(sum[c]);
  emit.store(plan, blockIdx.y, y, x, 1, value);
}

// Turns the integers (images, channels, height, width). A thread block has a tile that is about as wide as high, so
// that what it reads lies close together at every angle. Grid: (tiles across, tiles down, images x rotations).
constexpr int kTurnPacks = 8, kTurnRows = kThreads / kTurnPacks;

template <typename Sample, int Channels, typename Emit>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(const Sample* integers, const DevicePlan plan, const Emit emit) {
  constexpr int kPixels = Emit::kPixels;
  const int width = emit.width, height = emit.height;
  const int x0 = static_cast<int>(blockIdx.x * kTurnPacks + threadIdx.x) * kPixels;
  const int y = static_cast<int>(blockIdx.y * kTurnRows + threadIdx.y);
  if (x0 >= width || y >= height) return;
  const Rotation turn = plan.rotation[blockIdx.z % plan.rotations];
  const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(width) * height;
  const Sample* const image = integers + blockIdx.z / plan.rotations * Channels * plane;
  Sample value[Channels][kPixels];
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    const RotatedPixel p(turn, min(x0 + j, width - 1), y, width, height);
#pragma unroll
    for (int c = 0; c < Channels; ++c) value[c][j] = p.sample(image + c * plane, width);
  }
  emit.store(plan, blockIdx.z, y, x0, min(kPixels, width - x0), value);
}

// The largest tile, from a short list, that fits the limit of shared memory. Widths are multiples of every Emit's
// kPixels.
template <typename Sample, int Channels>
Tile choose_tile(const PreparePlan& plan, bool rows_first) {
  constexpr int kHeights[] = {16, 8, 4, 2, 1};
  constexpr int kWidths[] = {32, 16, 8};
  const auto extent = [](const ResizeAxis& axis, int tile) {
    int most = 0;
    for (int i = 0; i < axis.count; i += tile)
      most = std::max(most, axis.first[std::min(i + tile, axis.count) - 1] + axis.taps - axis.first[i]);
    return most;
  };
  Tile tile;
  for (const auto& view : plan.views()) tile.any = tile.any || view.rows_first == rows_first;
  if (!tile.any) return tile;
  for (const int width : kWidths) {
    for (const int height : kHeights) {
      if (height < 4 && width > 8) continue;
      tile = {true, width, height};
      int row_taps = 0, column_taps = 0;
      for (const auto& view : plan.views()) {
        if (view.rows_first != rows_first) continue;
        tile.in_width = std::max(tile.in_width, extent(plan.columns(view), width));
        tile.in_height = std::max(tile.in_height, extent(plan.rows(view), height));
        row_taps = std::max(row_taps, plan.rows(view).taps);
        column_taps = std::max(column_taps, plan.columns(view).taps);
      }
      const std::size_t raw = static_cast<std::size_t>(raw_pitch(tile.in_width * Channels, sizeof(Sample))) *
                              (rows_first ? tile.in_height : kWarps);
      const std::size_t middle = static_cast<std::size_t>(rows_first ? height : tile.in_height) *
                                 (rows_first ? tile.in_width : width) * Channels * sizeof(Sample);
      tile.shared = TileMemory<Sample>::tile_words(width, height, row_taps, column_taps) + raw + middle;
      if (tile.shared <= kSharedLimit) return tile;
    }
  }
  return {true};
}

unsigned cover(int n, int tile) { return static_cast<unsigned>((n + tile - 1) / tile); }

// The views of one order, if there are any.
template <bool RowsFirst, typename Sample, int Channels, typename Emit>
void launch_order(const PrepareSpec& spec, const Source& source, const DevicePlan& device, const Tile& tile,
                  const Emit& emit, const Stream& stream) {
  if (!tile.any) return;
  const unsigned images = static_cast<unsigned>(source.count * device.views);
  if (tile.width > 0)
    launch(tile_kernel<RowsFirst, Sample, Channels, Emit>,
           dim3(cover(spec.width, tile.width), cover(spec.height, tile.height), images), dim3(kThreads), tile.shared,
           stream, source, device, tile, emit);
  else
    launch(pixel_kernel<RowsFirst, Sample, Channels, Emit>, dim3(cover(spec.height * spec.width, kThreads), images),
           dim3(kThreads), 0, stream, source, device, emit);
}

template <typename Sample, int Channels, typename Emit>
void launch_views(const PreparePlan& plan, const Source& source, const DevicePlan& device,
                  const PrepareScratch& scratch, const Emit& emit, const Stream& stream) {
  launch_order<false, Sample, Channels>(plan.spec(), source, device, scratch.tiles[0], emit, stream);
  launch_order<true, Sample, Channels>(plan.spec(), source, device, scratch.tiles[1], emit, stream);
}

template <typename Sample, int Channels, typename Out>
void run(const PreparePlan& plan, const Source& source, const DevicePlan& device, void* out, PrepareScratch& scratch,
         const Stream& stream) {
  const PrepareSpec& spec = plan.spec();
  if (spec.rotations == 1)
    return launch_views<Sample, Channels>(plan, source, device, scratch,
                                          EmitInputs<Sample, Channels, Out>(spec, static_cast<Out*>(out)), stream);
  const int images = source.count * device.views;
  const std::size_t plane = static_cast<std::size_t>(spec.width) * spec.height;
  auto* integers = static_cast<Sample*>(scratch.integers.reserve(images * Channels * plane * sizeof(Sample)));
  launch_views<Sample, Channels>(plan, source, device, scratch, EmitIntegers<Sample, Channels>(spec, integers), stream);
  using Emit = EmitInputs<Sample, Channels, Out>;
  const dim3 grid(cover(spec.width, kTurnPacks * Emit::kPixels), cover(spec.height, kTurnRows),
                  static_cast<unsigned>(images * spec.rotations));
  launch(rotate_kernel<Sample, Channels, Emit>, grid, dim3(kTurnPacks, kTurnRows), 0, stream,
         static_cast<const Sample*>(integers), device, Emit(spec, static_cast<Out*>(out)));
}

// Calls body(Sample{}, integral_constant<Channels>) for the spec's samples.
template <typename Body>
void by_samples(const PrepareSpec& spec, const Body& body) {
  using One = std::integral_constant<int, 1>;
  using Three = std::integral_constant<int, 3>;
  const bool three = spec.format.channels == 3;
  if (spec.format.deep())
    three ? body(std::uint16_t{}, Three{}) : body(std::uint16_t{}, One{});
  else
    three ? body(std::uint8_t{}, Three{}) : body(std::uint8_t{}, One{});
}

// Copies the plan's arrays to the device, in one block of memory, and chooses the tiles.
void upload(const PreparePlan& plan, PrepareScratch& scratch, const Stream& stream) {
  const PrepareSpec& spec = plan.spec();
  scratch.version = 0;  // until all is done
  Blob blob;
  std::vector<std::size_t> first, weights;
  for (const auto& axis : plan.axes()) {
    first.push_back(blob.add(axis.first.data(), axis.first.size()));
    weights.push_back(blob.add(axis.weights.data(), axis.weights.size()));
  }
  std::vector<View> views;
  for (const auto& view : plan.views())
    views.push_back({view.region.left, view.region.top, view.rows, view.columns, view.rows_first});
  scratch.views = blob.add(views.data(), views.size());
  scratch.rotations = blob.add(plan.rotations().data(), plan.rotations().size());
  std::vector<float> tables;
  for (const auto& table : spec.tables)
    if (table_begin(spec, table) == tables.size()) tables.insert(tables.end(), table.begin(), table.end());
  scratch.tables = blob.add(tables.data(), tables.size());
  std::vector<Axis> axes(first.size());
  scratch.axes = blob.add(axes.data(), axes.size());
  const auto* base = static_cast<const unsigned char*>(scratch.plan.reserve(blob.bytes().size()));
  for (std::size_t i = 0; i < axes.size(); ++i)
    axes[i] = {reinterpret_cast<const int*>(base + first[i]), reinterpret_cast<const std::uint32_t*>(base + weights[i]),
               plan.axes()[i].count, plan.axes()[i].taps};
  blob.set(scratch.axes, axes);
  scratch.plan.assign(blob.bytes().data(), blob.bytes().size(), stream);
  by_samples(spec, [&]<typename Sample, int Channels>(Sample, std::integral_constant<int, Channels>) {
    for (const bool rows_first : {false, true})
      scratch.tiles[rows_first] = choose_tile<Sample, Channels>(plan, rows_first);
  });
  scratch.version = plan.version();
}

DevicePlan on_device(const PreparePlan& plan, PrepareScratch& scratch, const Stream& stream) {
  if (scratch.version != plan.version()) upload(plan, scratch, stream);
  const auto* base = static_cast<const unsigned char*>(scratch.plan.data());
  return {reinterpret_cast<const View*>(base + scratch.views),
          reinterpret_cast<const Axis*>(base + scratch.axes),
          reinterpret_cast<const Rotation*>(base + scratch.rotations),
          reinterpret_cast<const float*>(base + scratch.tables),
          static_cast<int>(plan.views().size()),
          static_cast<int>(plan.rotations().size())};
}

// Calls body(source, first frame) for groups of frames that one launch can take: their pointers fit a kernel's
// arguments, their images a grid's third side.
template <typename Body>
void by_groups(const PreparePlan& plan, const Frames& frames, const Body& body) {
  constexpr int kMostImages = 65535;
  check(plan.inputs() <= kMostImages, "a frame has ", plan.inputs(), " views, but CUDA takes at most ", kMostImages);
  const std::size_t most = std::min(kMostFrames, kMostImages / plan.inputs());
  for (std::size_t first = 0; first < frames.data.size(); first += most)
    body(Source(plan.spec().format, frames, first, most), first);
}

}  // namespace

void check_frames(const PreparePlan& plan, const Frames& frames) {
  plan.check_frames(frames);
  const PixelFormat& format = plan.spec().format;
  if (!format.deep() || format.packing != Packing::none) return;
  bool aligned = frames.row % 2 == 0 && frames.column % 2 == 0 && frames.channel % 2 == 0;
  for (const void* frame : frames.data) aligned = aligned && reinterpret_cast<std::uintptr_t>(frame) % 2 == 0;
  check(aligned, "samples of ", format.bit_depth, " bits must be aligned on a CUDA device: addresses and strides even");
}

void prepare(const PreparePlan& plan, const Frames& frames, void* out, PrepareScratch& scratch, const Stream& stream) {
  const PrepareSpec& spec = plan.spec();
  check_frames(plan, frames);
  if (plan.inputs() == 0) return;  // no boxes
  const DevicePlan device = on_device(plan, scratch, stream);
  const std::size_t frame_bytes =
      static_cast<std::size_t>(plan.inputs()) * spec.output_channels() * spec.height * spec.width * (spec.half ? 2 : 4);
  by_groups(plan, frames, [&](const Source& source, std::size_t first) {
    void* const to = static_cast<unsigned char*>(out) + first * frame_bytes;
    by_samples(spec, [&]<typename Sample, int Channels>(Sample, std::integral_constant<int, Channels>) {
      spec.half ? run<Sample, Channels, __half>(plan, source, device, to, scratch, stream)
                : run<Sample, Channels, float>(plan, source, device, to, scratch, stream);
    });
  });
}

void resize(const PreparePlan& plan, const Frames& frames, void* out, PrepareScratch& scratch, const Stream& stream) {
  const PrepareSpec& spec = plan.spec();
  check_frames(plan, frames);
  if (plan.inputs() == 0) return;
  const DevicePlan device = on_device(plan, scratch, stream);
  by_groups(plan, frames, [&](const Source& source, std::size_t first) {
    by_samples(spec, [&]<typename Sample, int Channels>(Sample, std::integral_constant<int, Channels>) {
      const std::size_t view = static_cast<std::size_t>(Channels) * spec.height * spec.width;
      launch_views<Sample, Channels>(
          plan, source, device, scratch,
          EmitIntegers<Sample, Channels>(spec, static_cast<Sample*>(out) + first * device.views * view), stream);
    });
  });
}

}  // namespace kizu::cuda
