// One launch scores a batch. A warp sums one canonical block (with a map: the same pixels' blocks of all channels), the
// last thread block to finish a frame adds the frame's block sums in their order.
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/check.h"
#include "core/cuda_kernel.cuh"
#include "ops/score.h"
#include "ops/softplus.h"

namespace kizu::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kPerThread = kScoreLanes / 32;  // lanes that a thread holds
constexpr int kMostImages = 65535;            // of a launch: a grid's second side
constexpr int kChunk = 1024;                  // block sums that the second stage holds at once
static_assert(kPerThread == 8);

struct Problem {
  ScoreRule rule;
  Reduce reduce;
  double weight;
  int views, channels;
  int x_blocks, f_blocks;  // of a plane of x, of f
  std::ptrdiff_t pixels, features;
  const void *x, *x_hat, *f, *f_hat, *logit;
  bool vector_x, vector_f, vector_map;  // rows begin at multiples of 16 bytes
  float* block_sums;                    // (images, channels x x_blocks + f_blocks)
  unsigned* tickets;                    // (frames): thread blocks that have finished; 0 between launches
  float* scores;
  float* map;
};

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }

// The lane that a thread's j-th value belongs to: neighbours lie side by side in 16 bytes.
template <typename T>
__device__ inline int lane_of(int thread, int j) {
  constexpr int side = 16 / sizeof(T);
  return j / side * (32 * side) + thread * side + j % side;
}

template <typename T>
struct alignas(16) Vector {
  T value[16 / sizeof(T)];
};

// |a - b| of this thread's lanes in one row of kScoreLanes elements, 0 beyond the `left` ones.
template <typename T>
__device__ inline void residuals(const T* a, const T* b, std::ptrdiff_t left, bool vector, int thread,
                                 float (&d)[kPerThread]) {
  constexpr int side = 16 / sizeof(T);
  if (vector && left >= kScoreLanes) {
#pragma unroll
    for (int j = 0; j < kPerThread; j += side) {
      const int lane = lane_of<T>(thread, j);
      const Vector<T> va = *reinterpret_cast<const Vector<T>*>(a + lane);
      const Vector<T> vb = *reinterpret_cast<const Vector<T>*>(b + lane);
#pragma unroll
      for (int i = 0; i < side; ++i) d[j + i] = fabsf(widen(va.value[i]) - widen(vb.value[i]));
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int lane = lane_of<T>(thread, j);
    d[j] = lane < left ? fabsf(widen(a[lane]) - widen(b[lane])) : 0.0f;
  }
}

// The sum over the warp's kScoreLanes lanes, in halves; every thread gets it.
template <typename T>
__device__ inline float sum_lanes(float (&s)[kPerThread]) {
  constexpr int side = 16 / sizeof(T);
  if constexpr (side < kPerThread) {  // 128 apart
#pragma unroll
    for (int j = 0; j < side; ++j) s[j] += s[j + side];
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
#pragma unroll
    for (int j = 0; j < side; ++j) s[j] += __shfl_xor_sync(0xffffffffu, s[j], apart);
  }
#pragma unroll
  for (int apart = side / 2; apart > 0; apart /= 2) {
#pragma unroll
    for (int j = 0; j < apart; ++j) s[j] += s[j + apart];
  }
  return s[0];
}

// One block of a plane: its sum, and with Map its residuals added to the warp's `map`.
template <typename T, bool Map>
__device__ inline float sum_block(const T* a, const T* b, std::ptrdiff_t left, bool vector, int thread, float* map) {
  float s[kPerThread] = {};
  const int rows =
      static_cast<int>((min(left, static_cast<std::ptrdiff_t>(kScoreBlock)) + kScoreLanes - 1) / kScoreLanes);
#pragma unroll 2
  for (int row = 0; row < rows; ++row) {
    float d[kPerThread];
    residuals(a + row * kScoreLanes, b + row * kScoreLanes, left - row * kScoreLanes, vector, thread, d);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      s[j] += d[j];
      if constexpr (Map) map[row * kScoreLanes + lane_of<T>(thread, j)] += d[j];
    }
  }
  return sum_lanes<T>(s);
}

__device__ inline double rule_value(const Problem& p, double x_sum, double f_sum, double logit) {
  if (p.rule == ScoreRule::logit) return -logit;
  const double residual = __ddiv_rn(x_sum, static_cast<double>(p.channels * p.pixels));
  if (p.rule == ScoreRule::residual) return residual;
  const double other =
      p.rule == ScoreRule::residual_feature ? __ddiv_rn(f_sum, static_cast<double>(p.features)) : softplus(-logit);
  return __dadd_rn(__dmul_rn(1.0 - p.weight, residual), __dmul_rn(p.weight, other));
}

