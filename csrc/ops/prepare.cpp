#include "ops/prepare.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "core/check.h"
#include "ops/prepare_rows.h"

namespace kizu {

// In double and in Pillow's order of operations; the build turns contraction off, so no compiler fuses them.
ResizeAxis::ResizeAxis(int n_in, int n_out) : n_in(n_in), n_out(n_out) {
  const double scale = static_cast<double>(n_in) / n_out;
  const double support = std::max(scale, 1.0);  // of the triangle, widened by the reduction
  const double inverse = 1.0 / support;
  const auto low = [&](int i) { return std::max(static_cast<int>((i + 0.5) * scale - support + 0.5), 0); };
  const auto high = [&](int i) { return std::min(static_cast<int>((i + 0.5) * scale + support + 0.5), n_in); };
  for (int i = 0; i < n_out; ++i) taps = std::max(taps, high(i) - low(i));
  first.resize(n_out);
  weights.assign(static_cast<std::size_t>(n_out) * taps, 0);
  std::vector<double> triangle(taps);
  for (int i = 0; i < n_out; ++i) {
    const double centre = (i + 0.5) * scale;
    const int count = high(i) - low(i);
    double total = 0.0;
    for (int k = 0; k < count; ++k) {
      const double distance = std::abs((k + low(i) - centre + 0.5) * inverse);
      triangle[k] = distance < 1.0 ? 1.0 - distance : 0.0;
      total += triangle[k];
    }
    first[i] = std::min(low(i), n_in - taps);
    std::int32_t* to = &weights[static_cast<std::size_t>(i) * taps + (low(i) - first[i])];
    for (int k = 0; k < count; ++k)
      to[k] = static_cast<std::int32_t>(0.5 + triangle[k] / total * (1 << cpu::kPrecisionBits));
  }
}

PreparePlan::PreparePlan(PrepareSpec spec) : spec_(std::move(spec)) {
  check(spec_.height > 0 && spec_.width > 0, "the output is ", spec_.height, "x", spec_.width, ", but needs pixels");
  check(spec_.channels == 1 || spec_.channels == 3, "channels is ", spec_.channels, ", but must be 1 or 3");
  const std::size_t channels = spec_.channels, tables = spec_.tables.size();
  check(tables == channels || (channels == 3 && tables == channels + 2), "there are ", tables, " tables for ", channels,
        " channels");
  for (std::size_t i = 0; i < tables; ++i) {
    const std::size_t entries = i == channels + 1 ? 255 * channels + 1 : 256;
    check(spec_.tables[i].size() == entries, "table ", i, " has ", spec_.tables[i].size(), " entries, but needs ",
          entries);
  }
}

void PreparePlan::set_frame_size(std::ptrdiff_t height, std::ptrdiff_t width) {
  check(height > 0 && width > 0, "the frame is ", height, "x", width, ": it has no pixels");
  check(height <= 32768 && width <= 32768, "the frame is ", height, "x", width, ", but a side may have 32768 pixels");
  if (const auto& crop = spec_.crop) {
    check(0 <= crop->left && crop->left < crop->right && crop->right <= width && 0 <= crop->top &&
              crop->top < crop->bottom && crop->bottom <= height,
          "the crop lies outside the frame of ", height, "x", width);
    height = crop->bottom - crop->top;
    width = crop->right - crop->left;
  }
  if (rows_.n_in != height) rows_ = ResizeAxis(static_cast<int>(height), spec_.height);
  if (columns_.n_in != width) columns_ = ResizeAxis(static_cast<int>(width), spec_.width);
}

namespace cpu {
namespace {

struct Level {
  const char* name;
  const RowKernels* kernels;
};

std::vector<Level> levels() {
  std::vector<Level> found;
#ifdef KIZU_X86_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    found.push_back({"avx512", &avx512::kernels});
#endif
  found.push_back({"baseline", &baseline::kernels});
  return found;
}

const RowKernels& row_kernels() {
  static const RowKernels* chosen = [] {
    const auto found = levels();
    const char* wanted = std::getenv("KIZU_SIMD");
    if (!wanted || !*wanted) return found.front().kernels;
    std::string names;
    for (const auto& level : found) {
      if (std::strcmp(level.name, wanted) == 0) return level.kernels;
      names += std::string(names.empty() ? "" : ", ") + level.name;
    }
    check(false, "KIZU_SIMD is '", wanted, "', but this processor and build have: ", names);
    return found.front().kernels;
  }();
  return *chosen;
}

struct Band {
  int out_begin, out_end;  // output rows
  int in_begin, in_end;    // input rows they need, within the crop
};

Band band(const ResizeAxis& rows, int part, int parts) {
  const auto cut = [&](int i) { return static_cast<int>(static_cast<std::int64_t>(rows.n_out) * i / parts); };
  Band b{cut(part), cut(part + 1), 0, 0};
  if (b.out_begin < b.out_end) {
    b.in_begin = rows.first[b.out_begin];
    b.in_end = rows.first[b.out_end - 1] + rows.taps;
  }
  return b;
}

// Rows of a frame whose pixels lie side by side in memory, within the crop.
struct PackedRows {
  const std::uint8_t* first;  // of input row `begin`
  std::ptrdiff_t stride;
  int begin;
  bool swapped;  // the channels are in reverse order

