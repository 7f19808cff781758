#include "ops/prepare.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/check.h"
#include "ops/frame_rows.h"
#include "ops/prepare_kernels.h"

namespace kizu::cpu {
namespace {

template <typename T>
const SampleKernels<T>& kernels_for() {
  if constexpr (sizeof(T) == 1)
    return KIZU_EACH_LEVEL_PICK(prepare_kernels).bytes;
  else
    return KIZU_EACH_LEVEL_PICK(prepare_kernels).words;
}

template <typename T>
T* as(std::vector<std::uint8_t>& bytes) {
  return reinterpret_cast<T*>(bytes.data());
}

template <typename T>
void grow(std::vector<std::uint8_t>& bytes, std::size_t count) {
  if (bytes.size() < count * sizeof(T)) bytes.resize(count * sizeof(T));
}

// Calls body(item, part) for every item; the threads take the next one as they get free.
template <typename Body>
void share(ThreadPool& pool, int items, const Body& body) {
  std::atomic<int> next{0};
  pool.run([&](int part) {
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(i, part);
  });
}

// Into how many bands of rows each of n images is cut, so that the threads end at about the same time.
int bands_for(int n, int threads) { return n % threads == 0 ? 1 : threads; }

struct Band {
  int begin, end;  // output rows
};

Band band(int height, int index, int count) {
  const auto cut = [&](int i) { return static_cast<int>(static_cast<std::int64_t>(height) * i / count); };
  return {cut(index), cut(index + 1)};
}

// Input columns that the axis reads.
Extent window(const ResizeAxis& columns) {
  return {columns.first.front(), columns.first.back() + columns.taps - columns.first.front()};
}

// Rows kept between the passes: those of an output, a block more, and some so that they are seldom moved.
int kept_rows(const ResizeAxis& rows) { return 2 * rows.taps + 4 * kBlock; }

// One view of one frame, resized band by band.
template <typename T>
class ViewResize {
 public:
  static void fit(const PreparePlan& plan, const PreparePlan::View& view, const Frames& frames,
                  PrepareScratch::Part& scratch) {
    const ResizeAxis &rows = plan.rows(view), &columns = plan.columns(view);
    const std::size_t channels = plan.spec().format.channels;
    const std::size_t n_in = channels * window(columns).size, n_out = padded(channels * columns.count);
    FrameRows<T>::fit(plan.spec().format, frames, window(columns).size, view.rows_first ? rows.taps : kBlock,
                      scratch.mosaic, scratch.decoded);
    grow<T>(scratch.block, n_in * kBlock);
    grow<T>(scratch.resized, n_out * kBlock);
    grow<T>(scratch.rows, view.rows_first ? n_in * kBlock : n_out * kept_rows(rows));
    grow<T>(scratch.planes, view.rows_first ? n_out * kBlock : n_out);
  }

  ViewResize(const PreparePlan& plan, const PreparePlan::View& view, const Frames& frames, const void* frame,
             PrepareScratch::Part& scratch)
      : kernels_(kernels_for<T>()),
        rows_(plan.rows(view)),
        columns_(plan.columns(view)),
        rows_first_(view.rows_first),
        channels_(plan.spec().format.channels),
        window_(window(columns_)),
        input_(plan.spec().format, frames, frame, kernels_, view.region.left + window_.begin, view.region.top,
               window_.size, scratch.mosaic, scratch.decoded),
        stride_(padded(static_cast<std::ptrdiff_t>(channels_) * columns_.count)),
        scratch_(scratch) {}

  // Calls sink(y, planes) with the integers of each output row y of the band, (channels, width).
  template <typename Sink>
  void run(const Band& b, const Sink& sink) {
    if (b.begin == b.end) return;
    if (rows_first_)
      rows_then_columns(b, sink);
    else
      columns_then_rows(b, sink);
  }

