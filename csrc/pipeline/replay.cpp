#include "pipeline/replay.h"

#ifdef KIZU_HAS_CUDA

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "pipeline/frame_slot.h"

namespace kizu::cuda {

namespace {

std::size_t image_elements(const PrepareSpec& spec) {
  return static_cast<std::size_t>(spec.output_channels()) * spec.height * spec.width;
}

bool is_integrated() { return device_info(current_device()).integrated; }

// Launches are logged while one of these lives.
class Logging {
 public:
  Logging(Stream& stream, LaunchLog* log, Stream::Log how) : stream_(stream) { stream.log(log, how); }
  ~Logging() { stream_.log(nullptr, Stream::Log::also); }
  Logging(const Logging&) = delete;
  Logging& operator=(const Logging&) = delete;

 private:
  Stream& stream_;
};

}  // namespace

Replay::Replay(ReplaySpec spec, Bind bind)
    : spec_(std::move(spec)),
      bind_(std::move(bind)),
      integrated_(is_integrated()),
      plan_(spec_.prepare),
      pool_(spec_.threads) {
  const std::size_t images = spec_.inputs,
                    pixels = static_cast<std::size_t>(spec_.prepare.height) * spec_.prepare.width;
  spec_.score.half = spec_.prepare.half;
  input_.reserve(images * image_elements(spec_.prepare) * (spec_.prepare.half ? 2 : 4));
  for (const auto& output : spec_.outputs) outputs_.emplace_back().reserve(images * output.image_bytes);
  if (spec_.workspace) workspace_.reserve(spec_.workspace);
  const std::size_t of_maps = spec_.score.rule == ScoreRule::logit ? 0 : images * pixels * sizeof(float);
  if (!integrated_) {
    scores_.reserve(images * sizeof(float));
    if (of_maps) maps_.reserve(of_maps);
  }
  result_ = std::make_shared<PinnedBuffer>(images * sizeof(float) + of_maps);
}

Replay::~Replay() {
  if (running_) wait_quietly(stream_);
}

std::shared_ptr<const PinnedBuffer> Replay::frame_buffer(std::ptrdiff_t height, std::ptrdiff_t width) {
  check(height >= 1 && width >= 1, "a frame has ", height, " x ", width, " pixels");
  const std::lock_guard lock(buffer_mutex_);
  if (!buffer_ || buffer_height_ != height || buffer_width_ != width) {
    buffer_ = std::make_shared<PinnedBuffer>(DenseFrame(spec_.prepare.format, height, width).pitch);
    buffer_height_ = height, buffer_width_ = width;
  }
  return buffer_;
}

void Replay::start(const Frames& frames, Place place, std::span<const Region> boxes, bool map) {
  drop();
  check(!frames.data.empty(), "there are no frames");
  check(!map || spec_.score.rule != ScoreRule::logit, "the rule logit has no map");
  plan_.set_geometry(frames.height, frames.width, boxes);
  if (place == Place::device)
    check_frames(plan_, frames);
  else
    plan_.check_frames(frames);
  check(frames.data.size() * plan_.inputs() <= static_cast<std::size_t>(spec_.inputs), "the frames make ",
        frames.data.size() * plan_.inputs(), " inputs, but ", spec_.inputs, " go through the engine at once");
  try {
    launch(frames, place, boxes, map);
  } catch (...) {
    abandon();
    throw;
  }
}

void Replay::launch(const Frames& frames, Place place, std::span<const Region> boxes, bool map) {
  if (version_ != plan_.version()) {
    if (!spec_.prepare.boxes) programs_.clear();  // with boxes there are no graphs
    version_ = plan_.version();
  }
  Work work{frames, nullptr, 0, static_cast<int>(frames.data.size()) * plan_.inputs(), map};
  Source source = Source::device;
  std::shared_ptr<const PinnedBuffer> buffer;
  if (place == Place::host) {
    buffer = buffer_of(frames);
    source = buffer ? Source::buffer : Source::slot;
    if (!buffer) fill_slot(frames);
    read_from(buffer ? *buffer : *slot_, work);
  }
  running_ = true;
  Program& program = programs_[{frames.data.size(), map, source}];
  if (!boxes.empty()) {
    enqueue(work, program, nullptr);
  } else {
    bool captured = static_cast<bool>(program.graph);
    if (source == Source::buffer) captured = captured && program.buffer == buffer;
    if (source == Source::device) captured = captured && update(work, program);
    if (!captured) {
      capture(work, program);
      program.buffer = std::move(buffer);
    }
    program.graph.launch(stream_);
    ++counts_.launches;
  }
  done_.record(stream_.get());
}

void Replay::finish() {
  check(running_, "no frames were started");
  try {
    done_.synchronize();
  } catch (...) {
    abandon();
    throw;
  }
  running_ = false;
}

void Replay::drop() noexcept {
  if (running_) wait_quietly(stream_);
  running_ = false;
}

// The frame buffer, if that, as it was handed out, is the frame.
std::shared_ptr<const PinnedBuffer> Replay::buffer_of(const Frames& frames) {
  const std::lock_guard lock(buffer_mutex_);
  if (!buffer_ || frames.data.size() != 1 || frames.data[0] != buffer_->data()) return nullptr;
  const PixelFormat& format = spec_.prepare.format;
  const DenseFrame dense(format, frames.height, frames.width);
  const bool packed = format.packing != Packing::none, one_channel = dense.column == dense.channel;
  const bool same = frames.height == buffer_height_ && frames.width == buffer_width_ && frames.row == dense.row &&
                    (packed || frames.column == dense.column) &&
                    (packed || one_channel || frames.channel == dense.channel);
  return same ? buffer_ : nullptr;
}

// Brings frames into the slot.
void Replay::fill_slot(const Frames& frames) {
  const DenseFrame dense(spec_.prepare.format, frames.height, frames.width);
  // For one frame, or at once for the largest batch: larger memory lies elsewhere, and graphs are captured anew.
  const std::size_t most = frames.data.size() == 1 ? 1 : static_cast<std::size_t>(spec_.inputs / plan_.inputs());
  if (!slot_ || slot_->size() < dense.pitch * most) {
    programs_.clear();
    slot_.reset();
    slot_ = std::make_unique<PinnedBuffer>(dense.pitch * most);
  }
  auto* to = static_cast<std::uint8_t*>(slot_->data());
  for (const void* const frame : frames.data) {
    copy_to_slot(frames, frame, to);
    to += dense.pitch;
  }
}

// The work's frames, dense in pinned memory, as prepare reads them: there, or where they are copied to.
void Replay::read_from(const PinnedBuffer& memory, Work& work) {
  const Frames& frames = work.frames;
  const DenseFrame dense(spec_.prepare.format, frames.height, frames.width);
  auto* at = static_cast<std::uint8_t*>(memory.on_device());
  if (!integrated_) {
    work.from = &memory;
    work.copied = dense.pitch * frames.data.size();
    if (frames_.size() < work.copied) {
      programs_.clear();
      frames_.reserve(memory.size());
    }
    at = static_cast<std::uint8_t*>(frames_.data());
  }
  pointers_.clear();
  for (std::size_t i = 0; i < frames.data.size(); ++i) pointers_.push_back(at + i * dense.pitch);
  work.frames = {pointers_, frames.height, frames.width, dense.row, dense.column, dense.channel};
}

// One thread of the host copies slower than a fast device computes.
void Replay::copy_to_slot(const Frames& frames, const void* frame, void* to) {
  constexpr std::size_t kShared = std::size_t{1} << 18;  // bytes that are worth waking threads for
  const PixelFormat& format = spec_.prepare.format;
  if (DenseFrame(format, frames.height, frames.width).size < kShared)
    return copy_dense(frames, frame, format, to, 0, frames.height);
  const int parts = pool_.threads();
  pool_.run([&](int part) {
    copy_dense(frames, frame, format, to, frames.height * part / parts, frames.height * (part + 1) / parts);
  });
}

Runner& Replay::runner(int images) {
  auto& runner = runners_[images];
  if (!runner) {
    std::vector<Tensor> tensors = {{spec_.input, input_.data()}};
    for (std::size_t i = 0; i < outputs_.size(); ++i) tensors.push_back({spec_.outputs[i].name, outputs_[i].data()});
    runner = bind_(images, tensors, workspace_.data());
  }
  return *runner;
}

// Puts the work on the stream; prepare's launches are written to the log as well.
void Replay::enqueue(const Work& work, Program& program, LaunchLog* log) {
  if (work.from) copy_to_device(frames_.data(), work.from->data(), work.copied, stream_);
  {
    const Logging logging(stream_, log, Stream::Log::also);
    prepare(plan_, work.frames, input_.data(), program.prepare, stream_);
  }
  runner(work.images).enqueue(stream_);

  const PrepareSpec& p = spec_.prepare;
  ScoreSpec score = spec_.score;
  score.views = plan_.inputs();
  ScoreTensors tensors;
  tensors.images = work.images;
  tensors.x = input_.data();
  tensors.channels = p.output_channels();
  tensors.pixels = static_cast<std::ptrdiff_t>(p.height) * p.width;
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    const auto& [name, image_bytes] = spec_.outputs[i];
    if (name == "x_hat") tensors.x_hat = outputs_[i].data();
    if (name == "f") tensors.f = outputs_[i].data(), tensors.features = image_bytes / (p.half ? 2 : 4);
    if (name == "f_hat") tensors.f_hat = outputs_[i].data();
    if (name == "logit") tensors.logit = outputs_[i].data();
  }
  auto* const result = static_cast<float*>(integrated_ ? result_->on_device() : scores_.data());
  float* maps = nullptr;
  if (work.map) maps = integrated_ ? result + spec_.inputs : static_cast<float*>(maps_.data());
  cuda::score(score, tensors, result, maps, program.score, stream_);
  if (integrated_) return;
  auto* const host = static_cast<float*>(result_->data());
  copy_to_pinned(host, result, work.images / score.views * sizeof(float), stream_);
  if (maps) copy_to_pinned(host + spec_.inputs, maps, work.images * tensors.pixels * sizeof(float), stream_);
}