// The score of one image, by thread 0 of the block: block sums are brought to shared memory, thread 0 adds those of x,
// thread 32 those of f.
template <typename T>
__device__ inline float image_score(const Problem& p, int image) {
  KIZU_SHARED(float, chunk, [kChunk]);
  KIZU_SHARED(double, of_f, [1]);
  const int x_items = p.channels * p.x_blocks, items = x_items + p.f_blocks;
  const volatile float* sums = p.block_sums + static_cast<std::ptrdiff_t>(image) * items;
  double sum = 0;
  for (int begin = 0; begin < items; begin += kChunk) {
    const int end = min(begin + kChunk, items);
    for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads) chunk[i - begin] = sums[i];
    __syncthreads();
    if (threadIdx.x == 0)
      for (int i = begin; i < min(end, x_items); ++i) sum = __dadd_rn(sum, chunk[i - begin]);
    if (threadIdx.x == 32)
      for (int i = max(begin, x_items); i < end; ++i) sum = __dadd_rn(sum, chunk[i - begin]);
    __syncthreads();
  }
  if (threadIdx.x == 32) of_f[0] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return 0;
  const double logit = p.logit ? widen(static_cast<const T*>(p.logit)[image]) : 0.0;
  return __double2float_rn(rule_value(p, sum, of_f[0], logit));
}

// The frame's score from its views, by the whole block.
template <typename T>
__device__ void frame_score(const Problem& p, int frame) {
  float highest = 0;
  double total = 0;
  for (int view = 0; view < p.views; ++view) {
    const float score = image_score<T>(p, frame * p.views + view);
    // A NaN stays: a part passes only on proof.
    if (view == 0 || score > highest || score != score) highest = highest != highest ? highest : score;
    total = __dadd_rn(total, score);
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  p.scores[frame] = p.views == 1 || p.reduce == Reduce::max ? highest : __double2float_rn(__ddiv_rn(total, p.views));
}

// Grid: (blocks of kWarps items an image, images).
template <typename T, bool Map>
__global__ void __launch_bounds__(kThreads, 6) score_kernel(const Problem p) {
  KIZU_SHARED(unsigned, ticket, [1]);
  KIZU_DYNAMIC_SHARED(float, maps);  // (kWarps, kScoreBlock) with Map
  const int image = static_cast<int>(blockIdx.y), warp = static_cast<int>(threadIdx.x / 32);
  const int thread = static_cast<int>(threadIdx.x % 32);
  const int x_items = Map ? p.x_blocks : p.channels * p.x_blocks;
  const int item = static_cast<int>(blockIdx.x) * kWarps + warp;
  float* const sums = p.block_sums + static_cast<std::ptrdiff_t>(image) * (p.channels * p.x_blocks + p.f_blocks);
  const std::ptrdiff_t x_image = static_cast<std::ptrdiff_t>(image) * p.channels * p.pixels;
  if (item < x_items) {
    const int first = Map ? 0 : item / p.x_blocks, last = Map ? p.channels : first + 1;
    const int block = Map ? item : item % p.x_blocks;
    const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(block) * kScoreBlock;
    float* const map = Map ? maps + warp * kScoreBlock : nullptr;
    if constexpr (Map)
      for (int row = 0; row < kScoreBlock; row += kScoreLanes)
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) map[row + lane_of<T>(thread, j)] = 0;
    for (int channel = first; channel < last; ++channel) {
      const std::ptrdiff_t at = x_image + channel * p.pixels + begin;
      const float sum = sum_block<T, Map>(static_cast<const T*>(p.x) + at, static_cast<const T*>(p.x_hat) + at,
                                          p.pixels - begin, p.vector_x, thread, map);
      if (thread == 0) sums[channel * p.x_blocks + block] = sum;
    }
    if constexpr (Map) {
      float* const out = p.map + image * p.pixels + begin;
      const std::ptrdiff_t left = p.pixels - begin;
      const float n = static_cast<float>(p.channels);
      __syncwarp();  // the map is read by other threads than those that wrote it
      if (p.vector_map && left >= kScoreBlock) {
        for (int i = 4 * thread; i < kScoreBlock; i += 128) {
          const float4 m = *reinterpret_cast<const float4*>(map + i);
          *reinterpret_cast<float4*>(out + i) =
              make_float4(__fdiv_rn(m.x, n), __fdiv_rn(m.y, n), __fdiv_rn(m.z, n), __fdiv_rn(m.w, n));
        }
      } else {
        for (int i = thread; i < kScoreBlock && i < left; i += 32) out[i] = __fdiv_rn(map[i], n);
      }
    }
  } else if (item < x_items + p.f_blocks) {
    const int block = item - x_items;
    const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(block) * kScoreBlock, at = image * p.features + begin;
    const float sum = sum_block<T, false>(static_cast<const T*>(p.f) + at, static_cast<const T*>(p.f_hat) + at,
                                          p.features - begin, p.vector_f, thread, nullptr);
    if (thread == 0) sums[p.channels * p.x_blocks + block] = sum;
  }
  // The sums reach all thread blocks before the ticket is drawn; the last one finds them all.
  __syncthreads();
  const int frame = image / p.views;
  if (threadIdx.x == 0) {
    __threadfence();
    const unsigned of_frame = gridDim.x * static_cast<unsigned>(p.views);
    ticket[0] = atomicInc(p.tickets + frame, of_frame - 1) == of_frame - 1;
    __threadfence();
  }
  __syncthreads();
  if (ticket[0]) frame_score<T>(p, frame);
}

