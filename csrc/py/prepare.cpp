#include "ops/prepare.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "core/check.h"
#include "core/parallel.h"
#include "py/bind.h"
#include "py/device.h"
#include "py/device_frames.h"

namespace py = pybind11;

namespace kizu {
namespace {

using Box = std::array<int, 4>;  // left, top, right, bottom

Region region(const Box& box) { return {box[0], box[1], box[2], box[3]}; }

template <typename Value>
Value named(const std::string& name, const char* what, std::initializer_list<std::pair<const char*, Value>> values) {
  for (const auto& [known, value] : values)
    if (name == known) return value;
  throw std::invalid_argument(std::string(what) + " is '" + name + "', which is unknown");
}

Bayer bayer(const std::string& name) {
  return named<Bayer>(
      name, "bayer",
      {{"", Bayer::none}, {"rggb", Bayer::rggb}, {"grbg", Bayer::grbg}, {"gbrg", Bayer::gbrg}, {"bggr", Bayer::bggr}});
}

Packing packing(const std::string& name) {
  return named<Packing>(name, "packing",
                        {{"", Packing::none},
                         {"mono10p", Packing::mono10p},
                         {"mono12p", Packing::mono12p},
                         {"mono12packed", Packing::mono12packed}});
}

bool native(const py::array& array) {
  const char order = array.dtype().byteorder();
  return order == '=' || order == '|';
}

// Frames of one size from one array or a sequence of them.
class FrameList {
 public:
  // Whether `object` is a batch: more than one axis more than a frame has, or a sequence.
  static bool is_batch(const py::object& object, const PixelFormat& format) {
    if (!py::isinstance<py::array>(object)) return true;
    const auto array = py::reinterpret_borrow<py::array>(object);
    const int rank = static_cast<int>(array.ndim());
    if (format.packing != Packing::none) return rank != 2;
    if (format.stored_channels() == 3) return rank != 3;
    return rank != 2 && !(rank == 3 && array.shape(2) == 1);
  }

  void set(const py::object& object, const PixelFormat& format) {
    clear();
    if (!py::isinstance<py::array>(object)) {
      const auto sequence = py::cast<py::sequence>(object);
      check(sequence.size() > 0, "there are no frames");
      for (std::size_t i = 0; i < sequence.size(); ++i) {
        const py::object item = sequence[i];
        if (!py::isinstance<py::array>(item)) throw py::type_error("a frame must be a NumPy array");
        add(py::reinterpret_borrow<py::array>(item), format, 0);
      }
      return;
    }
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (!is_batch(object, format)) return add(array, format, 0);
    check(array.ndim() > 0, "the frame has no axes");
    check(array.shape(0) > 0, "there are no frames");
    add(array, format, 1);
    for (py::ssize_t i = 1; i < array.shape(0); ++i)
      pointers_.push_back(static_cast<const std::uint8_t*>(pointers_.front()) + i * array.strides(0));
  }

  // Lets go of the arrays; with the GIL.
  void clear() {
    arrays_.clear();
    pointers_.clear();
  }

  Frames frames() const {
    Frames frames = layout_;
    frames.data = pointers_;
    return frames;
  }

 private:
  // A frame, whose axes begin at `axis`.
  void add(const py::array& array, const PixelFormat& format, int axis) {
    const bool bytes = !format.deep() || format.packing != Packing::none;
    if (array.dtype().kind() != 'u' || array.itemsize() != (bytes ? 1 : 2) || !native(array))
      throw py::type_error(bytes ? "the frame's dtype must be uint8" : "the frame's dtype must be uint16");
    const int rank = static_cast<int>(array.ndim()) - axis, channels = format.stored_channels();
    const auto shape = [&](int i) { return array.shape(axis + i); };
    const auto stride = [&](int i) { return array.strides(axis + i); };
    Frames layout;
    if (format.packing != Packing::none) {
      check(rank == 2, "the frame's shape must be (height, bytes of a row)");
      check(shape(1) == 1 || stride(1) == 1, "the bytes of a packed row must lie side by side");
      const bool whole = format.packing != Packing::mono12packed || shape(1) % 3 != 1;
      check(whole, "the frame's rows have ", shape(1), " bytes, which end within a pixel");
      layout = {{}, shape(0), shape(1) * 8 / format.bit_depth, stride(0), 0, 0};
    } else {
      check((rank == 3 && shape(2) == channels) || (rank == 2 && channels == 1),
            "the frame's shape must be (height, width, ", channels, ")");
      layout = {{}, shape(0), shape(1), stride(0), stride(1), rank == 3 ? stride(2) : 0};
    }
    if (pointers_.empty()) layout_ = layout;
    check(layout.height == layout_.height && layout.width == layout_.width,
          "the frames of a batch must be of one size, but are ", layout_.height, "x", layout_.width, " and ",
          layout.height, "x", layout.width);
    check(layout.row == layout_.row && layout.column == layout_.column && layout.channel == layout_.channel,
          "the frames of a batch must have the same strides");
    arrays_.push_back(array);
    pointers_.push_back(array.data());
  }

  Frames layout_;
  std::vector<py::array> arrays_;  // they must live as long as their memory is read
  std::vector<const void*> pointers_;
};

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
  Prepare(int channels, int bit_depth, bool bgr, const std::string& bayer_name, const std::string& packing_name,
          std::array<int, 2> size, std::array<int, 2> resize, const std::optional<Box>& crop, std::array<int, 3> tiles,
          bool boxes, int rotations, bool pool, std::vector<std::vector<float>> tables,
          const std::vector<std::array<double, 2>>& lines, const std::vector<std::array<float, 2>>& affine, int threads,
          const std::string& device)
      : plan_([&] {
          PrepareSpec spec{.format = {channels, bit_depth, bgr, bayer(bayer_name), packing(packing_name)},
                           .height = size[0],
                           .width = size[1],
                           .resize_height = resize[0],
                           .resize_width = resize[1],
                           .crop = crop ? std::optional(region(*crop)) : std::nullopt,
                           .tile_rows = tiles[0],
                           .tile_columns = tiles[1],
                           .tile_overlap = tiles[2],
                           .boxes = boxes,
                           .rotations = rotations,
                           .pool = pool,
                           .half = false,
                           .tables = std::move(tables),
                           .lines = {},
                           .affine = {}};
          for (const auto& [scale, offset] : lines) spec.lines.push_back({scale, offset});
          for (const auto& [scale, offset] : affine) spec.affine.push_back({scale, offset});
          return PreparePlan(std::move(spec));
        }()),
        pool_(threads),
        cuda_(cuda_side<CudaScratch>(device)) {}

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
      .def(py::init<int, int, bool, const std::string&, const std::string&, std::array<int, 2>, std::array<int, 2>,
                    const std::optional<Box>&, std::array<int, 3>, bool, int, bool, std::vector<std::vector<float>>,
                    const std::vector<std::array<double, 2>>&, const std::vector<std::array<float, 2>>&, int,
                    const std::string&>(),
           py::kw_only(), "channels"_a, "bit_depth"_a, "bgr"_a, "bayer"_a, "packing"_a, "size"_a, "resize"_a, "crop"_a,
           "tiles"_a, "boxes"_a, "rotations"_a, "pool"_a, "tables"_a, "lines"_a, "affine"_a, "threads"_a, "device"_a)
      .def("run", &Prepare::run, "frames"_a, "out"_a.noconvert(), "boxes"_a)
      .def("resize", &Prepare::resize, "frames"_a, "out"_a.noconvert(), "boxes"_a);
}

}  // namespace kizu
