// Where a binding's operation runs: on the processor, or on a CUDA device with host arrays copied there and back.
#pragma once

#include <memory>
#include <string>

#include "core/check.h"
#include "core/cuda.h"

namespace kizu {

// Whether `device` is "cuda" and not "cpu"; throws std::invalid_argument for another name, and where there is none.
inline bool is_cuda(const std::string& device) {
  check(device == "cpu" || device == "cuda", "device is '", device, "', but must be 'cpu' or 'cuda'");
  if (device == "cpu") return false;
#ifdef KIZU_HAS_CUDA
  check(cuda::device_count() > 0, "device is 'cuda', but the driver offers no CUDA device");
#else
  check(false, "device is 'cuda', but kizu was built without CUDA");
#endif
  return true;
}

#ifdef KIZU_HAS_CUDA
// A stream with what an operation keeps on the device that was current when this was made.
template <typename Scratch>
struct CudaSide {
  int device = cuda::current_device();
  cuda::Stream stream;
  Scratch scratch;

  // What a call does, on that device. Nothing of the host's is read any more when it returns, or throws.
  template <typename Call>
  void run(const Call& call) {
    const cuda::DeviceScope scope(device);
    try {
      call();
    } catch (...) {
      cuda::wait_quietly(stream);
      throw;
    }
  }
};

// An array's copy on the device.
class DeviceArray {
 public:
  const void* copy(const void* host, std::size_t size, const cuda::Stream& stream) {
    if (!host) return nullptr;
    void* const to = memory_.reserve(size);
    cuda::copy_to_device(to, host, size, stream);
    return to;
  }
  // Room for a result; null if the host wants none.
  void* room(const void* host, std::size_t size) { return host ? memory_.reserve(size) : nullptr; }
  void fetch(void* host, std::size_t size, const cuda::Stream& stream) const {
    if (host) cuda::copy_to_host(host, memory_.data(), size, stream);
  }

 private:
  cuda::DeviceBuffer memory_;
};
#else
template <typename Scratch>
struct CudaSide {};
#endif

template <typename Scratch>
std::unique_ptr<CudaSide<Scratch>> cuda_side(const std::string& device) {
  return is_cuda(device) ? std::make_unique<CudaSide<Scratch>>() : nullptr;
}

}  // namespace kizu
