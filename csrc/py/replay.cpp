// Binding of the CUDA pipeline: frames in, scores out, with the engine's execution contexts called back for a capture.
#include "pipeline/replay.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <tuple>

#include "core/check.h"
#include "pipeline/frame_slot.h"
#include "py/bind.h"
#include "py/device.h"
#include "py/device_array.h"
#include "py/frame_list.h"
#include "py/prepare_spec.h"
#include "py/score_spec.h"

namespace py = pybind11;

#ifdef KIZU_HAS_CUDA

namespace kizu {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Collecting garbage could free device memory, which ends a capture of this thread. With the GIL; captures of several
// threads may overlap.
class NoGarbageCollection {
 public:
  NoGarbageCollection() {
    if (living_++ == 0) enabled_ = PyGC_Disable() != 0;
  }
  ~NoGarbageCollection() {
    if (--living_ == 0 && enabled_) PyGC_Enable();
  }
  NoGarbageCollection(const NoGarbageCollection&) = delete;
  NoGarbageCollection& operator=(const NoGarbageCollection&) = delete;

 private:
  static inline int living_ = 0;
  static inline bool enabled_ = false;
};

// An execution context of kizu.engine.
class PythonRunner : public cuda::Runner {
 public:
  explicit PythonRunner(py::object context) : context_(std::move(context)) {}
  ~PythonRunner() override {
    const py::gil_scoped_acquire gil;
    context_ = py::object();
  }
  void enqueue(const cuda::Stream& stream) override {
    const py::gil_scoped_acquire gil;
    const NoGarbageCollection paused;
    context_.attr("enqueue")(handle(stream));
  }
  bool capturable(const cuda::Stream& stream) override {
    const py::gil_scoped_acquire gil;
    return context_.attr("capturable")(handle(stream)).cast<bool>();
  }

 private:
  static std::uintptr_t handle(const cuda::Stream& stream) { return reinterpret_cast<std::uintptr_t>(stream.get()); }

  py::object context_;
};

cuda::Bind python_bind(py::function bind) {
  // Shared, since the function object may be dropped without the GIL.
  auto held = std::shared_ptr<py::function>(new py::function(std::move(bind)), [](py::function* function) {
    const py::gil_scoped_acquire gil;
    delete function;
  });
  return [held](int images, const std::vector<cuda::Tensor>& tensors, void* workspace) {
    const py::gil_scoped_acquire gil;
    py::dict addresses;
    for (const auto& tensor : tensors) addresses[py::str(tensor.name)] = reinterpret_cast<std::uintptr_t>(tensor.data);
    return std::make_unique<PythonRunner>((*held)(images, addresses, reinterpret_cast<std::uintptr_t>(workspace)));
  };
}

// An array over pinned memory, which it keeps alive.
py::array pinned_array(std::shared_ptr<const cuda::PinnedBuffer> memory, const py::dtype& dtype,
                       const std::vector<py::ssize_t>& shape, const void* data) {
  using Owner = std::shared_ptr<const cuda::PinnedBuffer>;
  const py::capsule base(new Owner(std::move(memory)), [](void* owner) { delete static_cast<Owner*>(owner); });
  return py::array(dtype, shape, data, base);
}

class PythonReplay {
 public:
  PythonReplay(const py::dict& prepare, bool half, const std::string& rule, double weight, const std::string& reduce,
               int inputs, const std::string& input, const std::vector<std::pair<std::string, std::size_t>>& outputs,
               std::size_t workspace, int threads, py::function bind) {
    is_cuda("cuda");  // or it says why there is none
    device_ = cuda::current_device();
    cuda::ReplaySpec spec{.prepare = prepare_spec(prepare),
                          .score = {rule_called(rule), weight, half, 1, reduction_called(reduce)},
                          .threads = threads,
                          .inputs = inputs,
                          .input = input,
                          .outputs = {},
                          .workspace = workspace};
    spec.prepare.half = half;
    check(inputs >= 1, "inputs is ", inputs, ", but must be at least 1");
    for (const auto& [name, bytes] : outputs) spec.outputs.push_back({name, bytes});
    replay_ = std::make_unique<cuda::Replay>(std::move(spec), python_bind(std::move(bind)));
    producer_.emplace();
  }

  // The GIL stays with the caller: contexts of the engine end here.
  ~PythonReplay() { close(); }

  py::array frame_buffer(std::ptrdiff_t height, std::ptrdiff_t width) {
    const cuda::DeviceScope scope(device_);
    const auto memory = replay().frame_buffer(height, width);
    const PixelFormat& format = replay().spec().prepare.format;
    const DenseFrame dense(format, height, width);
    std::vector<py::ssize_t> shape = {height, dense.columns};
    if (format.stored_channels() > 1) shape.push_back(format.stored_channels());
    return pinned_array(memory, dense.channel == 2 ? py::dtype::of<std::uint16_t>() : py::dtype::of<std::uint8_t>(),
                        shape, memory->data());
  }

  py::array scores() {
    return pinned_array(replay().result(), py::dtype::of<float>(), {replay().spec().inputs}, replay().scores());
  }