void Replay::capture(const Work& work, Program& program) {
  program.graph = {};
  enqueue(work, program, nullptr);
  stream_.synchronize();
  if (!runner(work.images).capturable(stream_))
    throw std::runtime_error(
        "the engine cannot be captured into a CUDA graph: compile it anew with this version of kizu");
  program.launches.clear();
  Capture capture(stream_);
  enqueue(work, program, &program.launches);
  program.graph = capture.end();
  remember(work.frames, program);
  ++counts_.captures;
}

void Replay::remember(const Frames& frames, Program& program) {
  program.row = frames.row, program.column = frames.column, program.channel = frames.channel;
  program.pointers.assign(frames.data.begin(), frames.data.end());
}

// Frames at other addresses, or with other strides: new arguments for prepare's kernels. False if it takes other
// kernels.
bool Replay::update(const Work& work, Program& program) {
  const Frames& now = work.frames;
  if (now.row == program.row && now.column == program.column && now.channel == program.channel &&
      std::ranges::equal(now.data, program.pointers))
    return true;
  fresh_.clear();
  {
    const Logging logging(stream_, &fresh_, Stream::Log::only);
    prepare(plan_, now, input_.data(), program.prepare, stream_);
  }
  LaunchLog& launches = program.launches;
  if (fresh_.size() != launches.size()) return false;
  for (std::size_t i = 0; i < fresh_.size(); ++i)
    if (!fresh_[i].same_kernel(launches[i]) || !launches[i].node) return false;
  for (std::size_t i = 0; i < fresh_.size(); ++i) program.graph.update(launches[i], fresh_[i]);
  remember(now, program);
  ++counts_.updates;
  return true;
}

// After something went wrong: nothing runs any more, and graphs are made anew.
void Replay::abandon() noexcept {
  wait_quietly(stream_);
  running_ = false;
  programs_.clear();
  runners_.clear();
}

}  // namespace kizu::cuda

#endif
