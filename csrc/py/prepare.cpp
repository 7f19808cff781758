#include "ops/prepare.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <mutex>
#include <optional>
#include <string>

#include "core/check.h"
#include "core/parallel.h"
#include "py/bind.h"
#include "py/device.h"
#include "py/device_frames.h"
#include "py/frame_list.h"
#include "py/prepare_spec.h"

namespace py = pybind11;

namespace kizu {
namespace {

bool native(const py::array& array) {
  const char order = array.dtype().byteorder();
  return order == '=' || order == '|';
}

void* output(py::array& out, char kind, int size, const char* dtype, bool batch, py::ssize_t count,
             std::array<py::ssize_t, 3> image) {
  if (out.dtype().kind() != kind || out.itemsize() != size || !native(out))
    throw py::type_error(std::string("the output's dtype must be ") + dtype);
  const auto [channels, height, width] = image;
  const bool single = !batch && count == 1;
  const int axis = single ? 0 : 1;
  if (out.ndim() != axis + 3 || (!single && out.shape(0) != count) || out.shape(axis) != channels ||
      out.shape(axis + 1) != height || out.shape(axis + 2) != width) {
    if (single) check(false, "the output's shape must be (", channels, ", ", height, ", ", width, ")");
    check(false, "the output's shape must be (", count, ", ", channels, ", ", height, ", ", width, ")");
  }
  check((out.flags() & py::array::c_style) != 0, "the output must be C-contiguous");
  check((out.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, "the output must be aligned to its dtype");
  return out.mutable_data();  // throws if it is read-only
}

// Plans of one spec for either type of output, with scratch memory and threads. Calls from several threads take turns.
class Prepare {
 public:
  Prepare(const py::dict& spec, int threads, const std::string& device)
      : plan_(prepare_spec(spec)), pool_(threads), cuda_(cuda_side<CudaScratch>(device)) {}

  void run(const py::object& frames, py::array& out, const std::vector<Box>& boxes) {
    const bool half = out.itemsize() == 2;
    if (half && !half_plan_) {
      PrepareSpec spec = plan_.spec();
      spec.half = true;
      half_plan_.emplace(std::move(spec));
    }
    call(half ? *half_plan_ : plan_, frames, boxes, [&](const PreparePlan& plan, const Frames& view, bool batch) {
      const PrepareSpec& spec = plan.spec();
      void* const to = output(out, 'f', half ? 2 : 4, "float32 or float16", batch,
                              static_cast<py::ssize_t>(view.data.size()) * plan.inputs(),
                              {spec.output_channels(), spec.height, spec.width});
      return [=, &plan, this, size = static_cast<std::size_t>(out.nbytes())] {
        if (cuda_)
          on_cuda(plan, view, to, size, false);
        else
          cpu::prepare(plan, view, to, scratch_, pool_);
      };
    });
  }

  void resize(const py::object& frames, py::array& out, const std::vector<Box>& boxes) {
    call(plan_, frames, boxes, [&](const PreparePlan& plan, const Frames& view, bool batch) {
      const PrepareSpec& spec = plan.spec();
      const bool deep = spec.format.deep();
      void* to = output(out, 'u', deep ? 2 : 1, deep ? "uint16" : "uint8", batch,
                        static_cast<py::ssize_t>(view.data.size() * plan.views().size()),
                        {spec.format.channels, spec.height, spec.width});
      return [=, &plan, this, size = static_cast<std::size_t>(out.nbytes())] {
        if (cuda_)
          on_cuda(plan, view, to, size, true);
        else
          cpu::resize(plan, view, to, scratch_, pool_);
      };
    });
  }

 private:
  // with(plan, frames, batch) checks the output and returns what to do without the GIL.
  template <typename With>
  void call(PreparePlan& plan, const py::object& frames, const std::vector<Box>& boxes, const With& with) {
    std::unique_lock lock(mutex_, std::defer_lock);
    if (!lock.try_lock()) {
      const py::gil_scoped_release release;  // the holder wants the GIL back before it lets go
      lock.lock();
    }
    const struct Held {  // until the work is done, and the GIL is held again
      FrameList& frames;
      ~Held() { frames.clear(); }
    } held{frames_};
    frames_.set(frames, plan.spec().format);
    boxes_.clear();
    for (const Box& box : boxes) boxes_.push_back(region(box));
    check(plan.spec().boxes || boxes_.empty(), "boxes were given, but the spec has none");
    const Frames view = frames_.frames();
    plan.set_geometry(view.height, view.width, boxes_);
    const auto work = with(plan, view, FrameList::is_batch(frames, plan.spec().format));
    const py::gil_scoped_release release;
    work();
  }

  void on_cuda([[maybe_unused]] const PreparePlan& plan, [[maybe_unused]] const Frames& frames,
               [[maybe_unused]] void* out, [[maybe_unused]] std::size_t size, [[maybe_unused]] bool integers) {
#ifdef KIZU_HAS_CUDA
    auto& stream = cuda_->stream;
    auto& scratch = cuda_->scratch;
    cuda_->run([&] {
      const Frames there = scratch.frames.copy(frames, plan.spec().format, stream);
      (integers ? cuda::resize : cuda::prepare)(plan, there, scratch.out.room(out, size), scratch.op, stream);
      scratch.out.fetch(out, size, stream);
    });
#endif
  }

  struct CudaScratch {
#ifdef KIZU_HAS_CUDA
    cuda::PrepareScratch op;
    DeviceFrames frames;
    DeviceArray out;
#endif
  };

  std::mutex mutex_;
  PreparePlan plan_;
  std::optional<PreparePlan> half_plan_;
  ThreadPool pool_;
  cpu::PrepareScratch scratch_;
  std::unique_ptr<CudaSide<CudaScratch>> cuda_;
  FrameList frames_;
  std::vector<Region> boxes_;
};

}  // namespace

void bind_prepare(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<Prepare>(m, "Prepare")
      .def(py::init<const py::dict&, int, const std::string&>(), "spec"_a, py::kw_only(), "threads"_a, "device"_a)
      .def("run", &Prepare::run, "frames"_a, "out"_a.noconvert(), "boxes"_a)
      .def("resize", &Prepare::resize, "frames"_a, "out"_a.noconvert(), "boxes"_a);
}

}  // namespace kizu
