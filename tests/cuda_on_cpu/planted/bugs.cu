// One bug a kernel. Each is launched so that nothing but the bug can go wrong.

#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string_view>

#include "buffers.h"
#include "core/cuda_kernel.cuh"
#include "planted.h"

namespace planted {

namespace {

constexpr int kThreads = 64;
constexpr int kCount = 100;

__global__ void copy_too_far(const float* __restrict__ in, int count, float* __restrict__ out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= count) out[i] = in[min(i, count - 1)];
}

__global__ void read_too_far(const float* __restrict__ in, int count, float* __restrict__ out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = in[i + 1];
}

__global__ void write_past_shared(float* __restrict__ out) {
  KIZU_SHARED(float, values, [kThreads]);
  values[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void write_past_dynamic_shared(float* __restrict__ out) {
  KIZU_DYNAMIC_SHARED(float, values);
  values[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void read_past_shared(float* __restrict__ out) {
  KIZU_SHARED(float, values, [kThreads]);
  values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x + 1];
}

__global__ void read_unset_shared(float* __restrict__ out) {
  KIZU_SHARED(float, values, [kThreads]);
  if (threadIdx.x != 5) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void no_barrier(float* __restrict__ out) {
  KIZU_SHARED(float, values, [kThreads]);
  values[threadIdx.x] = 1;
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

// The tile is filled anew while slow threads still read what was there.
__global__ void no_second_barrier(float* __restrict__ out) {
  KIZU_SHARED(float, values, [kThreads]);
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    values[threadIdx.x] = static_cast<float>(round);
    __syncthreads();
    sum += values[kThreads - 1 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

__global__ void barrier_for_some(float* __restrict__ out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_barriers(float* __restrict__ out) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 2;
    __syncthreads();
  }
}

__global__ void shuffle_outside_mask(float* __restrict__ out) {
  float value = out[threadIdx.x];
  if (threadIdx.x < 48) value += __shfl_xor_sync(0x0000ffff, value, 1);
  out[threadIdx.x] = value;
}

// The second warp's upper half never comes.
__global__ void shuffle_without_half(float* __restrict__ out) {
  float value = out[threadIdx.x];
  if (threadIdx.x < 48) value += __shfl_xor_sync(0xffffffff, value, 1);
  __syncthreads();
  out[threadIdx.x] = value;
}

__global__ void ballot_after_exit(unsigned* __restrict__ out) {
  if (threadIdx.x >= 48) return;
  out[threadIdx.x] = __ballot_sync(0xffffffff, threadIdx.x & 1);
}

__global__ void one_word_for_all_blocks(float* __restrict__ out) {
  if (threadIdx.x == 0) out[0] = static_cast<float>(blockIdx.x);
}

// The last block reads the others' sums, but nobody fenced them.
__global__ void last_block_without_fence(float* sums, unsigned* ticket, float* __restrict__ total) {
  if (threadIdx.x != 0) return;
  sums[blockIdx.x] = 1;
  if (atomicInc(ticket, gridDim.x - 1) != gridDim.x - 1) return;
  float all = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) all += sums[b];
  *total = all;
}

__global__ void set(float* out) { out[threadIdx.x] = 1; }

struct Holder {
  float* values;
};

__global__ void set_through_struct(Holder holder) { holder.values[threadIdx.x] = 1; }

Buffer<float> zeros(std::size_t count) { return Buffer<float>(std::vector<float>(count, 0.0f)); }

void synchronize() { KIZU_CUDA_CHECK(cudaDeviceSynchronize()); }

// For bugs that show in the results alone.
void expect_finite(const Buffer<float>& buffer) {
  for (const float value : buffer.values())
    if (!std::isfinite(value)) throw std::runtime_error("the result is not finite");
}

void expect_all(const Buffer<float>& buffer, float expected) {
  for (const float value : buffer.values())
    if (value != expected) throw std::runtime_error("the result is wrong");
}

template <typename... Parameters>
void launch_one_block(void (*kernel)(Parameters...), Parameters... arguments) {
  kizu::cuda::launch(kernel, 1, kThreads, kThreads * sizeof(float), nullptr, arguments...);
  synchronize();
}

using Copy = void (*)(const float*, int, float*);

void run_copy(Copy kernel) {
  const auto in = zeros(kCount);
  const auto out = zeros(kCount);
  kizu::cuda::launch(kernel, 2, kThreads, 0, nullptr, in.data(), kCount, out.data());
  synchronize();
  expect_finite(out);
}

void run_block(void (*kernel)(float*), float expected) {
  const auto out = zeros(kThreads);
  launch_one_block(kernel, out.data());
  expect_finite(out);
  expect_all(out, expected);
}

void run_ballot() {
  const Buffer<unsigned> out(kThreads);
  launch_one_block(ballot_after_exit, out.data());
}

void run_block_race() {
  const auto out = zeros(1);
  kizu::cuda::launch(one_word_for_all_blocks, 4, kThreads, 0, nullptr, out.data());
  synchronize();
}

void run_missing_fence() {
  const auto sums = zeros(8);
  const Buffer<unsigned> ticket(std::vector<unsigned>{0});
  const auto total = zeros(1);
  kizu::cuda::launch(last_block_without_fence, 8, kThreads, 0, nullptr, sums.data(), ticket.data(), total.data());
  synchronize();
}

void run_host_dereference() {
  const auto values = zeros(kCount);
  std::printf("%f\n", static_cast<double>(*static_cast<volatile float*>(values.data())));
}

void run_host_argument() {
  std::vector<float> values(kThreads);
  launch_one_block(set, values.data());
}

void run_host_argument_in_struct() {
  std::vector<float> values(kThreads);
  launch_one_block(set_through_struct, Holder{values.data()});
}

void run_freed_argument() {
  float* freed = nullptr;
  {
    const auto values = zeros(kThreads);
    freed = values.data();
  }
  launch_one_block(set, freed);
}

void run_freed_in_struct() {
  Holder holder = {};
  {
    const auto values = zeros(kThreads);
    holder.values = values.data();
  }
  launch_one_block(set_through_struct, holder);
}

void run_copy_past_end() {
  const auto values = zeros(kCount);
  std::vector<float> host(kCount + 1);
  KIZU_CUDA_CHECK(cudaMemcpy(host.data(), values.data(), host.size() * sizeof(float), cudaMemcpyDeviceToHost));
}

void run_wrong_direction() {
  const auto values = zeros(kCount);
  std::vector<float> host(kCount);
  KIZU_CUDA_CHECK(cudaMemcpy(host.data(), values.data(), kCount * sizeof(float), cudaMemcpyHostToDevice));
}

// Reads a pinned buffer before anybody has waited for the copy into it.
void run_no_synchronization() {
  cudaStream_t stream = nullptr;
  KIZU_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  void* memory = nullptr;
  KIZU_CUDA_CHECK(cudaMallocHost(&memory, kThreads * sizeof(float)));
  const auto* host = static_cast<const volatile float*>(memory);
  const auto values = zeros(kThreads);
  KIZU_CUDA_CHECK(cudaMemcpyAsync(memory, values.data(), kThreads * sizeof(float), cudaMemcpyDeviceToHost, stream));
  if (!std::isfinite(host[0])) throw std::runtime_error("the result is not finite");
}

void run_too_many_threads() {
  const auto out = zeros(2048);
  kizu::cuda::launch(set, 1, 2048, 0, nullptr, out.data());
}

void run_too_much_shared() {
  const auto out = zeros(kThreads);
  kizu::cuda::launch(set, 1, kThreads, (48 << 10) + 1, nullptr, out.data());
}

void run_granted_shared() {  // no bug: the kernel has opted in
  const auto out = zeros(kThreads);
  KIZU_CUDA_CHECK(cudaFuncSetAttribute(set, cudaFuncAttributeMaxDynamicSharedMemorySize, 99 << 10));
  kizu::cuda::launch(set, 1, kThreads, 99 << 10, nullptr, out.data());
  synchronize();
  expect_all(out, 1);
}

struct Bug {
  std::string_view name;
  void (*run)();
};

constexpr std::array kBugs = {
    Bug{"global_write", [] { run_copy(copy_too_far); }},
    Bug{"global_read", [] { run_copy(read_too_far); }},
    Bug{"shared_write", [] { run_block(write_past_shared, 1); }},
    Bug{"dynamic_shared_write", [] { run_block(write_past_dynamic_shared, 1); }},
    Bug{"shared_read", [] { run_block(read_past_shared, 1); }},
    Bug{"unset_shared", [] { run_block(read_unset_shared, 1); }},
    Bug{"no_barrier", [] { run_block(no_barrier, 1); }},
    Bug{"no_second_barrier", [] { run_block(no_second_barrier, 3); }},
    Bug{"barrier_for_some", [] { run_block(barrier_for_some, 1); }},
    Bug{"two_barriers", [] { run_block(two_barriers, 1); }},
    Bug{"shuffle_outside_mask", [] { run_block(shuffle_outside_mask, 0); }},
    Bug{"shuffle_without_half", [] { run_block(shuffle_without_half, 0); }},
    Bug{"ballot_after_exit", run_ballot},
    Bug{"block_race", run_block_race},
    Bug{"missing_fence", run_missing_fence},
    Bug{"host_dereference", run_host_dereference},
    Bug{"host_argument", run_host_argument},
    Bug{"host_argument_in_struct", run_host_argument_in_struct},
    Bug{"freed_argument", run_freed_argument},
    Bug{"freed_in_struct", run_freed_in_struct},
    Bug{"copy_past_end", run_copy_past_end},
    Bug{"wrong_direction", run_wrong_direction},
    Bug{"no_synchronization", run_no_synchronization},
    Bug{"too_many_threads", run_too_many_threads},
    Bug{"too_much_shared", run_too_much_shared},
    Bug{"granted_shared", run_granted_shared},
};

}  // namespace

bool run_bug(const std::string& name) {
  const auto bug = std::find_if(kBugs.begin(), kBugs.end(), [&](const Bug& b) { return b.name == name; });
  if (bug == kBugs.end()) return false;
  bug->run();
  return true;
}

}  // namespace planted