template <typename T>
void launch_score(const Problem& p, int images, const Stream& stream) {
  const int x_items = p.map ? p.x_blocks : p.channels * p.x_blocks;
  const unsigned blocks = static_cast<unsigned>(std::max(1, (x_items + p.f_blocks + kWarps - 1) / kWarps));
  const dim3 grid(blocks, static_cast<unsigned>(images));
  if (p.map)
    launch(score_kernel<T, true>, grid, dim3(kThreads), kWarps * kScoreBlock * sizeof(float), stream, p);
  else
    launch(score_kernel<T, false>, grid, dim3(kThreads), 0, stream, p);
}

bool aligned(const void* pointer, std::ptrdiff_t elements, std::size_t size) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 && elements * size % 16 == 0;
}

}  // namespace

void score(const ScoreSpec& spec, const ScoreTensors& t, float* scores, float* map, ScoreScratch& scratch,
           const Stream& stream) {
  check_score(spec, t, scores, map);
  check(spec.views <= kMostImages, "a frame has ", spec.views, " views, but CUDA takes at most ", kMostImages);
  const bool of_x = spec.rule != ScoreRule::logit, of_f = spec.rule == ScoreRule::residual_feature;
  const std::ptrdiff_t size = spec.half ? 2 : 4;
  const auto blocks = [](std::ptrdiff_t n) { return static_cast<int>((n + kScoreBlock - 1) / kScoreBlock); };
  Problem p{};
  p.rule = spec.rule;
  p.reduce = spec.reduce;
  p.weight = spec.weight;
  p.views = spec.views;
  p.channels = of_x ? t.channels : 0;
  p.pixels = t.pixels;
  p.features = t.features;
  p.x_blocks = of_x ? blocks(t.pixels) : 0;
  p.f_blocks = of_f ? blocks(t.features) : 0;
  p.vector_x = aligned(t.x, t.pixels, size) && aligned(t.x_hat, t.pixels, size);
  p.vector_f = aligned(t.f, t.features, size) && aligned(t.f_hat, t.features, size);
  p.vector_map = aligned(map, t.pixels, sizeof(float));
  // Whole frames that one launch can take; a batch of up to 256 images is one launch.
  const int most = kMostImages / spec.views * spec.views, images = std::min(t.images, most);
  const std::size_t items = static_cast<std::size_t>(p.channels) * p.x_blocks + p.f_blocks;
  p.block_sums = static_cast<float*>(scratch.block_sums.reserve((items * images + 1) * sizeof(float)));
  const std::size_t tickets = images / spec.views * sizeof(unsigned);
  if (scratch.tickets.size() < tickets) {
    const std::vector<unsigned> zeros(images / spec.views);
    scratch.tickets.assign(zeros.data(), tickets, stream);
  }
  p.tickets = static_cast<unsigned*>(scratch.tickets.data());
  const auto from = [size](const void* tensor, std::ptrdiff_t image, std::ptrdiff_t elements) -> const void* {
    return tensor ? static_cast<const unsigned char*>(tensor) + image * elements * size : nullptr;
  };
  for (int first = 0; first < t.images; first += most) {
    p.x = from(t.x, first, t.channels * t.pixels);
    p.x_hat = from(t.x_hat, first, t.channels * t.pixels);
    p.f = from(t.f, first, t.features);
    p.f_hat = from(t.f_hat, first, t.features);
    p.logit = reads_logit(spec.rule) ? from(t.logit, first, 1) : nullptr;
    p.scores = scores + first / spec.views;
    p.map = map ? map + first * t.pixels : nullptr;
    const int count = std::min(t.images - first, most);
    spec.half ? launch_score<__half>(p, count, stream) : launch_score<float>(p, count, stream);
  }
}

}  // namespace kizu::cuda
