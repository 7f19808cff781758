// prepare: camera frames -> unpack -> crop, tiles or boxes -> resize -> centre crop -> rotate -> normalise -> channel
// maximum and mean -> NCHW float32 or float16.
//
// Defined on integers, so that no instruction set, device, thread count or batch can change a bit:
//   - unpacking: Bayer patterns are demosaicked bilinearly, (a + b + 1) >> 1 and (a + b + c + d + 2) >> 2, neighbours
//     beyond an edge mirrored about the edge's pixel; packed samples are those of GenICam's PFNC. Both are done on the
//     whole frame, before any crop.
//   - the resize of 8-bit samples is what Pillow 13 computes for crop(region).resize(size, BILINEAR): along each axis,
//         out = clip8((2^21 + sum_k w_k in_k) >> 22),
//     with triangle-filter weights, the support scaled to the reduction, rounded to 22 bits. Columns come first,
//     unless the height shrinks and by more than twice as many pixels as the width: then rows come first. (Earlier
//     Pillows always began with the columns; the order decides the last bit, so it is part of the definition.)
//   - that of deeper samples keeps 16 bits: out = (2^15 + sum_k w_k in_k) >> 16, with weights rounded to 16 bits whose
//     sum is made 65536 by correcting the largest (the first of equals). A side may shrink 256 times at most: beyond
//     that the correction could exceed the weight.
//   - rotations turn the resized integers about the centre, counter-clockwise, by whole parts of a turn: see Rotation.
//   - each output value of 8-bit samples is read from its channel's table, indexed by the integer, by the channels'
//     maximum (256 entries) or by their sum (766 entries for three channels); that of deeper samples is
//     fl(fl(v * scale) + offset) in float32. float16 is the float32 value rounded to nearest even.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/cuda.h"
#include "core/parallel.h"

namespace kizu {

enum class Bayer { none, rggb, grbg, gbrg, bggr };  // colours of the top left 2x2 samples, row by row
enum class Packing { none, mono10p, mono12p, mono12packed };

// How a frame's bytes are read.
struct PixelFormat {
  int channels = 3;                 // of a decoded pixel: 1 or 3
  int bit_depth = 8;                // 8: samples are uint8; 9 to 16: uint16 (packed formats: 10 or 12)
  bool bgr = false;                 // three samples a pixel, blue first
  Bayer bayer = Bayer::none;        // one sample a pixel, decoded to three channels
  Packing packing = Packing::none;  // one channel; rows of bytes

  bool deep() const { return bit_depth > 8; }                                  // decoded samples are uint16
  int stored_channels() const { return bayer == Bayer::none ? channels : 1; }  // samples of a pixel in memory
};

// Frames of one size and layout; owns nothing.
struct Frames {
  std::span<const void* const> data;     // the first sample of each
  std::ptrdiff_t height = 0, width = 0;  // pixels
  // Bytes between neighbours; may be negative or zero. Packed rows have no column or channel stride.
  std::ptrdiff_t row = 0, column = 0, channel = 0;
};

struct Region {
  int left, top, right, bottom;  // pixels; right and bottom are the first ones outside
  bool operator==(const Region&) const = default;
};

// fl(fl(v * scale) + offset), of one output channel.
struct Affine {
  float scale, offset;
};

// float(v * scale + offset) in double, of one output channel.
struct Line {
  double scale, offset;
};

struct PrepareSpec {
  PixelFormat format;
  int height, width;                // of the model's input
  int resize_height, resize_width;  // what a region is resized to; its centre, height x width, is kept
  std::optional<Region> crop;       // of the frame; the whole if absent
  // Tiles of the crop: equal in size, cover it, and overlap by at least tile_overlap pixels; see tile().
  int tile_rows = 1, tile_columns = 1, tile_overlap = 0;
  bool boxes = false;                      // regions of the frame come with every call, in place of the tiles
  int rotations = 1;                       // each region is turned by r / rotations of a turn, r = 0 ...
  bool pool = false;                       // append the channels' maximum and mean
  bool half = false;                       // the output is float16
  std::vector<std::vector<float>> tables;  // 8-bit samples: one an output channel
  // 8-bit samples: what the tables were made by, or nothing. Where it gives a table's very bits it is computed, which
  // is faster than reading a table.
  std::vector<Line> lines;
  std::vector<Affine> affine;  // deeper samples: one an output channel; the mean's is applied to the sum

  int output_channels() const { return format.channels + (pool ? 2 : 0); }
};

// Pillow's BILINEAR weights along one axis, for `count` outputs from `begin` on of the n_out of the whole resize.
struct ResizeAxis {
  int n_in = 0, n_out = 0, begin = 0, count = 0;
  int taps = 0;                        // inputs of every output; weights of 0 fill up those that need fewer
  std::vector<int> first;              // (count) the first of each output's inputs
  std::vector<std::uint32_t> weights;  // (count, taps), fixed point: 22 bits for 8-bit samples, 16 for deeper ones

