// Binding of score.
#include "ops/score.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <ostream>
#include <string>

#include "core/check.h"
#include "py/arrays.h"
#include "py/device.h"
#include "py/score_spec.h"

namespace py = pybind11;

namespace {

using kizu::check;
using kizu::ScoreRule;

constexpr py::ssize_t kMost = 1 << 20;  // images, or channels

// Written as Python does, but only when a message needs it.
struct Shape {
  const py::array& array;
};

std::ostream& operator<<(std::ostream& to, const Shape& shape) {
  return to << std::string(py::str(shape.array.attr("shape")));
}

float* as_output(const char* name, py::array& out, std::initializer_list<py::ssize_t> shape) {
  if (!is_float(out, 4)) throw py::type_error(std::string(name) + " must be float32");
  if (!std::equal(shape.begin(), shape.end(), out.shape(), out.shape() + out.ndim())) {
    std::string wanted;
    for (const py::ssize_t side : shape) wanted += std::to_string(side) + ", ";
    check(false, name, " has the shape ", Shape{out}, ", but for these tensors it must be (", wanted, ")");
  }
  check_contiguous(name, out);
  return static_cast<float*>(out.mutable_data());  // throws if it is read-only
}

// One rule, its scratch memory and its threads. Calls from several threads take turns.
class Score {
 public:
  Score(const std::string& rule, double weight, const std::string& reduce, int threads, const std::string& device)
      : spec_{kizu::rule_called(rule), weight, false, 1, kizu::reduction_called(reduce)},
        pool_(threads),
        cuda_(kizu::cuda_side<CudaScratch>(device)) {
    check(weight >= 0 && weight <= 1, "weight is ", weight, ", but must lie in [0, 1]");
  }

  // tensors: x, x_hat, f, f_hat and logit, None where the rule does not read one. (In a tuple, since pybind11 allocates
  // for calls of many arguments.)
  void run(const py::tuple& tensors, py::array& scores, std::optional<py::array>& map, int views) {
    check(views >= 1, "views is ", views, ", but must be at least 1");
    check(tensors.size() == 5, "there are ", tensors.size(), " tensors, but must be 5");
    kizu::ScoreTensors of_graph;
    py::ssize_t images = -1, itemsize = 0;  // of the first tensor, with which the others must agree
    const auto take = [&](int i, const char* name, const py::array* like = nullptr) {
      const py::handle item = PyTuple_GET_ITEM(tensors.ptr(), i);
      check(!item.is_none(), "the rule reads ", name, ", and it is missing");
      if (!py::isinstance<py::array>(item))
        throw py::type_error(std::string(name) + " is a " + Py_TYPE(item.ptr())->tp_name +
                             ", but must be a NumPy array");
      auto array = py::reinterpret_borrow<py::array>(item);
      if (!(is_float(array, 4) || is_float(array, 2)) || (itemsize && array.itemsize() != itemsize))
        throw py::type_error(std::string(name) + " is " + std::string(py::str(array.dtype())) +
                             ", but the tensors must all be float32, or all float16");
      check(array.ndim() >= 1 && (images < 0 || array.shape(0) == images), name, " has the shape ", Shape{array},
            ", but must have the images along its first axis, as many as the tensors before it");
      check(
          !like || std::equal(like->shape(), like->shape() + like->ndim(), array.shape(), array.shape() + array.ndim()),
          name, " has the shape ", Shape{array}, ", but must have that of what it is compared with");
      check_contiguous(name, array);
      images = array.shape(0), itemsize = array.itemsize();
      return array;
    };
    py::ssize_t height = 0, width = 0;
    if (spec_.rule != ScoreRule::logit) {
      const py::array x = take(0, "x"), x_hat = take(1, "x_hat", &x);
      check(x.ndim() == 4 && x.shape(1) <= kMost, "x has the shape ", Shape{x},
            ", but must be (images, channels, height, width)");
      height = x.shape(2), width = x.shape(3);
      of_graph.channels = static_cast<int>(x.shape(1));
      of_graph.pixels = height * width;
      of_graph.x = x.data(), of_graph.x_hat = x_hat.data();
    }
    if (spec_.rule == ScoreRule::residual_feature) {
      const py::array f = take(2, "f"), f_hat = take(3, "f_hat", &f);
      of_graph.features = f.shape(0) ? f.size() / f.shape(0) : 0;
      of_graph.f = f.data(), of_graph.f_hat = f_hat.data();
    }
    if (reads_logit(spec_.rule)) {
      const py::array logit = take(4, "logit");
      check(logit.ndim() == 1, "logit has the shape ", Shape{logit}, ", but must be (images,)");
      of_graph.logit = logit.data();
    }
    check(images >= 1 && images <= kMost && images % views == 0, "there are ", images,
          " images, but there must be at least one and a multiple of the ", views, " views");
    of_graph.images = static_cast<int>(images);
    kizu::ScoreSpec spec = spec_;
    spec.half = itemsize == 2;
    spec.views = views;
    float* to = as_output("scores", scores, {images / views});
    check(!map || spec_.rule != ScoreRule::logit, "the rule logit has no map");
    float* map_to = map ? as_output("map", *map, {images, height, width}) : nullptr;
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    if (cuda_)
      on_cuda(spec, of_graph, to, map_to);
    else
      kizu::cpu::score(spec, of_graph, to, map_to, scratch_, pool_);
  }

