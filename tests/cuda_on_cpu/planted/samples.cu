#include <cuda_fp16.h>

#include <chrono>
#include <cstdint>
#include <cstdio>

#include "buffers.h"
#include "core/cuda_kernel.cuh"
#include "planted.h"

namespace planted {

namespace {

// Element-wise, with a guard against the last block's surplus threads.
__global__ void axpy(const float* __restrict__ x, const float* __restrict__ y, float a, int count,
                     float* __restrict__ out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = __fmaf_rn(a, x[i], y[i]);
}

// A tree over dynamic shared memory; one sum a block.
__global__ void block_sum(const float* __restrict__ x, int count, float* __restrict__ sums) {
  KIZU_DYNAMIC_SHARED(float, partial);
  const int t = threadIdx.x;
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + t; i < count; i += gridDim.x * blockDim.x) sum += x[i];
  partial[t] = sum;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) partial[t] += partial[t + half];
    __syncthreads();
  }
  if (t == 0) sums[blockIdx.x] = partial[0];
}

template <typename T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffff, value, offset);
  return value;
}

// All four shuffles, with segments of 8 lanes: each lane's sum of what the shuffles bring.
__global__ void shuffles(const std::uint32_t* __restrict__ x, std::uint32_t* __restrict__ out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const std::uint32_t v = x[i];
  std::uint32_t sum = __shfl_sync(0xffffffff, v, threadIdx.x + 3, 8);
  sum += 3 * __shfl_up_sync(0xffffffff, v, 3, 8);
  sum += 5 * __shfl_down_sync(0xffffffff, v, 5, 8);
  sum += 7 * __shfl_xor_sync(0xffffffff, v, 9, 16);
  const double wide = __shfl_xor_sync(0xffffffff, static_cast<double>(v), 31);
  out[i] = sum + static_cast<std::uint32_t>(wide / 2);
}

// |a - b| * 0.5 + 0.25 in half arithmetic, two at a time.
__global__ void half_difference(const __half2* __restrict__ a, const __half2* __restrict__ b, int pairs,
                                __half2* __restrict__ out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pairs) return;
  const __half2 distance = __habs2(__hsub2(a[i], b[i]));
  out[i] = __hfma2(distance, __float2half2_rn(0.5f), __float2half2_rn(0.25f));
}

// One 4-byte load and one 16-byte store a thread.
__global__ void normalize_pixels(const uchar4* __restrict__ pixels, float4* __restrict__ out, int count, float scale,
                                 float offset) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uchar4 p = pixels[i];
  out[i] = make_float4(__fmaf_rn(p.x, scale, offset), __fmaf_rn(p.y, scale, offset), __fmaf_rn(p.z, scale, offset),
                       __fmaf_rn(p.w, scale, offset));
}

constexpr int kTile = 32;

// Through a shared tile whose odd width keeps the banks apart.
__global__ void transpose(const float* __restrict__ in, int height, int width, float* __restrict__ out) {
  KIZU_SHARED(float, tile, [kTile][kTile + 1]);
  const int x = blockIdx.x * kTile + threadIdx.x;
  for (int j = threadIdx.y; j < kTile; j += blockDim.y) {
    const int y = blockIdx.y * kTile + j;
    if (x < width && y < height) tile[j][threadIdx.x] = in[y * width + x];
  }
  __syncthreads();
  const int out_x = blockIdx.y * kTile + threadIdx.x;
  for (int j = threadIdx.y; j < kTile; j += blockDim.y) {
    const int out_y = blockIdx.x * kTile + j;
    if (out_x < height && out_y < width) out[out_y * height + out_x] = tile[threadIdx.x][j];
  }
}

constexpr int kSumThreads = 128;

// Block sums in double; the block that finishes last adds them in order. The ticket returns to 0 for the next launch.
__global__ void __launch_bounds__(kSumThreads)
    last_block_sum(const float* __restrict__ x, int count, double* sums, unsigned* ticket, double* __restrict__ total) {
  KIZU_SHARED(double, warp_sums, [kSumThreads / 32]);
  KIZU_SHARED(bool, is_last, [1]);
  double sum = 0;
  for (int i = blockIdx.x * kSumThreads + threadIdx.x; i < count; i += gridDim.x * kSumThreads) sum += x[i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = warp_sums[0] + warp_sums[1] + warp_sums[2] + warp_sums[3];
    __threadfence();
    is_last[0] = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last[0] || threadIdx.x != 0) return;
  __threadfence();
  double all = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) all += sums[b];
  *total = all;
}