  const std::uint8_t* row(int y) const { return first + (y - begin) * stride; }
};

bool is_packed(const Frame& frame) {
  const auto channel = frame.strides[2];
  return frame.strides[1] == frame.shape[2] && (frame.shape[2] == 1 || channel == 1 || channel == -1);
}

// The rows that a band needs, in place where the frame's pixels are packed, else copied to `scratch`.
PackedRows pack(const PreparePlan& plan, const Frame& frame, const Band& b, std::vector<std::uint8_t>& scratch) {
  const auto [row, column, channel] = frame.strides;
  const std::ptrdiff_t channels = frame.shape[2], width = plan.columns().n_in;
  const std::uint8_t* from = frame.data + b.in_begin * row;
  if (const auto& crop = plan.spec().crop) from += crop->top * row + crop->left * column;
  if (is_packed(frame)) {
    const bool swapped = channels > 1 && channel < 0;
    return {swapped ? from + (channels - 1) * channel : from, row, b.in_begin, swapped};
  }
  std::uint8_t* to = scratch.data();
  for (int y = b.in_begin; y < b.in_end; ++y, from += row)
    for (std::ptrdiff_t x = 0; x < width; ++x)
      for (std::ptrdiff_t c = 0; c < channels; ++c) *to++ = from[x * column + c * channel];
  return {scratch.data(), width * channels, b.in_begin, false};
}

// Resizes the columns of up to kLanes rows; resized: (lanes, stride) of (channels, output width).
template <typename RowAt>
void resize_block(const RowKernels& kernels, const PreparePlan& plan, const RowAt& row_at, int lanes, bool swapped,
                  PrepareScratch::Part& scratch, std::uint8_t* resized, std::ptrdiff_t stride) {
  const ResizeAxis& columns = plan.columns();
  const std::ptrdiff_t channels = plan.spec().channels, width = columns.n_out;
  const std::uint8_t* rows[kLanes];
  for (int r = 0; r < kLanes; ++r) rows[r] = row_at(std::min(r, lanes - 1));
  kernels.interleave(rows, columns.n_in * channels, scratch.block.data());
  const auto resize_columns = channels == 1 ? kernels.resize_columns : kernels.resize_columns_of_three;
  resize_columns(scratch.block.data(), swapped, columns.first.data(), columns.weights.data(), columns.taps,
                 columns.n_out, scratch.resized.data());
  kernels.deinterleave(scratch.resized.data(), channels * width, resized, stride);
}

// Calls sink(y, planes) with the resized integers of each output row y of this part, (channels, width).
template <typename Sink>
void resize_part(const PreparePlan& plan, const Frame& frame, PrepareScratch::Part& scratch, int part, int parts,
                 const Sink& sink) {
  const RowKernels& kernels = row_kernels();
  const Band b = band(plan.rows(), part, parts);
  const PackedRows input = pack(plan, frame, b, scratch.packed);
  const std::ptrdiff_t channels = plan.spec().channels;
  const std::ptrdiff_t n_in = channels * plan.columns().n_in, n_out = channels * plan.columns().n_out;
  const std::ptrdiff_t stride = padded(n_out);
  const auto resize_row = [&](int y, const std::uint8_t* first, std::ptrdiff_t row_stride, std::ptrdiff_t n,
                              std::uint8_t* out) {
    const ResizeAxis& rows = plan.rows();
    kernels.resize_rows(first, row_stride, rows.taps, &rows.weights[static_cast<std::size_t>(y) * rows.taps], n, out);
  };
  std::uint8_t* rows = scratch.rows.data();
  if (plan.rows_first()) {
    std::uint8_t* planes = rows + n_in * kLanes;
    for (int y = b.out_begin; y < b.out_end; y += kLanes) {
      const int lanes = std::min(kLanes, b.out_end - y);
      for (int r = 0; r < lanes; ++r)
        resize_row(y + r, input.row(plan.rows().first[y + r]), input.stride, n_in, rows + r * n_in);
      resize_block(
          kernels, plan, [&](int r) { return rows + r * n_in; }, lanes, input.swapped, scratch, planes, stride);
      for (int r = 0; r < lanes; ++r) sink(y + r, planes + r * stride);
    }
  } else {
    for (int y = b.in_begin; y < b.in_end; y += kLanes)
      resize_block(
          kernels, plan, [&](int r) { return input.row(y + r); }, std::min(kLanes, b.in_end - y), input.swapped,
          scratch, rows + (y - b.in_begin) * stride, stride);
    std::uint8_t* planes = scratch.resized.data();
    for (int y = b.out_begin; y < b.out_end; ++y) {
      resize_row(y, rows + (plan.rows().first[y] - b.in_begin) * stride, stride, n_out, planes);
      sink(y, planes);
    }
  }
}

}  // namespace

void PrepareScratch::fit(const PreparePlan& plan, const Frame& frame, int threads) {
  const std::size_t channels = plan.spec().channels;
  const std::size_t n_in = channels * plan.columns().n_in, n_out = padded(channels * plan.columns().n_out);
  const auto grow = [](std::vector<std::uint8_t>& v, std::size_t size) {
    if (v.size() < size) v.resize(size);
  };
  if (parts.size() < static_cast<std::size_t>(threads)) parts.resize(threads);
  for (int part = 0; part < threads; ++part) {
    const Band b = band(plan.rows(), part, threads);
    PrepareScratch::Part& scratch = parts[part];
    const std::size_t rows = b.in_end - b.in_begin;
    if (!is_packed(frame)) grow(scratch.packed, n_in * rows);
    grow(scratch.rows, plan.rows_first() ? (n_in + n_out) * kLanes : n_out * padded(rows));
    grow(scratch.block, n_in * kLanes);
    grow(scratch.resized, n_out * kLanes);
  }
}

void prepare(const PreparePlan& plan, const Frame& frame, float* out, PrepareScratch& scratch, ThreadPool& pool) {
  const PrepareSpec& spec = plan.spec();
  const std::ptrdiff_t width = spec.width, plane = width * spec.height;
  const bool pooled = spec.tables.size() > static_cast<std::size_t>(spec.channels);
  row_kernels();  // an unknown KIZU_SIMD throws here, not in a worker
  scratch.fit(plan, frame, pool.threads());
  pool.run([&](int part) {
    resize_part(plan, frame, scratch.parts[part], part, pool.threads(), [&](int y, const std::uint8_t* planes) {
      float* row = out + y * width;
      for (int c = 0; c < spec.channels; ++c) {
        const float* table = spec.tables[c].data();
        for (std::ptrdiff_t x = 0; x < width; ++x) row[c * plane + x] = table[planes[c * width + x]];
      }
      if (!pooled) return;
      const std::uint8_t *r = planes, *g = planes + width, *b = planes + 2 * width;
      const float *of_max = spec.tables[3].data(), *of_sum = spec.tables[4].data();
      for (std::ptrdiff_t x = 0; x < width; ++x) {
        row[3 * plane + x] = of_max[std::max(std::max(r[x], g[x]), b[x])];
        row[4 * plane + x] = of_sum[r[x] + g[x] + b[x]];
      }
    });
  });
}

void resize(const PreparePlan& plan, const Frame& frame, std::uint8_t* out, PrepareScratch& scratch, ThreadPool& pool) {
  const PrepareSpec& spec = plan.spec();
  const std::ptrdiff_t width = spec.width, plane = width * spec.height;
  row_kernels();
  scratch.fit(plan, frame, pool.threads());
  pool.run([&](int part) {
    resize_part(plan, frame, scratch.parts[part], part, pool.threads(), [&](int y, const std::uint8_t* planes) {
      for (int c = 0; c < spec.channels; ++c) std::memcpy(out + c * plane + y * width, planes + c * width, width);
    });
  });
}

std::vector<const char*> instruction_sets() {
  std::vector<const char*> names;
  for (const auto& level : levels()) names.push_back(level.name);
  return names;
}

}  // namespace cpu
}  // namespace kizu
