#include "core/cuda.h"

#include <cstring>
#include <utility>

#ifdef KIZU_HAS_CUDA
#include <cuda_runtime_api.h>

#include "core/cuda_check.h"
#endif

namespace kizu::cuda {

#ifdef KIZU_HAS_CUDA

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

int current_device() {
  int device = 0;
  KIZU_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

void set_device(int device) { KIZU_CUDA_CHECK(cudaSetDevice(device)); }

Stream::Stream() { KIZU_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }

Stream::~Stream() {
  if (stream_) cudaStreamDestroy(stream_);
}

void Stream::synchronize() const { KIZU_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

DeviceBuffer::~DeviceBuffer() {
  if (data_) cudaFree(data_);
}

void* DeviceBuffer::reserve(std::size_t size) {
  if (size <= size_) return data_;
  void* grown = nullptr;
  KIZU_CUDA_CHECK(cudaMalloc(&grown, size));
  if (data_) cudaFree(data_);  // waits for work that may still use it
  data_ = grown;
  size_ = size;
  return data_;
}

void* DeviceBuffer::assign(const void* host, std::size_t size, const Stream& stream) {
  copy_to_device(reserve(size), host, size, stream);
  stream.synchronize();
  return data_;
}

void wait_quietly(const Stream& stream) noexcept {
  cudaStreamSynchronize(stream.get());
  cudaGetLastError();
}

void copy_to_device(void* device, const void* host, std::size_t size, const Stream& stream) {
  KIZU_CUDA_CHECK(cudaMemcpyAsync(device, host, size, cudaMemcpyHostToDevice, stream.get()));
}

void copy_to_host(void* host, const void* device, std::size_t size, const Stream& stream) {
  KIZU_CUDA_CHECK(cudaMemcpyAsync(host, device, size, cudaMemcpyDeviceToHost, stream.get()));
  stream.synchronize();
}

Stream::Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(stream_, other.stream_);
  return *this;
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

#else

int device_count() { return 0; }

#endif

}  // namespace kizu::cuda
