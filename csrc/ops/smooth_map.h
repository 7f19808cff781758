// smooth_map: a residual map -> the size of the region it was computed of, Gaussian-smoothed; for display and pixel
// scores.
//
// Both steps are linear and separable, so each axis has one matrix, computed in float64 on the host: bilinear
// interpolation to the region's pixels (pixel centres at half integers, edges repeated; the antialiased triangle where
// the map is larger than the region), then a Gaussian of standard deviation sigma, cut off at 4 sigma and normalised,
// on the region's pixels, edges repeated. The matrix' rows are rounded to float32 and applied to the columns first,
// then to the rows, in float32, inputs ascending, without contraction: the same bits everywhere. Each output of an axis
// reads as many inputs as the one that needs most, some with weights of 0; a NaN or infinity among those makes it NaN.
#pragma once

#include <vector>

#include "core/cuda.h"
#include "core/parallel.h"

namespace kizu {

// One axis: output i is the weighted sum of `taps` inputs from first[i] on.
struct SmoothAxis {
  int n_in = 0, n_out = 0, taps = 0;
  std::vector<int> first;      // (n_out)
  std::vector<float> weights;  // (n_out, taps)

  SmoothAxis() = default;
  // Outputs are the n_out pixels of a region; the inputs n_in cover the part of it from `begin` to `end`, in the
  // region's pixels (with a centre crop less than the whole). Pixels outside that part are given weights of 0.
  SmoothAxis(int n_in, int n_out, double begin, double end, double sigma);
};

struct SmoothMapPlan {
  SmoothAxis rows, columns;
};

// Throws std::invalid_argument for what cpu::smooth_map and cuda::smooth_map refuse.
void check_smooth_map(const SmoothMapPlan& plan, int maps, const float* map, const float* out);

namespace cpu {

struct SmoothMapScratch {
  std::vector<float> columns;  // (maps, rows.n_in, columns.n_out)
  std::vector<float> bands;    // some rows of it, transposed, one part a thread
};

// map: (maps, rows.n_in, columns.n_in); out: (maps, rows.n_out, columns.n_out).
void smooth_map(const SmoothMapPlan& plan, int maps, const float* map, float* out, SmoothMapScratch& scratch,
                ThreadPool& pool);

}  // namespace cpu

namespace cuda {

struct SmoothMapScratch {
  DeviceBuffer plan, columns;
  std::vector<float> copied;  // what `plan` holds
};

void smooth_map(const SmoothMapPlan& plan, int maps, const float* map, float* out, SmoothMapScratch& scratch,
                const Stream& stream);

}  // namespace cuda
}  // namespace kizu
