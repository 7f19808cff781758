// Binding of smooth_map.
#include "ops/smooth_map.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <mutex>
#include <string>

#include "core/check.h"
#include "py/arrays.h"
#include "py/device.h"

namespace py = pybind11;

namespace {

using kizu::check;

// (maps, rows, columns) of float32, C-contiguous.
void check_maps(const char* name, const py::array& array, int rows, int columns) {
  if (!is_float(array, 4)) throw py::type_error(std::string(name) + " must be float32");
  if (array.ndim() != 3 || array.shape(0) < 1 || array.shape(0) > 1 << 20 || array.shape(1) != rows ||
      array.shape(2) != columns)
    check(false, name, " has the shape ", std::string(py::str(array.attr("shape"))), ", but must be (maps, ", rows,
          ", ", columns, ")");
  check_contiguous(name, array);
}

// One plan, its scratch memory and its threads. Calls from several threads take turns.
class SmoothMap {
 public:
  SmoothMap(const std::array<int, 2>& map_size, const std::array<int, 2>& size, const std::array<double, 4>& covered,
            const std::array<double, 2>& sigma, int threads, const std::string& device)
      : plan_{{map_size[0], size[0], covered[1], covered[3], sigma[0]},
              {map_size[1], size[1], covered[0], covered[2], sigma[1]}},
        pool_(threads),
        cuda_(kizu::cuda_side<CudaScratch>(device)) {}

  void run(const py::array& map, py::array& out) {
    check_maps("map", map, plan_.rows.n_in, plan_.columns.n_in);
    check_maps("out", out, plan_.rows.n_out, plan_.columns.n_out);
    check(map.shape(0) == out.shape(0), "map and out must hold as many maps");
    const auto* from = static_cast<const float*>(map.data());
    auto* to = static_cast<float*>(out.mutable_data());  // throws if it is read-only
    const int maps = static_cast<int>(map.shape(0));
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    if (cuda_)
      on_cuda(maps, from, to);
    else
      kizu::cpu::smooth_map(plan_, maps, from, to, scratch_, pool_);
  }

 private:
  void on_cuda([[maybe_unused]] int maps, [[maybe_unused]] const float* from, [[maybe_unused]] float* to) {
#ifdef KIZU_HAS_CUDA
    auto& stream = cuda_->stream;
    auto& scratch = cuda_->scratch;
    cuda_->run([&] {
      const auto bytes = [&](int rows, int columns) { return sizeof(float) * maps * rows * columns; };
      const std::size_t size = bytes(plan_.rows.n_out, plan_.columns.n_out);
      const void* const map = scratch.map.copy(from, bytes(plan_.rows.n_in, plan_.columns.n_in), stream);
      kizu::cuda::smooth_map(plan_, maps, static_cast<const float*>(map),
                             static_cast<float*>(scratch.out.room(to, size)), scratch.op, stream);
      scratch.out.fetch(to, size, stream);
    });
#endif
  }

  struct CudaScratch {
#ifdef KIZU_HAS_CUDA
    kizu::cuda::SmoothMapScratch op;
    kizu::DeviceArray map, out;
#endif
  };

  std::mutex mutex_;
  const kizu::SmoothMapPlan plan_;
  kizu::ThreadPool pool_;
  kizu::cpu::SmoothMapScratch scratch_;
  std::unique_ptr<kizu::CudaSide<CudaScratch>> cuda_;
};

}  // namespace

namespace kizu {

void bind_smooth_map(py::module_& m) {
  using namespace pybind11::literals;
  py::class_<SmoothMap>(m, "SmoothMap")
      .def(py::init<const std::array<int, 2>&, const std::array<int, 2>&, const std::array<double, 4>&,
                    const std::array<double, 2>&, int, const std::string&>(),
           py::kw_only(), "map_size"_a, "size"_a, "covered"_a, "sigma"_a, "threads"_a, "device"_a)
      .def("run", &SmoothMap::run, "map"_a.noconvert(), "out"_a.noconvert());
}

}  // namespace kizu
