// replay: frames -> scores as one captured CUDA graph:
//
//   pinned memory -> copy to the device -> prepare -> engine -> score -> copy to pinned memory
//
// The first frames of a size and number run one by one, so that engine and operations allocate and load what they need,
// and are captured then; from then on a call is one launch and one wait for an event, and allocates nothing. Where host
// and device share their memory the copies are left out: prepare reads the frame and score writes the result in place.
// Frames that lie on the device already are read there; other addresses or strides of them become new arguments of the
// graph's prepare kernels. Boxes change with every call, so that a spec with boxes is not captured.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "core/cuda.h"
#include "core/parallel.h"
#include "ops/prepare.h"
#include "ops/score.h"
#include "pipeline/runner.h"

namespace kizu::cuda {

struct ReplaySpec {
  PrepareSpec prepare;
  ScoreSpec score;    // its views and half are set by what is called
  int threads = 1;    // that copy a frame on the host
  int inputs = 1;     // the most images that go through the engine at once
  std::string input;  // the graph's
  struct Output {
    std::string name;
    std::size_t image_bytes;
  };
  std::vector<Output> outputs;
  std::size_t workspace = 0;  // bytes that the engine's runners work in
};

// One stream with its buffers; used by one thread at a time. What a call throws leaves it usable, unless the device is
// lost.
class Replay {
 public:
  enum class Place { host, device };
  struct Counts {
    std::uint64_t captures = 0;  // graphs made
    std::uint64_t launches = 0;  // graphs launched
    std::uint64_t updates = 0;   // launches whose prepare kernels were given other arguments first
  };

  // Allocates on the device that is current; calls must come with the same one.
  Replay(ReplaySpec spec, Bind bind);
  ~Replay();
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  // Pinned memory for one frame of this size, dense: the same until another size is asked for. A frame that is given
  // from there is not copied on the host. Any thread may ask.
  std::shared_ptr<const PinnedBuffer> frame_buffer(std::ptrdiff_t height, std::ptrdiff_t width);

  // Puts frames on the stream. Those on the host have been read when it returns, but for the frame buffer, which, like
  // those on the device, has been read when finish() returns. What was started before and not finished is dropped.
  // Throws std::invalid_argument for frames that do not fit, std::runtime_error if CUDA or the engine fails.
  void start(const Frames& frames, Place place, std::span<const Region> boxes, bool map);
  // Waits for the result of start().
  void finish();
  // Waits until nothing that was started is running any more, and keeps no result.
  void drop() noexcept;

  // Of the frames of the last finish(): their scores, and with a map those of their images.
  std::shared_ptr<const PinnedBuffer> result() const { return result_; }
  const float* scores() const { return static_cast<const float*>(result_->data()); }
  const float* maps() const { return scores() + spec_.inputs; }

  const Stream& stream() const { return stream_; }
  // Whether the device stopped answering: asked after something failed.
  bool lost() const { return !stream_.alive(); }
  const Counts& counts() const { return counts_; }
  const ReplaySpec& spec() const { return spec_; }

 private:
  enum class Source { slot, buffer, device };
  struct Key {
    std::size_t frames;
    bool map;
    Source source;
    auto operator<=>(const Key&) const = default;
  };
  // A graph with all that its kernels read and write besides the buffers below.
  struct Program {
    PrepareScratch prepare;
    ScoreScratch score;
    std::shared_ptr<const PinnedBuffer> buffer;  // the frame buffer that is read
    // The frames on the device that are read, and prepare's launches that do.
    std::ptrdiff_t row = 0, column = 0, channel = 0;
    std::vector<const void*> pointers;
    LaunchLog launches;
    GraphExec graph;
  };
  struct Work {
    Frames frames;                       // as prepare reads them
    const PinnedBuffer* from = nullptr;  // where they are copied from before, if they are
    std::size_t copied = 0;
    int images = 0;
    bool map = false;
  };

  void launch(const Frames& frames, Place place, std::span<const Region> boxes, bool map);
  std::shared_ptr<const PinnedBuffer> buffer_of(const Frames& frames);
  void fill_slot(const Frames& frames);
  void copy_to_slot(const Frames& frames, const void* frame, void* to);
  void read_from(const PinnedBuffer& memory, Work& work);
  Runner& runner(int images);
  void enqueue(const Work& work, Program& program, LaunchLog* log);
  void capture(const Work& work, Program& program);
  bool update(const Work& work, Program& program);
  static void remember(const Frames& frames, Program& program);
  void abandon() noexcept;

  ReplaySpec spec_;
  Bind bind_;
  bool integrated_;
  Stream stream_;
  Event done_;
  PreparePlan plan_;
  std::uint64_t version_ = 0;  // of the plan that the programs were made for
  std::shared_ptr<PinnedBuffer> result_;
  std::unique_ptr<PinnedBuffer> slot_;  // frames from anywhere on the host
  std::mutex buffer_mutex_;
  std::shared_ptr<const PinnedBuffer> buffer_;           // one frame that others write
  std::ptrdiff_t buffer_height_ = 0, buffer_width_ = 0;  // its size
  DeviceBuffer frames_, input_, workspace_, scores_, maps_;
  std::vector<DeviceBuffer> outputs_;
  std::vector<const void*> pointers_;  // of frames in pinned memory, as prepare reads them
  ThreadPool pool_;
  LaunchLog fresh_;
  std::map<int, std::unique_ptr<Runner>> runners_;  // by images; they work in one workspace
  std::map<Key, Program> programs_;
  Counts counts_;
  bool running_ = false;
};

}  // namespace kizu::cuda