 private:
  template <typename Sink>
  void columns_then_rows(const Band& b, const Sink& sink) {
    T *kept = as<T>(scratch_.rows), *planes = as<T>(scratch_.planes);
    const int capacity = kept_rows(rows_), input_end = rows_.first[b.end - 1] + rows_.taps;
    int begin = rows_.first[b.begin], end = begin;  // input rows whose columns are resized and kept
    for (int y = b.begin; y < b.end; ++y) {
      const int first = rows_.first[y];
      while (end < first + rows_.taps) {
        if (end - begin + kBlock > capacity) {
          std::memmove(kept, kept + (first - begin) * stride_, (end - first) * stride_ * sizeof(T));
          begin = first;
        }
        const int count = std::min(kBlock, input_end - end);
        resize_columns(input_.rows(end, count), input_.stride(), count, kept + (end - begin) * stride_);
        end += count;
      }
      resize_rows(y, kept + (first - begin) * stride_, stride_, stride_, planes);
      sink(y, planes);
    }
  }

  template <typename Sink>
  void rows_then_columns(const Band& b, const Sink& sink) {
    T *resized = as<T>(scratch_.rows), *planes = as<T>(scratch_.planes);
    const std::ptrdiff_t n = static_cast<std::ptrdiff_t>(channels_) * window_.size;
    for (int y = b.begin; y < b.end; y += kBlock) {
      const int count = std::min(kBlock, b.end - y);
      for (int r = 0; r < count; ++r)
        resize_rows(y + r, input_.rows(rows_.first[y + r], rows_.taps), input_.stride(), n, resized + r * n);
      resize_columns(resized, n, count, planes);
      for (int r = 0; r < count; ++r) sink(y + r, planes + r * stride_);
    }
  }

  void resize_rows(int y, const T* from, std::ptrdiff_t from_stride, std::ptrdiff_t n, T* to) const {
    kernels_.resize_rows(from, from_stride, rows_.taps, &rows_.weights[static_cast<std::size_t>(y) * rows_.taps], n,
                         to);
  }

  // The columns of up to kBlock rows; to: (kBlock, stride_) of (channels, width).
  void resize_columns(const T* from, std::ptrdiff_t from_stride, int count, T* to) {
    T *block = as<T>(scratch_.block), *resized = as<T>(scratch_.resized);
    const T* rows[kBlock];
    const auto interleave = [&](const T* first, std::ptrdiff_t n, T* lanes, std::ptrdiff_t step) {
      for (int r = 0; r < kBlock; ++r) rows[r] = first + std::min(r, count - 1) * from_stride;
      kernels_.interleave(rows, n, kBlock * from_stride, lanes, step);
    };
    if (input_.interleaved())
      interleave(from, static_cast<std::ptrdiff_t>(channels_) * window_.size, block, kBlock);
    else
      for (int c = 0; c < channels_; ++c)
        interleave(from + c * input_.plane(), window_.size, block + c * kBlock, channels_ * kBlock);
    const auto resize = channels_ == 1 ? kernels_.resize_columns : kernels_.resize_columns_of_three;
    resize(block, {columns_.first.data(), columns_.weights.data(), columns_.taps, columns_.count}, input_.swapped(),
           resized);
    kernels_.deinterleave(resized, static_cast<std::ptrdiff_t>(channels_) * columns_.count, to, stride_);
  }

