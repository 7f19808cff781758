// The extension kizu._core: bindings only. Signatures for Python are in python/kizu/_core.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>

#include "core/check.h"
#include "core/parallel.h"
#include "ops/prepare.h"

namespace py = pybind11;

namespace {

using kizu::check;

kizu::Frame as_frame(const py::array& frame, int channels, bool bgr) {
  if (frame.dtype().kind() != 'u' || frame.itemsize() != 1) throw py::type_error("the frame's dtype must be uint8");
  const auto rank = frame.ndim();
  check((rank == 3 && frame.shape(2) == channels) || (rank == 2 && channels == 1),
        "the frame's shape must be (height, width, ", channels, ")");
  kizu::Frame view{static_cast<const std::uint8_t*>(frame.data()),
                   {frame.shape(0), frame.shape(1), channels},
                   {frame.strides(0), frame.strides(1), rank == 3 ? frame.strides(2) : 1}};
  if (bgr && channels == 3) {
    view.data += 2 * view.strides[2];
    view.strides[2] = -view.strides[2];
  }
  return view;
}

template <typename T>
T* as_output(py::array& out, const char* dtype, py::ssize_t channels, py::ssize_t height, py::ssize_t width) {
  const char order = out.dtype().byteorder();
  if (out.dtype().kind() != (std::is_same_v<T, float> ? 'f' : 'u') || out.itemsize() != sizeof(T) ||
      (order != '=' && order != '|'))
    throw py::type_error(std::string("the output's dtype must be ") + dtype);
  check(out.ndim() == 3 && out.shape(0) == channels && out.shape(1) == height && out.shape(2) == width,
        "the output's shape must be (", channels, ", ", height, ", ", width, ")");
  check((out.flags() & py::array::c_style) != 0, "the output must be C-contiguous");
  check((out.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, "the output must be aligned to its dtype");
  return static_cast<T*>(out.mutable_data());  // throws if it is read-only
}

// One plan, its scratch memory and its threads. Calls from several threads take turns.
class Prepare {
 public:
  Prepare(int height, int width, int channels, const std::optional<std::array<int, 4>>& crop,
          std::vector<std::vector<float>> tables, int threads)
      : plan_({height, width, channels,
               crop ? std::optional<kizu::Region>({(*crop)[0], (*crop)[1], (*crop)[2], (*crop)[3]}) : std::nullopt,
               std::move(tables)}),
        pool_(threads) {}

  void run(const py::array& frame, py::array& out, bool bgr) {
    const kizu::PrepareSpec& spec = plan_.spec();
    const kizu::Frame view = as_frame(frame, spec.channels, bgr);
    float* to = as_output<float>(out, "float32", static_cast<py::ssize_t>(spec.tables.size()), spec.height, spec.width);
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    plan_.set_frame_size(view.shape[0], view.shape[1]);
    kizu::cpu::prepare(plan_, view, to, scratch_, pool_);
  }

  void resize(const py::array& frame, py::array& out, bool bgr) {
    const kizu::PrepareSpec& spec = plan_.spec();
    const kizu::Frame view = as_frame(frame, spec.channels, bgr);
    std::uint8_t* to = as_output<std::uint8_t>(out, "uint8", spec.channels, spec.height, spec.width);
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    plan_.set_frame_size(view.shape[0], view.shape[1]);
    kizu::cpu::resize(plan_, view, to, scratch_, pool_);
  }

 private:
  std::mutex mutex_;
  kizu::PreparePlan plan_;
  kizu::ThreadPool pool_;
  kizu::cpu::PrepareScratch scratch_;
};

}  // namespace

PYBIND11_MODULE(_core, m) {
  using namespace pybind11::literals;
  m.def("instruction_sets", &kizu::cpu::instruction_sets);
  py::class_<Prepare>(m, "Prepare")
      .def(py::init<int, int, int, const std::optional<std::array<int, 4>>&, std::vector<std::vector<float>>, int>(),
           py::kw_only(), "height"_a, "width"_a, "channels"_a, "crop"_a, "tables"_a, "threads"_a)
      .def("run", &Prepare::run, "frame"_a.noconvert(), "out"_a.noconvert(), "bgr"_a)
      .def("resize", &Prepare::resize, "frame"_a.noconvert(), "out"_a.noconvert(), "bgr"_a);
}