 private:
  void on_cuda([[maybe_unused]] const kizu::ScoreSpec& spec, [[maybe_unused]] kizu::ScoreTensors tensors,
               [[maybe_unused]] float* scores, [[maybe_unused]] float* map) {
#ifdef KIZU_HAS_CUDA
    auto& stream = cuda_->stream;
    auto& scratch = cuda_->scratch;
    cuda_->run([&] {
      const std::size_t item = spec.half ? 2 : 4, images = tensors.images;
      const std::size_t x_size = images * tensors.channels * tensors.pixels * item,
                        f_size = images * tensors.features * item;
      const std::size_t score_size = images / spec.views * sizeof(float),
                        map_size = images * tensors.pixels * sizeof(float);
      tensors.x = scratch.x.copy(tensors.x, x_size, stream);
      tensors.x_hat = scratch.x_hat.copy(tensors.x_hat, x_size, stream);
      tensors.f = scratch.f.copy(tensors.f, f_size, stream);
      tensors.f_hat = scratch.f_hat.copy(tensors.f_hat, f_size, stream);
      tensors.logit = scratch.logit.copy(tensors.logit, images * item, stream);
      kizu::cuda::score(spec, tensors, static_cast<float*>(scratch.scores.room(scores, score_size)),
                        static_cast<float*>(scratch.map.room(map, map_size)), scratch.op, stream);
      scratch.scores.fetch(scores, score_size, stream);
      scratch.map.fetch(map, map_size, stream);
    });
#endif
  }

  struct CudaScratch {
#ifdef KIZU_HAS_CUDA
    kizu::cuda::ScoreScratch op;
    kizu::DeviceArray x, x_hat, f, f_hat, logit, scores, map;
#endif
  };

  std::mutex mutex_;
  const kizu::ScoreSpec spec_;
  kizu::ThreadPool pool_;
  kizu::cpu::ScoreScratch scratch_;
  std::unique_ptr<kizu::CudaSide<CudaScratch>> cuda_;
};

}  // namespace

namespace kizu {

void bind_score(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<Score>(m, "Score")
      .def(py::init<const std::string&, double, const std::string&, int, const std::string&>(), py::kw_only(), "rule"_a,
           "weight"_a, "reduce"_a, "threads"_a, "device"_a)
      .def("run", &Score::run, "tensors"_a, "scores"_a.noconvert(), "map"_a.noconvert(), "views"_a);
}

}  // namespace kizu
