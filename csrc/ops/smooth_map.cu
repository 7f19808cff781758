// Two launches: the columns of all maps' rows, then their rows.
#include <cstring>

#include "core/cuda_kernel.cuh"
#include "ops/smooth_map.h"

namespace kizu::cuda {
namespace {

// Outputs of a thread block: neighbours in both directions read much of the same.
constexpr int kWidth = 32, kHeight = 8;

struct Axis {
  const int* first;
  const float* weights;
  int n_in, n_out, taps;
};

// out[r, x] = sum_k weights[o, k] in[.., first[o] + k, ..] along the rows' columns (o = x), or along the maps' rows (o
// is the row within its map): (maps x n_in rows of `width`) -> (maps x n_out rows). Grid: (rows, columns).
template <bool Columns>
__global__ void __launch_bounds__(kWidth* kHeight)
    smooth_kernel(const Axis axis, const float* in, float* out, int width, std::ptrdiff_t rows) {
  const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(blockIdx.x) * kHeight + threadIdx.y;
  const int x = static_cast<int>(blockIdx.y) * kWidth + static_cast<int>(threadIdx.x);
  if (row >= rows || x >= width) return;
  const int map = Columns ? 0 : static_cast<int>(row / axis.n_out);
  const int o = Columns ? x : static_cast<int>(row - static_cast<std::ptrdiff_t>(map) * axis.n_out);
  const std::ptrdiff_t step = Columns ? 1 : width;
  const float* from = Columns ? in + row * axis.n_in + axis.first[o]
                              : in + (static_cast<std::ptrdiff_t>(map) * axis.n_in + axis.first[o]) * width + x;
  const float* const weights = axis.weights + o * axis.taps;
  float sum = 0;
  for (int k = 0; k < axis.taps; ++k, from += step) sum = __fadd_rn(sum, __fmul_rn(weights[k], *from));
  out[row * width + x] = sum;
}

// width, rows: of the output.
template <bool Columns>
void smooth(const Axis& axis, const float* in, float* out, int width, std::ptrdiff_t rows, const Stream& stream) {
  const auto cover = [](std::ptrdiff_t n, int tile) { return static_cast<unsigned>((n + tile - 1) / tile); };
  launch(smooth_kernel<Columns>, dim3(cover(rows, kHeight), cover(width, kWidth)), dim3(kWidth, kHeight), 0, stream,
         axis, in, out, width, rows);
}

}  // namespace

void smooth_map(const SmoothMapPlan& plan, int maps, const float* map, float* out, SmoothMapScratch& scratch,
                const Stream& stream) {
  check_smooth_map(plan, maps, map, out);
  // Both axes' firsts and weights, four bytes each, in one buffer.
  std::vector<float> words;
  const auto axis = [&](const SmoothAxis& from) {
    const std::size_t first = words.size(), weights = first + from.first.size();
    words.resize(weights + from.weights.size());
    std::copy(from.weights.begin(), from.weights.end(), words.begin() + weights);
    static_assert(sizeof(int) == sizeof(float));
    std::memcpy(&words[first], from.first.data(), from.first.size() * sizeof(int));
    return first;
  };
  const std::size_t of_rows = axis(plan.rows), of_columns = axis(plan.columns);
  if (words.size() != scratch.copied.size() ||
      std::memcmp(words.data(), scratch.copied.data(), words.size() * 4) != 0) {
    scratch.plan.assign(words.data(), words.size() * sizeof(float), stream);
    scratch.copied = words;
  }
  const auto* base = static_cast<const float*>(scratch.plan.data());
  const auto on_device = [&](const SmoothAxis& from, std::size_t at) {
    return Axis{reinterpret_cast<const int*>(base + at), base + at + from.first.size(), from.n_in, from.n_out,
                from.taps};
  };
  const int width = plan.columns.n_out;
  const std::ptrdiff_t rows_in = static_cast<std::ptrdiff_t>(maps) * plan.rows.n_in;
  const std::ptrdiff_t rows_out = static_cast<std::ptrdiff_t>(maps) * plan.rows.n_out;
  auto* columns = static_cast<float*>(scratch.columns.reserve(rows_in * width * sizeof(float)));
  smooth<true>(on_device(plan.columns, of_columns), map, columns, width, rows_in, stream);
  smooth<false>(on_device(plan.rows, of_rows), columns, out, width, rows_out, stream);
}

}  // namespace kizu::cuda