// How many values are above the limit, counted by ballot and by barrier; and the votes of each warp.
__global__ void votes(const std::uint32_t* __restrict__ x, int count, std::uint32_t limit, unsigned* counts,
                      unsigned* __restrict__ warps) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const bool above = i < count && x[i] > limit;
  const unsigned ballot = __ballot_sync(0xffffffff, above);
  const int any = __any_sync(0xffffffff, above);
  const int all = __all_sync(0xffffffff, above);
  const int in_block = __syncthreads_count(above);
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&counts[0], static_cast<unsigned>(__popc(ballot)));
    warps[i / 32] = ballot + (any ? 1u : 0u) + (all ? 2u : 0u);
  }
  if (threadIdx.x == 0) atomicAdd(&counts[1], static_cast<unsigned>(in_block));
  atomicMax(&counts[2], i < count ? x[i] : 0u);
}

constexpr int kNumbers = 24;

// Integer, bit and floating-point functions, side by side.
__global__ void numbers(const std::uint32_t* __restrict__ x, int count, std::uint32_t* __restrict__ out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const std::uint32_t a = x[i];
  const std::uint32_t b = x[(i + 1) % count] | 1;
  const int s = static_cast<int>(a);
  const int t = static_cast<int>(b);
  const float f = static_cast<float>(s) * 0x1p-20f;
  const float g = static_cast<float>(t) * 0x1p-24f;
  const double d = f;
  const long long wide = static_cast<long long>(s) * t;
  std::uint32_t* r = out + i * kNumbers;
  r[0] = __popc(a) + 100 * __clz(s) + 10000 * __ffs(s);
  r[1] = __byte_perm(a, b, 0x5140);
  r[2] = __umulhi(a, b);
  r[3] = static_cast<std::uint32_t>(__mulhi(s, t));
  r[4] = a / b + a % b;
  r[5] = static_cast<std::uint32_t>(s / t + s % t);
  r[6] = static_cast<std::uint32_t>(min(s, t) / 2 - max(s >> 3, t >> 5));
  r[7] = min(a, b) ^ max(a << (b & 31), b >> (a & 31));
  r[8] = static_cast<std::uint32_t>(wide >> 17);
  r[9] = static_cast<std::uint32_t>(wide % 1000003);
  r[10] = __float_as_uint(__fdiv_rn(f, g));
  r[11] = __float_as_uint(__fadd_rn(__fmul_rn(f, g), 0.1f));
  r[12] = __float_as_uint(sqrtf(fabsf(f)));
  r[13] = __float_as_uint(fminf(f, g) + fmaxf(floorf(f), ceilf(g)) * rintf(f));
  r[14] = static_cast<std::uint32_t>(__float2int_rn(f) / 2 + __float2int_rz(g) / 2);
  r[15] = static_cast<std::uint32_t>(static_cast<unsigned char>(a)) * static_cast<std::uint16_t>(b >> 7);
  r[16] = static_cast<std::uint32_t>(static_cast<std::int16_t>(a) / 7 + static_cast<signed char>(b));
  r[17] = __float_as_uint(static_cast<float>(__ddiv_rn(__dadd_rn(d, 1.0 / 3), __dmul_rn(d, d) + 1)));
  r[18] = static_cast<std::uint32_t>(__double_as_longlong(sqrt(fabs(d)) + fma(d, d, 0.3)) >> 20);
  r[19] = __half_as_ushort(__float2half_rn(f)) | static_cast<std::uint32_t>(__half_as_ushort(__float2half_rn(g))) << 16;
  r[20] = __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(a & 0x7bff))));
  r[21] = static_cast<std::uint32_t>(__dp4a(s, t, 17)) ^ __funnelshift_l(a, b, 13);
  r[22] = __float_as_uint(static_cast<float>(a) + static_cast<float>(static_cast<unsigned long long>(a) * b));
  r[23] = isnan(f) || (s < t && f >= g) ? 1u : static_cast<std::uint32_t>(llrint(d * 1e-3)) + __brev(a);
}

// Inputs

using Words = std::vector<std::uint32_t>;

// In [0, 1), exact in float.
std::vector<float> unit_floats(const Words& words, std::size_t count) {
  std::vector<float> result(count);
  for (std::size_t i = 0; i < count; ++i) result[i] = static_cast<float>(words[i] >> 8) * 0x1p-24f;
  return result;
}

std::vector<__half> halves(const Words& words, std::size_t count, std::size_t from) {
  std::vector<__half> result(count);
  for (std::size_t i = 0; i < count; ++i)
    result[i] = __float2half_rn(static_cast<float>(words[from + i] >> 21) * 0x1p-8f - 4);  // 11 bits: exact
  return result;
}

dim3 blocks_for(int count, int threads) { return dim3(static_cast<unsigned>((count + threads - 1) / threads)); }

Result axpy_sample(const Words& words) {
  const int count = 5003;
  const auto floats = unit_floats(words, 2 * count);
  const Buffer<float> x(std::vector<float>(floats.begin(), floats.begin() + count));
  const Buffer<float> y(std::vector<float>(floats.begin() + count, floats.end()));
  const Buffer<float> out(count);
  kizu::cuda::launch(axpy, blocks_for(count, 256), 256, 0, nullptr, x.data(), y.data(), 0.7f, count, out.data());
  return {"axpy", out.bytes()};
}

