// Move-only owners of what lives on a CUDA device. Without CUDA in the build they can be named, not made.
#pragma once

#include <cstddef>

struct CUstream_st;

namespace kizu::cuda {

// Devices that the driver offers; 0 without a driver or without CUDA in the build.
int device_count();

// The device that this thread's calls go to, and another choice of it.
int current_device();
void set_device(int device);

class Stream {
 public:
  Stream();  // does not wait for the default stream
  ~Stream();
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  CUstream_st* get() const { return stream_; }
  void synchronize() const;

 private:
  CUstream_st* stream_ = nullptr;
};

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;

  void* data() const { return data_; }
  std::size_t size() const { return size_; }
  // At least `size` bytes, of undefined content if it had to grow.
  void* reserve(std::size_t size);
  // Grown to the host's bytes and filled with them; the host's memory may be reused at once.
  void* assign(const void* host, std::size_t size, const Stream& stream);

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// Waits for the stream, and keeps what goes wrong to itself; for when something already has.
void wait_quietly(const Stream& stream) noexcept;

void copy_to_device(void* device, const void* host, std::size_t size, const Stream& stream);
// Waits until the copy is done.
void copy_to_host(void* host, const void* device, std::size_t size, const Stream& stream);

}  // namespace kizu::cuda