  const SampleKernels<T>& kernels_;
  const ResizeAxis &rows_, &columns_;
  const bool rows_first_;
  const int channels_;
  const Extent window_;
  FrameRows<T> input_;
  const std::ptrdiff_t stride_;
  PrepareScratch::Part& scratch_;
};

// Calls sink(image, y, planes, part) with each row of every view of every frame.
template <typename T, typename Sink>
void resize_all(const PreparePlan& plan, const Frames& frames, PrepareScratch& scratch, ThreadPool& pool,
                const Sink& sink) {
  const auto views = plan.views();
  const int count = static_cast<int>(views.size()), images = count * static_cast<int>(frames.data.size());
  const int bands = bands_for(images, pool.threads()), height = plan.spec().height;
  for (const auto& view : views)
    for (auto& part : scratch.parts) ViewResize<T>::fit(plan, view, frames, part);
  share(pool, images * bands, [&](int item, int part) {
    const int image = item / bands;
    ViewResize<T> resize(plan, views[image % count], frames, frames.data[image / count], scratch.parts[part]);
    resize.run(band(height, item % bands, bands), [&](int y, const T* planes) { sink(image, y, planes, part); });
  });
}

// ---- rotation

// Row y of the image `from`, (channels, height, width), turned; to: (channels, width).
template <typename T>
void rotate_row(const T* from, int channels, int height, int width, const Rotation& turn, int y, T* to) {
  constexpr std::int64_t one = 1 << 16;  // half a pixel
  const std::int64_t dy = 2ll * y - (height - 1), most_x = (2ll * width - 1) * one, most_y = (2ll * height - 1) * one;
  const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(width) * height;
  std::int64_t dx = -(width - 1ll);
  for (int x = 0; x < width; ++x, dx += 2) {
    const std::int64_t sx = turn.cos * dx - turn.sin * dy + (width - 1) * one;
    const std::int64_t sy = turn.sin * dx + turn.cos * dy + (height - 1) * one;
    if (sx < -one || sx >= most_x || sy < -one || sy >= most_y) {
      for (int c = 0; c < channels; ++c) to[c * width + x] = 0;
      continue;
    }
    const int qx = static_cast<int>((sx + 256) >> 9), qy = static_cast<int>((sy + 256) >> 9);
    const std::uint32_t fx = qx & 255, fy = qy & 255;
    const int left = std::max(qx >> 8, 0), right = std::min((qx >> 8) + 1, width - 1);
    const std::ptrdiff_t above = static_cast<std::ptrdiff_t>(std::max(qy >> 8, 0)) * width;
    const std::ptrdiff_t below = static_cast<std::ptrdiff_t>(std::min((qy >> 8) + 1, height - 1)) * width;
    for (int c = 0; c < channels; ++c) {
      const T* p = from + c * plane;
      const std::uint32_t sum = (256 - fy) * ((256 - fx) * p[above + left] + fx * p[above + right]) +
                                fy * ((256 - fx) * p[below + left] + fx * p[below + right]);
      to[c * width + x] = static_cast<T>((sum + (1u << 15)) >> 16);
    }
  }
}

// ---- normalisation

template <typename Index, typename Value>
void look_up(const Index* from, int n, const std::vector<Value>& table, Value* to) {
  const Value* values = table.data();
#pragma GCC unroll 8
  for (int x = 0; x < n; ++x) to[x] = values[from[x]];
}

// Writes rows of integers into the model's inputs; Out is float, or uint16_t for float16.
template <typename T, typename Out>
class Normalise {
 public:
  static void fit(const PreparePlan& plan, PrepareScratch::Part& scratch) {
    const std::size_t width = plan.spec().width;
    // The maximum, the sum, and float32 values on their way to float16.
    grow<std::uint32_t>(scratch.pooled, 3 * width);
  }

  Normalise(const PreparePlan& plan, Out* out)
      : kernels_(KIZU_EACH_LEVEL_PICK(prepare_kernels)), plan_(plan), spec_(plan.spec()), out_(out) {}

  void row(int image, int y, const T* planes, PrepareScratch::Part& scratch) const {
    const int width = spec_.width, channels = spec_.format.channels;
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(width) * spec_.height;
    Out* to = out_ + image * plane * spec_.output_channels() + static_cast<std::ptrdiff_t>(y) * width;
    auto* sum = as<std::uint32_t>(scratch.pooled);
    auto* values = reinterpret_cast<float*>(sum + width);
    auto* largest = reinterpret_cast<T*>(sum + 2 * width);
    for (int c = 0; c < channels; ++c) channel(c, planes + c * width, to + c * plane, values);
    if (!spec_.pool) return;
    kernels<T>().pool(planes, width, largest, sum);
    channel(3, largest, to + 3 * plane, values);
    channel(4, sum, to + 4 * plane, values);
  }

 private:
  template <typename Sample>
  const SampleKernels<Sample>& kernels() const {
    return kernels_for<Sample>();
  }

  template <typename Integer>
  void channel(int c, const Integer* from, Out* to, [[maybe_unused]] float* values) const {
    constexpr bool half = sizeof(Out) == 2;
    if constexpr (sizeof(T) == 1) {
      if constexpr (half)
        look_up(from, spec_.width, plan_.half_tables()[c], to);
      else if (const Line* line = plan_.line(c))
        compute(from, *line, to);
      else
        look_up(from, spec_.width, spec_.tables[c], to);
    } else {
      const auto [scale, offset] = spec_.affine[c];
      float* to_float;
      if constexpr (half)
        to_float = values;
      else
        to_float = to;
      if constexpr (sizeof(Integer) == 2)
        kernels_.affine(from, spec_.width, scale, offset, to_float);
      else
        kernels_.affine_of_sum(from, spec_.width, scale, offset, to_float);
      if constexpr (half) kernels_.to_half(values, spec_.width, to);
    }
  }