Result block_sum_sample(const Words& words) {
  const int count = 10007;
  const Buffer<float> x(unit_floats(words, count));
  const Buffer<float> sums(5);
  kizu::cuda::launch(block_sum, 5, 256, 256 * sizeof(float), nullptr, x.data(), count, sums.data());
  return {"block_sum", sums.bytes()};
}

Result shuffle_sample(const Words& words) {
  const Buffer<std::uint32_t> x(Words(words.begin(), words.begin() + 192));
  const Buffer<std::uint32_t> out(192);
  kizu::cuda::launch(shuffles, 2, 96, 0, nullptr, x.data(), out.data());
  return {"shuffles", out.bytes()};
}

Result half_sample(const Words& words) {
  const int pairs = 777;
  const Buffer<__half> a(halves(words, 2 * pairs, 0));
  const Buffer<__half> b(halves(words, 2 * pairs, 2 * pairs));
  const Buffer<__half> out(2 * pairs);
  kizu::cuda::launch(half_difference, blocks_for(pairs, 128), 128, 0, nullptr,
                     reinterpret_cast<const __half2*>(a.data()), reinterpret_cast<const __half2*>(b.data()), pairs,
                     reinterpret_cast<__half2*>(out.data()));
  return {"half_difference", out.bytes()};
}

Result pixel_sample(const Words& words) {
  const int count = 1111;
  const Buffer<std::uint32_t> pixels(Words(words.begin(), words.begin() + count));
  const Buffer<float4> out(count);
  kizu::cuda::launch(normalize_pixels, blocks_for(count, 128), 128, 0, nullptr,
                     reinterpret_cast<const uchar4*>(pixels.data()), out.data(), count, 1 / 58.4f, -2.1f);
  return {"normalize_pixels", out.bytes()};
}

Result transpose_sample(const Words& words) {
  const int height = 70;
  const int width = 45;
  const Buffer<float> in(unit_floats(words, height * width));
  const Buffer<float> out(height * width);
  kizu::cuda::launch(transpose, dim3(2, 3), dim3(32, 8), 0, nullptr, in.data(), height, width, out.data());
  return {"transpose", out.bytes()};
}

Result last_block_sample(const Words& words) {
  const int count = 20011;
  const Buffer<float> x(unit_floats(words, count));
  const Buffer<double> sums(7);
  const Buffer<unsigned> ticket(std::vector<unsigned>{0});
  const Buffer<double> totals(2);
  for (int launch = 0; launch < 2; ++launch)  // the second finds the ticket as the first left it
    kizu::cuda::launch(last_block_sum, 7, kSumThreads, 0, nullptr, x.data() + launch, count - 1, sums.data(),
                       ticket.data(), totals.data() + launch);
  return {"last_block_sum", totals.bytes()};
}

Result vote_sample(const Words& words) {
  const int count = 1000;
  const Buffer<std::uint32_t> x(Words(words.begin(), words.begin() + count));
  const Buffer<unsigned> result(std::vector<unsigned>(3 + 32));
  kizu::cuda::launch(votes, 8, 128, 0, nullptr, x.data(), count, 0x60000000u, result.data(), result.data() + 3);
  return {"votes", result.bytes()};
}

Result number_sample(const Words& words) {
  const int count = 2000;
  const Buffer<std::uint32_t> x(Words(words.begin(), words.begin() + count));
  const Buffer<std::uint32_t> out(count * kNumbers);
  kizu::cuda::launch(numbers, blocks_for(count, 128), 128, 0, nullptr, x.data(), count, out.data());
  return {"numbers", out.bytes()};
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::vector<Result> run_samples(const Words& words) {
  return {axpy_sample(words),       block_sum_sample(words), shuffle_sample(words),
          half_sample(words),       pixel_sample(words),     transpose_sample(words),
          last_block_sample(words), vote_sample(words),      number_sample(words)};
}

void measure() {
  const int count = 1 << 20;
  const Buffer<float> x(std::vector<float>(count, 1.0f));
  const Buffer<float> out(count);
  double start = seconds_now();
  kizu::cuda::launch(axpy, count / 256, 256, 0, nullptr, x.data(), x.data(), 2.0f, count, out.data());
  KIZU_CUDA_CHECK(cudaDeviceSynchronize());
  std::printf("element-wise: %.2f million threads a second\n", count / (seconds_now() - start) / 1e6);

  const int blocks = 256;
  start = seconds_now();
  kizu::cuda::launch(block_sum, blocks, 256, 256 * sizeof(float), nullptr, x.data(), blocks * 256, out.data());
  KIZU_CUDA_CHECK(cudaDeviceSynchronize());
  std::printf("block reduction: %.2f million threads a second\n", blocks * 256 / (seconds_now() - start) / 1e6);
}

}  // namespace planted
