// Device buffers for the planted programs.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "core/cuda_check.h"

namespace planted {

template <typename T>
class Buffer {
 public:
  explicit Buffer(std::size_t count) : count_(count) {
    void* memory = nullptr;
    KIZU_CUDA_CHECK(cudaMalloc(&memory, count * sizeof(T)));
    data_ = static_cast<T*>(memory);
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    KIZU_CUDA_CHECK(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }

  std::vector<T> values() const {
    std::vector<T> result(count_);
    KIZU_CUDA_CHECK(cudaMemcpy(result.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return result;
  }

  std::vector<char> bytes() const {
    std::vector<char> result(count_ * sizeof(T));
    KIZU_CUDA_CHECK(cudaMemcpy(result.data(), data_, result.size(), cudaMemcpyDeviceToHost));
    return result;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

}  // namespace planted