  py::array maps() {
    const auto& spec = replay().spec();
    check(spec.score.rule != ScoreRule::logit, "the rule logit has no map");
    return pinned_array(replay().result(), py::dtype::of<float>(),
                        {spec.inputs, spec.prepare.height, spec.prepare.width}, replay().maps());
  }

  // frames: a tuple of NumPy arrays, or of arrays on the device, of one size. Returns the seconds until all is
  // launched.
  double start(const py::tuple& frames, const std::vector<Box>& boxes, bool map) {
    const auto begin = Clock::now();
    try {
      launch(frames, boxes, map);
    } catch (...) {
      frames_.clear();
      throw;
    }
    return seconds(begin, Clock::now());
  }

  // Waits; returns the seconds it waited.
  double finish() {
    const auto begin = Clock::now();
    cuda::Replay& replay = this->replay();
    try {
      const py::gil_scoped_release release;
      const cuda::DeviceScope scope(device_);
      replay.finish();
    } catch (...) {
      replay.drop();
      frames_.clear();
      throw;
    }
    frames_.clear();
    return seconds(begin, Clock::now());
  }

  void close() noexcept {
    if (!replay_) return;
    const cuda::DeviceScope scope(device_, std::nothrow);
    replay_.reset();  // waits for what is running
    producer_.reset();
    frames_.clear();
  }

  bool lost() { return replay().lost(); }
  std::tuple<std::uint64_t, std::uint64_t, std::uint64_t> counts() {
    const auto& counts = replay().counts();
    return {counts.captures, counts.launches, counts.updates};
  }

 private:
  void launch(const py::tuple& frames, const std::vector<Box>& boxes, bool map) {
    cuda::Replay& replay = this->replay();
    const cuda::DeviceScope scope(device_);
    const PixelFormat& format = replay.spec().prepare.format;
    replay.drop();  // what was started and, since somebody interrupted, never finished
    frames_.clear();
    std::optional<cuda::Replay::Place> place;
    for (const py::handle item : frames) {
      const auto frame = py::reinterpret_borrow<py::object>(item);
      const bool host = py::isinstance<py::array>(frame);
      const auto now = host ? cuda::Replay::Place::host : cuda::Replay::Place::device;
      check(!place || *place == now, "the frames of a batch must all be on the host, or all on the device");
      place = now;
      if (host) {
        frames_.add(view_of(py::reinterpret_borrow<py::array>(frame)), format, 0, frame);
      } else if (const auto array = device_array(frame, replay.stream(), *producer_, device_)) {
        frames_.add(array->view, format, 0, array->owner);
      } else {
        throw py::type_error(
            "a frame must be a NumPy array, or an array on the CUDA device with __dlpack__ or "
            "__cuda_array_interface__");
      }
    }
    check(place.has_value(), "there are no frames");
    boxes_.clear();
    for (const Box& box : boxes) boxes_.push_back(region(box));
    const py::gil_scoped_release release;
    replay.start(frames_.frames(), *place, boxes_, map);
  }

  cuda::Replay& replay() {
    check(replay_ != nullptr, "the pipeline is closed");
    return *replay_;
  }

  int device_ = 0;
  std::unique_ptr<cuda::Replay> replay_;
  std::optional<cuda::Event> producer_;  // what a frame's producer has put on its stream
  FrameList frames_;                     // until they have been read
  std::vector<Region> boxes_;
};

py::dict cuda_device() {
  is_cuda("cuda");
  const cuda::DeviceInfo info = cuda::device_info(cuda::current_device());
  py::dict about;
  about["name"] = info.name;
  about["compute_capability"] = std::to_string(info.major) + "." + std::to_string(info.minor);
  about["driver"] = info.driver;
  about["runtime"] = info.runtime;
  about["integrated"] = info.integrated;
  return about;
}

}  // namespace

void bind_replay(py::module_& m) {
  using namespace pybind11::literals;
  m.def("cuda_device", &cuda_device);
  py::class_<PythonReplay>(m, "Replay")
      .def(py::init<const py::dict&, bool, const std::string&, double, const std::string&, int, const std::string&,
                    const std::vector<std::pair<std::string, std::size_t>>&, std::size_t, int, py::function>(),
           py::kw_only(), "prepare"_a, "half"_a, "rule"_a, "weight"_a, "reduce"_a, "inputs"_a, "input"_a, "outputs"_a,
           "workspace"_a, "threads"_a, "bind"_a)
      .def("frame_buffer", &PythonReplay::frame_buffer, "height"_a, "width"_a)
      .def("scores", &PythonReplay::scores)
      .def("maps", &PythonReplay::maps)
      .def("start", &PythonReplay::start, "frames"_a, "boxes"_a, "map"_a)
      .def("finish", &PythonReplay::finish)
      .def("close", &PythonReplay::close)
      .def_property_readonly("lost", &PythonReplay::lost)
      .def_property_readonly("counts", &PythonReplay::counts);
}

}  // namespace kizu

#else

namespace kizu {

void bind_replay(py::module_& m) {
  m.def("cuda_device", [] { is_cuda("cuda"); });  // says why there is none
}

}  // namespace kizu

#endif
