// prepare: a strided uint8 frame -> crop -> resize -> normalise -> channel maximum and mean -> NCHW float32.
//
// Defined on integers, so that no instruction set or thread count can change a bit:
//   - the resize is what Pillow 13 computes for crop(region).resize(size, BILINEAR): along each axis,
//         out = clip8((2^21 + sum_k w_k in_k) >> 22),
//     with triangle-filter weights, the support scaled to the reduction, rounded to 22 bits. Columns come first,
//     unless the height shrinks and by more than twice as many pixels as the width: then rows come first. (Earlier
//     Pillows always began with the columns; the order decides the last bit, so it is part of the definition.)
//   - each output value is read from its channel's table, indexed by the resized integer, by the channels'
//     maximum (256 entries) or by their sum (766 entries for three channels).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/parallel.h"
#include "core/tensor_view.h"

namespace kizu {

struct Region {
  int left, top, right, bottom;  // pixels; right and bottom are the first ones outside
};

struct PrepareSpec {
  int height, width;                       // of the output
  int channels;                            // of the frame: 1 or 3
  std::optional<Region> crop;              // the whole frame if absent
  std::vector<std::vector<float>> tables;  // one an output channel: `channels`, or with pooling `channels + 2`
};

// Pillow's BILINEAR weights along one axis.
struct ResizeAxis {
  int n_in = 0, n_out = 0;
  int taps = 0;                       // inputs of every output; weights of 0 fill up those that need fewer
  std::vector<int> first;             // of each output's inputs
  std::vector<std::int32_t> weights;  // (n_out, taps), 22-bit fixed point

  ResizeAxis() = default;
  ResizeAxis(int n_in, int n_out);
};

// What a geometry needs: computed on its first frame, reused without allocation after that.
class PreparePlan {
 public:
  // Throws std::invalid_argument for a spec that cannot be computed.
  explicit PreparePlan(PrepareSpec spec);

  const PrepareSpec& spec() const { return spec_; }
  const ResizeAxis& rows() const { return rows_; }
  const ResizeAxis& columns() const { return columns_; }
  bool rows_first() const {
    return rows_.n_in > rows_.n_out && rows_.n_in - rows_.n_out > 2 * (columns_.n_in - columns_.n_out);
  }

  // Sets the weights for frames of this size; throws std::invalid_argument if the crop lies outside.
  void set_frame_size(std::ptrdiff_t height, std::ptrdiff_t width);

 private:
  PrepareSpec spec_;
  ResizeAxis rows_, columns_;
};

// (height, width, channels), any strides; a negative channel stride reads BGR.
using Frame = TensorView<const std::uint8_t, 3>;

namespace cpu {

// Scratch memory of `prepare`, grown when a geometry needs more, one part a thread.
struct PrepareScratch {
  struct Part {
    std::vector<std::uint8_t> packed, rows, block, resized;
  };
  std::vector<Part> parts;
  void fit(const PreparePlan& plan, const Frame& frame, int threads);
};

// out: (tables.size(), height, width), contiguous. The frame must be of the plan's size.
void prepare(const PreparePlan& plan, const Frame& frame, float* out, PrepareScratch& scratch, ThreadPool& pool);

// The resized integers before normalisation; out: (channels, height, width), contiguous.
void resize(const PreparePlan& plan, const Frame& frame, std::uint8_t* out, PrepareScratch& scratch, ThreadPool& pool);

// Instruction sets of this build that this processor has, best first; prepare uses the first unless the environment
// variable KIZU_SIMD names another.
std::vector<const char*> instruction_sets();

}  // namespace cpu
}  // namespace kizu
