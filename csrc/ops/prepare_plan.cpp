// What is computed once a geometry: regions, weights, rotations.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <numbers>
#include <utility>

#include "core/check.h"
#include "core/half.h"
#include "ops/prepare.h"

namespace kizu {

namespace {

constexpr std::size_t kMostInputs = 1 << 20;

}  // namespace

// In double and in Pillow's order of operations; the build turns contraction off, so no compiler fuses them.
void ResizeAxis::set(int inputs, int outputs, int window_begin, int window_count, int precision_bits) {
  if (n_in == inputs && n_out == outputs && begin == window_begin && count == window_count) return;
  n_in = inputs, n_out = outputs, begin = window_begin, count = window_count, taps = 0;
  const double scale = static_cast<double>(n_in) / n_out;
  const double support = std::max(scale, 1.0);  // of the triangle, widened by the reduction
  const double inverse = 1.0 / support;
  const auto low = [&](int i) { return std::max(static_cast<int>((i + 0.5) * scale - support + 0.5), 0); };
  const auto high = [&](int i) { return std::min(static_cast<int>((i + 0.5) * scale + support + 0.5), n_in); };
  for (int i = begin; i < begin + count; ++i) taps = std::max(taps, high(i) - low(i));
  first.resize(count);
  weights.assign(static_cast<std::size_t>(count) * taps, 0);
  std::vector<double> triangle(taps);
  const int one = 1 << precision_bits;
  for (int j = 0; j < count; ++j) {
    const int i = begin + j, n = high(i) - low(i);
    const double centre = (i + 0.5) * scale;
    double total = 0.0;
    for (int k = 0; k < n; ++k) {
      const double distance = std::abs((k + low(i) - centre + 0.5) * inverse);
      triangle[k] = distance < 1.0 ? 1.0 - distance : 0.0;
      total += triangle[k];
    }
    first[j] = std::min(low(i), n_in - taps);
    std::uint32_t* to = &weights[static_cast<std::size_t>(j) * taps + (low(i) - first[j])];
    std::uint32_t sum = 0;
    for (int k = 0; k < n; ++k) sum += to[k] = static_cast<std::uint32_t>(0.5 + triangle[k] / total * one);
    if (precision_bits == kDeepPrecisionBits) *std::max_element(to, to + n) += one - sum;
  }
}

Extent tile(int n, int count, int overlap, int index) {
  if (count == 1) return {0, n};
  const std::int64_t size = (n + (count - 1) * static_cast<std::int64_t>(overlap) + count - 1) / count;
  check(overlap < size && size <= n && count <= n, "tiles that overlap by ", overlap, " pixels do not fit ", count,
        " times into ", n);
  return {static_cast<int>(index * (n - size) / (count - 1)), static_cast<int>(size)};
}

PreparePlan::PreparePlan(PrepareSpec spec) : spec_(std::move(spec)) {
  const PixelFormat& format = spec_.format;
  check(format.channels == 1 || format.channels == 3, "channels is ", format.channels, ", but must be 1 or 3");
  check(format.bit_depth >= 8 && format.bit_depth <= 16, "bit_depth is ", format.bit_depth,
        ", but must be from 8 to 16");
  check(format.bayer == Bayer::none || (format.channels == 3 && !format.bgr && format.packing == Packing::none),
        "a Bayer pattern has three channels, no order and no packing");
  check(!format.bgr || format.channels == 3, "blue comes first only among three channels");
  const int packed = format.packing == Packing::none ? 0 : format.packing == Packing::mono10p ? 10 : 12;
  check(packed == 0 || (format.channels == 1 && format.bit_depth == packed), "packed samples have ", packed,
        " bits and one channel");

  check(spec_.height > 0 && spec_.width > 0, "the output is ", spec_.height, "x", spec_.width, ", but needs pixels");
  check(spec_.height <= 32768 && spec_.width <= 32768 && spec_.resize_height <= 32768 && spec_.resize_width <= 32768,
        "a side may have 32768 pixels");
  check(spec_.resize_height >= spec_.height && spec_.resize_width >= spec_.width, "the resize to ", spec_.resize_height,
        "x", spec_.resize_width, " is smaller than the output of ", spec_.height, "x", spec_.width);
  check(spec_.tile_rows >= 1 && spec_.tile_columns >= 1 && spec_.tile_overlap >= 0, "tiles are ", spec_.tile_rows, "x",
        spec_.tile_columns, " with an overlap of ", spec_.tile_overlap);
  check(static_cast<std::size_t>(spec_.tile_rows) * spec_.tile_columns <= kMostInputs, "there are ", spec_.tile_rows,
        "x", spec_.tile_columns, " tiles, but ", kMostInputs, " are the most");
  check(!spec_.boxes || (!spec_.crop && spec_.tile_rows == 1 && spec_.tile_columns == 1),
        "boxes come in place of a crop and tiles");
  check(spec_.rotations >= 1 && spec_.rotations <= 3600, "rotations is ", spec_.rotations,
        ", but must be from 1 to 3600");
  check(!spec_.pool || format.channels == 3, "maximum and mean are of three channels");
  const std::size_t outputs = spec_.output_channels(), tables = format.deep() ? 0 : outputs;
  check(spec_.tables.size() == tables, "there are ", spec_.tables.size(), " tables, but must be ", tables);
  check(spec_.affine.size() == outputs - tables, "there are ", spec_.affine.size(), " scales, but must be ",
        outputs - tables);
  for (std::size_t i = 0; i < tables; ++i) {
    const std::size_t entries = i == 4 ? 3 * 255 + 1 : 256;
    check(spec_.tables[i].size() == entries, "table ", i, " has ", spec_.tables[i].size(), " entries, but needs ",
          entries);
  }

  check(spec_.lines.empty() || spec_.lines.size() == tables, "there are ", spec_.lines.size(), " lines for ", tables,
        " tables");
  exact_.resize(outputs, !spec_.lines.empty());
  for (std::size_t c = 0; c < spec_.lines.size(); ++c)
    for (std::size_t i = 0; i < spec_.tables[c].size(); ++i) {
      const float value = static_cast<float>(static_cast<double>(i) * spec_.lines[c].scale + spec_.lines[c].offset);
      if (std::bit_cast<std::uint32_t>(value) != std::bit_cast<std::uint32_t>(spec_.tables[c][i])) exact_[c] = false;
    }

  for (int r = 0; r < spec_.rotations; ++r) {
    const double angle = 2.0 * std::numbers::pi * r / spec_.rotations;
    const auto fixed = [](double value) { return static_cast<std::int32_t>(std::floor(value * 65536.0 + 0.5)); };
    rotations_.push_back({fixed(std::cos(angle)), fixed(std::sin(angle))});
  }
  if (spec_.half)
    for (const auto& table : spec_.tables) {
      auto& half = half_tables_.emplace_back();
      for (const float value : table) half.push_back(float_to_half(value));
    }
}

int PreparePlan::axis(int n_in, int n_out, int count) {
  const int begin = (n_out - count) / 2;
  const int bits = spec_.format.deep() ? kDeepPrecisionBits : kPrecisionBits;
  for (std::size_t i = 0; i < axis_count_; ++i) {
    const ResizeAxis& a = axes_[i];
    if (a.n_in == n_in && a.n_out == n_out && a.begin == begin && a.count == count) return static_cast<int>(i);
  }
  if (axes_.size() == axis_count_) axes_.emplace_back();
  axes_[axis_count_].set(n_in, n_out, begin, count, bits);
  return static_cast<int>(axis_count_++);
}

void PreparePlan::check_frames(const Frames& frames) const {
  check(frames.height == height_ && frames.width == width_, "the frames are ", frames.height, "x", frames.width,
        ", but the plan is for ", height_, "x", width_);
  check(frames.data.size() * views_.size() * spec_.rotations <= kMostInputs, "the frames make ",
        frames.data.size() * views_.size() * spec_.rotations, " inputs, but ", kMostInputs, " are the most at once");
}

void PreparePlan::set_geometry(std::ptrdiff_t height, std::ptrdiff_t width, std::span<const Region> boxes) {
  const bool same_boxes = std::equal(boxes.begin(), boxes.end(), regions_.begin(), regions_.end());
  if (height == height_ && width == width_ && (!spec_.boxes || same_boxes)) return;
  const PixelFormat& format = spec_.format;
  check(height > 0 && width > 0, "the frame is ", height, "x", width, ": it has no pixels");
  check(height <= 32768 && width <= 32768, "the frame is ", height, "x", width, ", but a side may have 32768 pixels");
  check(format.bayer == Bayer::none || (height >= 2 && width >= 2), "the frame is ", height, "x", width,
        ", but a Bayer pattern has 2x2 pixels");
  const Region whole{0, 0, static_cast<int>(width), static_cast<int>(height)};
  const auto check_inside = [&](const Region& r, const char* name) {
    check(0 <= r.left && r.left < r.right && r.right <= width && 0 <= r.top && r.top < r.bottom && r.bottom <= height,
          "the ", name, " (left, top, right, bottom) = (", r.left, ", ", r.top, ", ", r.right, ", ", r.bottom,
          ") does not lie in the frame, which is ", width, " pixels wide and ", height, " high");
  };

  std::vector<Region> regions;
  if (spec_.boxes) {
    for (const Region& box : boxes) check_inside(box, "box");
    regions.assign(boxes.begin(), boxes.end());
  } else {
    const Region crop = spec_.crop.value_or(whole);
    check_inside(crop, spec_.crop ? "crop" : "frame");
    for (int i = 0; i < spec_.tile_rows; ++i)
      for (int j = 0; j < spec_.tile_columns; ++j) {
        const Extent y = tile(crop.bottom - crop.top, spec_.tile_rows, spec_.tile_overlap, i);
        const Extent x = tile(crop.right - crop.left, spec_.tile_columns, spec_.tile_overlap, j);
        regions.push_back(
            {crop.left + x.begin, crop.top + y.begin, crop.left + x.begin + x.size, crop.top + y.begin + y.size});
      }
  }
  for (const Region& r : regions)
    check(!format.deep() ||
              (r.right - r.left <= 256 * spec_.resize_width && r.bottom - r.top <= 256 * spec_.resize_height),
          "a region of ", r.bottom - r.top, "x", r.right - r.left,
          " pixels is more than 256 times the size it is resized ", "to, ", spec_.resize_height, "x",
          spec_.resize_width, ": too much for samples of more than 8 bits");

  // Nothing below throws, but for want of memory; then the next call starts anew.
  height_ = width_ = 0;
  regions_ = std::move(regions);
  views_.clear();
  axis_count_ = 0;
  for (const Region& region : regions_) {
    const int rows = region.bottom - region.top, columns = region.right - region.left;
    const int fewer_rows = rows - spec_.resize_height, fewer_columns = columns - spec_.resize_width;
    const int row_axis = axis(rows, spec_.resize_height, spec_.height);
    views_.push_back({region, row_axis, axis(columns, spec_.resize_width, spec_.width),
                      fewer_rows > std::max(0, 2 * fewer_columns)});
  }
  height_ = height;
  width_ = width;
  static std::atomic<std::uint64_t> versions{0};
  version_ = ++versions;
}

}  // namespace kizu