  void compute(const std::uint8_t* from, const Line& line, float* to) const {
    kernels_.line(from, spec_.width, line.scale, line.offset, to);
  }
  void compute(const std::uint32_t* from, const Line& line, float* to) const {
    kernels_.line_of_sum(from, spec_.width, line.scale, line.offset, to);
  }

  const PrepareKernels& kernels_;
  const PreparePlan& plan_;
  const PrepareSpec& spec_;
  Out* out_;
};

template <typename T>
void resize_to(const PreparePlan& plan, const Frames& frames, T* out, PrepareScratch& scratch, ThreadPool& pool) {
  const PrepareSpec& spec = plan.spec();
  const std::ptrdiff_t width = spec.width, plane = width * spec.height, channels = spec.format.channels;
  resize_all<T>(plan, frames, scratch, pool, [&](int image, int y, const T* planes, int) {
    T* to = out + image * channels * plane + y * width;
    for (std::ptrdiff_t c = 0; c < channels; ++c) std::memcpy(to + c * plane, planes + c * width, width * sizeof(T));
  });
}

template <typename T, typename Out>
void prepare_to(const PreparePlan& plan, const Frames& frames, Out* out, PrepareScratch& scratch, ThreadPool& pool) {
  const PrepareSpec& spec = plan.spec();
  const Normalise<T, Out> normalise(plan, out);
  for (auto& part : scratch.parts) Normalise<T, Out>::fit(plan, part);
  if (spec.rotations == 1) {
    resize_all<T>(plan, frames, scratch, pool, [&](int image, int y, const T* planes, int part) {
      normalise.row(image, y, planes, scratch.parts[part]);
    });
    return;
  }
  const int width = spec.width, height = spec.height, channels = spec.format.channels;
  const int images = static_cast<int>(plan.views().size() * frames.data.size()), inputs = images * spec.rotations;
  const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(width) * height, size = plane * channels;
  grow<T>(scratch.integers, images * size);
  for (auto& part : scratch.parts) grow<T>(part.planes, channels * width);
  const T* integers = as<T>(scratch.integers);
  resize_to<T>(plan, frames, as<T>(scratch.integers), scratch, pool);
  const int bands = bands_for(inputs, pool.threads());
  share(pool, inputs * bands, [&](int item, int part) {
    const int input = item / bands;
    const T* image = integers + input / spec.rotations * size;
    T* planes = as<T>(scratch.parts[part].planes);
    const Band b = band(height, item % bands, bands);
    for (int y = b.begin; y < b.end; ++y) {
      rotate_row(image, channels, height, width, plan.rotations()[input % spec.rotations], y, planes);
      normalise.row(input, y, planes, scratch.parts[part]);
    }
  });
}

void start(PrepareScratch& scratch, const ThreadPool& pool) {
  simd::chosen();  // an unknown KIZU_SIMD throws here, not in a worker
  if (scratch.parts.size() < static_cast<std::size_t>(pool.threads())) scratch.parts.resize(pool.threads());
}

}  // namespace

void prepare(const PreparePlan& plan, const Frames& frames, void* out, PrepareScratch& scratch, ThreadPool& pool) {
  plan.check_frames(frames);
  start(scratch, pool);
  const auto run = [&]<typename T, typename Out>(T, Out) {
    prepare_to<T>(plan, frames, static_cast<Out*>(out), scratch, pool);
  };
  const bool deep = plan.spec().format.deep();
  if (plan.spec().half)
    deep ? run(std::uint16_t{}, std::uint16_t{}) : run(std::uint8_t{}, std::uint16_t{});
  else
    deep ? run(std::uint16_t{}, float{}) : run(std::uint8_t{}, float{});
}

void resize(const PreparePlan& plan, const Frames& frames, void* out, PrepareScratch& scratch, ThreadPool& pool) {
  plan.check_frames(frames);
  start(scratch, pool);
  if (plan.spec().format.deep())
    resize_to(plan, frames, static_cast<std::uint16_t*>(out), scratch, pool);
  else
    resize_to(plan, frames, static_cast<std::uint8_t*>(out), scratch, pool);
}

}  // namespace kizu::cpu
