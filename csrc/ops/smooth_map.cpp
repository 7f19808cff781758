#include "ops/smooth_map.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>

#include "core/check.h"
#include "ops/smooth_map_kernels.h"
#include "ops/softplus.h"

namespace kizu {
namespace {

constexpr int kLargest = 1 << 15;  // pixels of a side
constexpr double kTruncate = 4;    // standard deviations

// One row of the interpolation's matrix: weights of the inputs from `first` on.
struct Row {
  int first = 0;
  std::vector<double> weights;
};

// Pillow's BILINEAR, of the inputs that cover [begin, end); none for a pixel outside.
Row interpolate(int n_in, double begin, double end, int pixel) {
  Row row;
  const double place = pixel + 0.5;
  if (!(place >= begin && place < end)) return row;
  const double scale = n_in / (end - begin), support = std::max(scale, 1.0), centre = (place - begin) * scale;
  row.first = std::clamp(static_cast<int>(centre - support + 0.5), 0, n_in - 1);
  const int last = std::clamp(static_cast<int>(centre + support + 0.5), row.first + 1, n_in);
  double total = 0;
  for (int k = row.first; k < last; ++k) {
    row.weights.push_back(std::max(0.0, 1 - std::abs((k + 0.5 - centre) / support)));
    total += row.weights.back();
  }
  for (double& weight : row.weights) weight /= total;
  return row;
}

// Of the pixels at distances -radius ... radius.
std::vector<double> gaussian(double sigma) {
  const int radius = static_cast<int>(kTruncate * sigma + 0.5);
  std::vector<double> weights;
  double total = 0;
  for (int d = -radius; d <= radius; ++d) {
    weights.push_back(d == 0 ? 1 : exp_of_nonpositive(-0.5 * (d / sigma) * (d / sigma)));
    total += weights.back();
  }
  for (double& weight : weights) weight /= total;
  return weights;
}

}  // namespace

SmoothAxis::SmoothAxis(int n_in, int n_out, double begin, double end, double sigma) : n_in(n_in), n_out(n_out) {
  check(n_in >= 1 && n_in <= kLargest && n_out >= 1 && n_out <= kLargest, "the map has ", n_in,
        " pixels along an axis and its region ", n_out, ", but both must have from 1 to ", kLargest);
  check(begin >= 0 && begin < end && end <= n_out, "the map covers the region's pixels from ", begin, " to ", end,
        ", but that must be a part of 0 to ", n_out);
  check(sigma >= 0 && sigma <= n_out, "sigma is ", sigma, " pixels, but must be from 0 to the region's ", n_out);

  std::vector<Row> interpolation;
  for (int i = 0; i < n_out; ++i) interpolation.push_back(interpolate(n_in, begin, end, i));
  const std::vector<double> smoothing = gaussian(sigma);
  const int radius = static_cast<int>(smoothing.size() / 2);

  // The product's rows: the inputs from starts[i] to ends[i] have a weight other than 0.
  std::vector<std::vector<float>> rows;
  std::vector<double> row(static_cast<std::size_t>(n_in));
  for (int i = 0; i < n_out; ++i) {
    std::fill(row.begin(), row.end(), 0.0);
    for (int d = -radius; d <= radius; ++d) {
      const Row& of = interpolation[static_cast<std::size_t>(std::clamp(i + d, 0, n_out - 1))];
      for (std::size_t k = 0; k < of.weights.size(); ++k)
        row[of.first + k] += smoothing[static_cast<std::size_t>(d + radius)] * of.weights[k];
    }
    rows.emplace_back(row.begin(), row.end());
    const auto used = [](float weight) { return weight != 0; };
    const std::vector<float>& rounded = rows.back();
    const auto start = std::find_if(rounded.begin(), rounded.end(), used);
    const auto stop = std::find_if(rounded.rbegin(), rounded.rend(), used).base();
    first.push_back(start == rounded.end() ? 0 : static_cast<int>(start - rounded.begin()));
    taps = std::max(taps, start == rounded.end() ? 1 : static_cast<int>(stop - start));
  }
  // As many taps for each; those that need fewer get weights of 0.
  weights.reserve(static_cast<std::size_t>(n_out) * taps);
  for (int i = 0; i < n_out; ++i) {
    first[i] = std::min(first[i], n_in - taps);
    const auto start = rows[i].begin() + first[i];
    weights.insert(weights.end(), start, start + taps);
  }
}

void check_smooth_map(const SmoothMapPlan& plan, int maps, const float* map, const float* out) {
  check(plan.rows.n_out >= 1 && plan.columns.n_out >= 1, "the plan is empty");
  check(maps >= 1 && map && out, "there are no maps, or no memory for them");
}

namespace cpu {

void smooth_map(const SmoothMapPlan& plan, int maps, const float* map, float* out, SmoothMapScratch& scratch,
                ThreadPool& pool) {
  check_smooth_map(plan, maps, map, out);
  const SmoothAxis &rows = plan.rows, &columns = plan.columns;
  const SmoothMapKernels& kernels = KIZU_EACH_LEVEL_PICK(smooth_map_kernels);

  // Columns: bands of kMapLanes rows, transposed so that a vector holds one pixel of each row.
  const std::ptrdiff_t n_rows = static_cast<std::ptrdiff_t>(maps) * rows.n_in;
  scratch.columns.resize(static_cast<std::size_t>(n_rows) * columns.n_out);
  const std::size_t part_size = static_cast<std::size_t>(kMapLanes) * (columns.n_in + columns.n_out);
  scratch.bands.resize(part_size * pool.threads());
  std::atomic<std::ptrdiff_t> next{0};
  pool.run([&](int part) {
    float* band = scratch.bands.data() + part * part_size;
    float* resized = band + static_cast<std::size_t>(kMapLanes) * columns.n_in;
    for (std::ptrdiff_t top; (top = kMapLanes * next.fetch_add(1, std::memory_order_relaxed)) < n_rows;) {
      const int height = static_cast<int>(std::min<std::ptrdiff_t>(kMapLanes, n_rows - top));
      kernels.transpose(map + top * columns.n_in, columns.n_in, height, columns.n_in, band, kMapLanes);
      for (int i = 0; i < columns.n_out; ++i)
        kernels.combine(band + static_cast<std::ptrdiff_t>(columns.first[i]) * kMapLanes, kMapLanes,
                        columns.weights.data() + static_cast<std::ptrdiff_t>(i) * columns.taps, columns.taps, height,
                        resized + static_cast<std::ptrdiff_t>(i) * kMapLanes);
      kernels.transpose(resized, kMapLanes, columns.n_out, height, scratch.columns.data() + top * columns.n_out,
                        columns.n_out);
    }
  });

  constexpr std::ptrdiff_t kRows = 16;  // output rows that a thread takes at a time; they share most of their inputs
  const std::ptrdiff_t n_out = static_cast<std::ptrdiff_t>(maps) * rows.n_out;
  next = 0;
  pool.run([&](int) {
    for (std::ptrdiff_t top; (top = kRows * next.fetch_add(1, std::memory_order_relaxed)) < n_out;)
      for (std::ptrdiff_t row = top; row < std::min(top + kRows, n_out); ++row) {
        const std::ptrdiff_t image = row / rows.n_out, i = row % rows.n_out;
        kernels.combine(scratch.columns.data() + (image * rows.n_in + rows.first[i]) * columns.n_out, columns.n_out,
                        rows.weights.data() + i * rows.taps, rows.taps, columns.n_out, out + row * columns.n_out);
      }
  });
}

}  // namespace cpu
}  // namespace kizu