  // Reuses the vectors' memory; does nothing if it is as wanted already (precision_bits are those of the last time).
  void set(int n_in, int n_out, int begin, int count, int precision_bits);
};

constexpr int kPrecisionBits = 22, kDeepPrecisionBits = 16;

struct Extent {
  int begin, size;
};

// Tile `index` of `count` over n pixels: each has ceil((n + (count - 1) overlap) / count) pixels, and they begin at
// floor(index (n - size) / (count - 1)). Throws std::invalid_argument if a tile would not be larger than the overlap.
Extent tile(int n, int count, int overlap, int index);

// The turn by angle = 2 pi r / k, counter-clockwise. The output pixel (x, y) of a width x height image, with
// dx = 2x - (width - 1), dy = 2y - (height - 1), reads the position, in units of 2^-17 pixels,
//     sx = cos dx - sin dy + (width - 1) 2^16,   sy = sin dx + cos dy + (height - 1) 2^16
// (cos and sin rounded to 16 bits of fraction): 0 if the nearest pixel lies outside, that is unless
// -2^16 <= sx < (2 width - 1) 2^16 and so for sy; else the bilinear mean of four pixels, indices clamped to the image,
// with the fractions of qx = (sx + 256) >> 9 and qy in 1/256 pixels: (2^15 + sum_4 w p) >> 16.
struct Rotation {
  std::int32_t cos, sin;
};

// What a geometry needs: computed on its first frames, reused after that.
class PreparePlan {
 public:
  struct View {
    Region region;      // of the frame
    int rows, columns;  // indices into axes()
    bool rows_first;
  };

  // Throws std::invalid_argument for a spec that cannot be computed.
  explicit PreparePlan(PrepareSpec spec);

  const PrepareSpec& spec() const { return spec_; }
  // Regions of a frame, in the order of the output; each is followed by its rotations.
  std::span<const View> views() const { return views_; }
  const ResizeAxis& rows(const View& view) const { return axes_[view.rows]; }
  const ResizeAxis& columns(const View& view) const { return axes_[view.columns]; }
  std::span<const ResizeAxis> axes() const { return {axes_.data(), axis_count_}; }
  std::span<const Rotation> rotations() const { return rotations_; }
  // spec().tables in float16, if that is the output's type.
  std::span<const std::vector<std::uint16_t>> half_tables() const { return half_tables_; }
  // The line that gives the bits of the table of an output channel, if there is one.
  const Line* line(int channel) const { return exact_[channel] ? &spec_.lines[channel] : nullptr; }
  // Another one whenever the views or axes change, and in every plan; never 0 once there are views.
  std::uint64_t version() const { return version_; }
  // Model inputs of one frame.
  int inputs() const { return static_cast<int>(views_.size()) * spec_.rotations; }

  // Sets the views and weights for frames of this size, and with spec().boxes for these boxes; throws
  // std::invalid_argument if the crop or a box lies outside. Does nothing if neither changed.
  void set_geometry(std::ptrdiff_t height, std::ptrdiff_t width, std::span<const Region> boxes = {});

  // Throws std::invalid_argument for frames that are not of this geometry, or make too many inputs.
  void check_frames(const Frames& frames) const;

 private:
  // The index of the axis that resizes n_in pixels to n_out and keeps `count` in the middle.
  int axis(int n_in, int n_out, int count);

  PrepareSpec spec_;
  std::ptrdiff_t height_ = 0, width_ = 0;
  std::vector<Region> regions_;  // of views_
  std::vector<View> views_;
  std::vector<ResizeAxis> axes_;  // the first axis_count_ are in use; the others keep their memory
  std::size_t axis_count_ = 0;
  std::vector<Rotation> rotations_;
  std::vector<std::vector<std::uint16_t>> half_tables_;
  std::vector<bool> exact_;  // spec_.lines are the tables
  std::uint64_t version_ = 0;
};

namespace cpu {

// Work space, grown when a geometry needs more.
struct PrepareScratch {
  struct Part {
    std::vector<std::uint8_t> mosaic, decoded, block, resized, rows, planes, pooled;
  };
  std::vector<Part> parts;             // one a thread
  std::vector<std::uint8_t> integers;  // all views before they are rotated
};

// out: (frames x views x rotations, output channels, height, width), contiguous. Throws std::invalid_argument unless
// the frames are of the plan's geometry.
void prepare(const PreparePlan& plan, const Frames& frames, void* out, PrepareScratch& scratch, ThreadPool& pool);

// The resized integers before rotation and normalisation; out: (frames x views, channels, height, width), uint8, or
// uint16 for deeper samples, contiguous.
void resize(const PreparePlan& plan, const Frames& frames, void* out, PrepareScratch& scratch, ThreadPool& pool);

}  // namespace cpu

namespace cuda {

// What one thread block computes of the views whose columns, or rows, come first.
struct PrepareTile {
  bool any = false;                 // there are such views
  int width = 0, height = 0;        // outputs; 0 if no tile fits
  int in_width = 0, in_height = 0;  // the most inputs that a tile needs
  std::size_t shared = 0;           // bytes of dynamic shared memory
};

// Device copies of what the plan computed, and the integers between resize and rotation.
struct PrepareScratch {
  std::uint64_t version = 0;  // of the plan that was copied last
  PrepareTile tiles[2];       // columns first, rows first
  DeviceBuffer plan, integers;
  std::size_t views = 0, axes = 0, rotations = 0, tables = 0;  // where they begin in `plan`
};

// Throws std::invalid_argument for frames that prepare refuses.
void check_frames(const PreparePlan& plan, const Frames& frames);

// As cpu::prepare, with frames and out in device memory; enqueued on the stream. A new geometry is copied to the device
// first, and that copy waits for the stream. Samples of 16 bits must be aligned: addresses and strides are even.
void prepare(const PreparePlan& plan, const Frames& frames, void* out, PrepareScratch& scratch, const Stream& stream);
void resize(const PreparePlan& plan, const Frames& frames, void* out, PrepareScratch& scratch, const Stream& stream);

}  // namespace cuda
}  // namespace kizu
