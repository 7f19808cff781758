// Move-only owners of what lives on a CUDA device. Without CUDA in the build they can be named, not made.
#pragma once

#include <cstddef>
#include <new>
#include <string>
#include <utility>
#include <vector>

struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphNode_st;
struct CUgraphExec_st;

namespace kizu::cuda {

// Devices that the driver offers; 0 without a driver or without CUDA in the build.
int device_count();

// The device that this thread's calls go to, and another choice of it.
int current_device();
void set_device(int device);

// Memory that kernels can read, as they name it: its device, or -1 for pinned memory of the host. Null for other
// memory.
struct DevicePointer {
  const void* data = nullptr;
  int device = -1;
};
DevicePointer device_pointer(const void* pointer);

// This thread's calls go to a device while one of these lives.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  DeviceScope(int device, std::nothrow_t) noexcept;  // for when something ends, and nobody is there to be told
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = -1;  // if it was another one
};

struct DeviceInfo {
  std::string name;
  int major, minor;     // compute capability
  int driver, runtime;  // versions, e.g. 13000
  bool integrated;      // device and host share their memory
};

DeviceInfo device_info(int device);

// Kernel launches as parameters: what a graph's kernel node can be given anew. Reused without allocating.
class LaunchLog {
 public:
  struct Launch {
    const void* kernel = nullptr;
    unsigned grid[3], block[3];
    std::size_t shared_bytes = 0;
    std::vector<std::byte> arguments;  // side by side, each aligned to 16 bytes
    std::vector<std::size_t> begins;   // of the arguments

    // Whether only the arguments differ.
    bool same_kernel(const Launch& other) const;
    CUgraphNode_st* node = nullptr;  // what the launch became in a capture
  };

  void clear() { count_ = 0; }
  std::size_t size() const { return count_; }
  Launch& operator[](std::size_t i) { return launches_[i]; }
  Launch& add();

 private:
  std::vector<Launch> launches_;  // the first count_ are in use; the others keep their memory
  std::size_t count_ = 0;
};

class Stream {
 public:
  Stream();  // does not wait for the default stream
  ~Stream();
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  CUstream_st* get() const { return stream_; }
  void synchronize() const;
  // Whether the device still answers: no error is left behind by what went wrong before.
  bool alive() const noexcept;

  // While there is a log kernel launches are written to it, as well as put on the stream or in its place.
  enum class Log { also, only };
  void log(LaunchLog* to, Log how) { log_ = to, how_ = how; }
  LaunchLog* log() const { return log_; }
  bool log_only() const { return log_ && how_ == Log::only; }
  // The node of the last operation captured.
  CUgraphNode_st* last_node() const;

 private:
  CUstream_st* stream_ = nullptr;
  LaunchLog* log_ = nullptr;
  Log how_ = Log::also;
};

class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  void record(CUstream_st* stream) const;
  void synchronize() const;
  // What is put on the stream from now on waits for the event.
  void hold(const Stream& stream) const;

 private:
  CUevent_st* event_ = nullptr;
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

// Host memory that the device copies from and to by itself.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::size_t size);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  void* data() const { return data_; }
  std::size_t size() const { return size_; }
  // The same memory for kernels.
  void* on_device() const { return on_device_; }

 private:
  void* data_ = nullptr;
  void* on_device_ = nullptr;
  std::size_t size_ = 0;
};

// An executable graph, with the graph that it was made of.
class GraphExec {
 public:
  GraphExec() = default;
  ~GraphExec();
  GraphExec(GraphExec&& other) noexcept
      : graph_(std::exchange(other.graph_, nullptr)), exec_(std::exchange(other.exec_, nullptr)) {}
  GraphExec& operator=(GraphExec&& other) noexcept {
    std::swap(graph_, other.graph_), std::swap(exec_, other.exec_);
    return *this;
  }

  explicit operator bool() const { return exec_ != nullptr; }
  void launch(const Stream& stream) const;
  // Gives the node of `was` the arguments of `now`, a launch of the same kernel.
  void update(const LaunchLog::Launch& was, const LaunchLog::Launch& now) const;

 private:
  friend class Capture;
  CUgraph_st* graph_ = nullptr;
  CUgraphExec_st* exec_ = nullptr;
};

// What is put on a stream while one of these lives becomes a graph in place of running. Of other threads' calls nothing
// is asked.
class Capture {
 public:
  explicit Capture(const Stream& stream);
  ~Capture();  // without end(): what was captured is dropped
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  GraphExec end();

 private:
  CUstream_st* stream_;
};

// Waits for the stream, and keeps what goes wrong to itself; for when something already has.
void wait_quietly(const Stream& stream) noexcept;

// Enqueued; pageable host memory may be reused at once, pinned memory when the stream has come that far.
void copy_to_device(void* device, const void* host, std::size_t size, const Stream& stream);
// Waits until the copy is done.
void copy_to_host(void* host, const void* device, std::size_t size, const Stream& stream);
// Does not wait; the host memory is pinned.
void copy_to_pinned(void* host, const void* device, std::size_t size, const Stream& stream);

}  // namespace kizu::cuda
