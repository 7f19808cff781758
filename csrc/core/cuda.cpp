#include "core/cuda.h"

#include <algorithm>
#include <cstring>
#include <utility>

#ifdef KIZU_HAS_CUDA
#include <cuda_runtime_api.h>

#include "core/check.h"
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

DevicePointer device_pointer(const void* pointer) {
  cudaPointerAttributes attributes = {};
  KIZU_CUDA_CHECK(cudaPointerGetAttributes(&attributes, pointer));
  if (attributes.type == cudaMemoryTypeUnregistered) return {};
  return {attributes.devicePointer, attributes.type == cudaMemoryTypeHost ? -1 : attributes.device};
}

DeviceScope::DeviceScope(int device) {
  const int now = current_device();
  if (device == now) return;
  set_device(device);
  before_ = now;
}

DeviceScope::DeviceScope(int device, std::nothrow_t) noexcept {
  int now = device;
  if (cudaGetDevice(&now) == cudaSuccess && device != now && cudaSetDevice(device) == cudaSuccess) before_ = now;
  cudaGetLastError();
}

DeviceScope::~DeviceScope() {
  if (before_ >= 0) cudaSetDevice(before_);  // what goes wrong here has been told by another call
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties = {};
  KIZU_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  DeviceInfo info{properties.name, properties.major, properties.minor, 0, 0, properties.integrated != 0};
  KIZU_CUDA_CHECK(cudaDriverGetVersion(&info.driver));
  KIZU_CUDA_CHECK(cudaRuntimeGetVersion(&info.runtime));
  return info;
}

bool LaunchLog::Launch::same_kernel(const Launch& other) const {
  return kernel == other.kernel && std::ranges::equal(grid, other.grid) && std::ranges::equal(block, other.block) &&
         shared_bytes == other.shared_bytes && begins == other.begins;
}

LaunchLog::Launch& LaunchLog::add() {
  if (count_ == launches_.size()) launches_.emplace_back();
  Launch& launch = launches_[count_++];
  launch.arguments.clear();
  launch.begins.clear();
  return launch;
}

Stream::Stream() { KIZU_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }

Stream::~Stream() {
  if (stream_) cudaStreamDestroy(stream_);
}

void Stream::synchronize() const { KIZU_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

bool Stream::alive() const noexcept {
  const cudaError_t state = cudaStreamQuery(stream_);
  cudaGetLastError();
  return state == cudaSuccess || state == cudaErrorNotReady;
}

CUgraphNode_st* Stream::last_node() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaGraphNode_t* nodes = nullptr;
  std::size_t count = 0;
#if CUDART_VERSION >= 13000
  KIZU_CUDA_CHECK(cudaStreamGetCaptureInfo(stream_, &status, nullptr, nullptr, &nodes, nullptr, &count));
#else
  KIZU_CUDA_CHECK(cudaStreamGetCaptureInfo_v2(stream_, &status, nullptr, nullptr, &nodes, &count));
#endif
  return status == cudaStreamCaptureStatusActive && count == 1 ? nodes[0] : nullptr;
}

Event::Event() { KIZU_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }

Event::~Event() {
  if (event_) cudaEventDestroy(event_);
}

void Event::record(CUstream_st* stream) const { KIZU_CUDA_CHECK(cudaEventRecord(event_, stream)); }

void Event::synchronize() const { KIZU_CUDA_CHECK(cudaEventSynchronize(event_)); }

void Event::hold(const Stream& stream) const { KIZU_CUDA_CHECK(cudaStreamWaitEvent(stream.get(), event_, 0)); }

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

PinnedBuffer::PinnedBuffer(std::size_t size) : size_(size) {
  KIZU_CUDA_CHECK(cudaHostAlloc(&data_, size, cudaHostAllocMapped));
  try {
    KIZU_CUDA_CHECK(cudaHostGetDevicePointer(&on_device_, data_, 0));
  } catch (...) {
    cudaFreeHost(data_);
    throw;
  }
}

PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

GraphExec::~GraphExec() {
  if (exec_) cudaGraphExecDestroy(exec_);
  if (graph_) cudaGraphDestroy(graph_);
}

void GraphExec::launch(const Stream& stream) const { KIZU_CUDA_CHECK(cudaGraphLaunch(exec_, stream.get())); }

void GraphExec::update(const LaunchLog::Launch& was, const LaunchLog::Launch& now) const {
  constexpr std::size_t kMostArguments = 16;
  check(now.begins.size() <= kMostArguments, "a kernel of ", now.begins.size(), " arguments");
  void* arguments[kMostArguments];
  for (std::size_t i = 0; i < now.begins.size(); ++i)
    arguments[i] = const_cast<std::byte*>(now.arguments.data()) + now.begins[i];
  cudaKernelNodeParams parameters = {};
  parameters.func = const_cast<void*>(now.kernel);
  parameters.gridDim = dim3(now.grid[0], now.grid[1], now.grid[2]);
  parameters.blockDim = dim3(now.block[0], now.block[1], now.block[2]);
  parameters.sharedMemBytes = static_cast<unsigned>(now.shared_bytes);
  parameters.kernelParams = arguments;
  KIZU_CUDA_CHECK(cudaGraphExecKernelNodeSetParams(exec_, was.node, &parameters));
}

Capture::Capture(const Stream& stream) : stream_(stream.get()) {
  KIZU_CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
}

Capture::~Capture() {
  if (!stream_) return;
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream_, &graph);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
}

GraphExec Capture::end() {
  GraphExec made;
  KIZU_CUDA_CHECK(cudaStreamEndCapture(std::exchange(stream_, nullptr), &made.graph_));
  KIZU_CUDA_CHECK(cudaGraphInstantiate(&made.exec_, made.graph_, 0));
  return made;
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

void copy_to_pinned(void* host, const void* device, std::size_t size, const Stream& stream) {
  KIZU_CUDA_CHECK(cudaMemcpyAsync(host, device, size, cudaMemcpyDeviceToHost, stream.get()));
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
