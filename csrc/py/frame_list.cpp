#include "py/frame_list.h"

#include <algorithm>

#include "core/check.h"

namespace py = pybind11;

namespace kizu {

ArrayView view_of(const py::array& array) {
  const char order = array.dtype().byteorder();
  ArrayView view{array.data(),
                 array.dtype().kind(),
                 array.itemsize(),
                 order == '=' || order == '|',
                 static_cast<int>(array.ndim()),
                 {},
                 {}};
  check(view.rank <= 4, "an array of ", view.rank, " axes is neither a frame nor a batch");
  std::copy_n(array.shape(), view.rank, view.shape.begin());
  std::copy_n(array.strides(), view.rank, view.strides.begin());
  return view;
}

bool FrameList::is_batch(const py::object& object, const PixelFormat& format) {
  if (!py::isinstance<py::array>(object)) return true;
  const auto array = py::reinterpret_borrow<py::array>(object);
  const int rank = static_cast<int>(array.ndim());
  if (format.packing != Packing::none) return rank != 2;
  if (format.stored_channels() == 3) return rank != 3;
  return rank != 2 && !(rank == 3 && array.shape(2) == 1);
}

void FrameList::set(const py::object& object, const PixelFormat& format) {
  clear();
  if (!py::isinstance<py::array>(object)) {
    const auto sequence = py::cast<py::sequence>(object);
    check(sequence.size() > 0, "there are no frames");
    for (std::size_t i = 0; i < sequence.size(); ++i) {
      const py::object item = sequence[i];
      if (!py::isinstance<py::array>(item)) throw py::type_error("a frame must be a NumPy array");
      add(view_of(py::reinterpret_borrow<py::array>(item)), format, 0, item);
    }
    return;
  }
  const ArrayView array = view_of(py::reinterpret_borrow<py::array>(object));
  if (!is_batch(object, format)) return add(array, format, 0, object);
  check(array.rank > 0, "the frame has no axes");
  check(array.shape[0] > 0, "there are no frames");
  add(array, format, 1, object);
  for (std::ptrdiff_t i = 1; i < array.shape[0]; ++i)
    pointers_.push_back(static_cast<const std::uint8_t*>(pointers_.front()) + i * array.strides[0]);
}

void FrameList::add(const ArrayView& array, const PixelFormat& format, int axis, py::object owner) {
  const bool bytes = !format.deep() || format.packing != Packing::none;
  if (array.kind != 'u' || array.item != (bytes ? 1 : 2) || !array.native)
    throw py::type_error(bytes ? "the frame's dtype must be uint8" : "the frame's dtype must be uint16");
  const int rank = array.rank - axis, channels = format.stored_channels();
  const auto shape = [&](int i) { return array.shape[axis + i]; };
  const auto stride = [&](int i) { return array.strides[axis + i]; };
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
  owners_.push_back(std::move(owner));
  pointers_.push_back(array.data);
}

void FrameList::clear() {
  owners_.clear();
  pointers_.clear();
}

Frames FrameList::frames() const {
  Frames frames = layout_;
  frames.data = pointers_;
  return frames;
}

}  // namespace kizu
