// Frames that come from Python: one array or a batch of them, in host or device memory.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <vector>

#include "ops/prepare.h"

namespace kizu {

// What an array is, wherever it lies.
struct ArrayView {
  const void* data = nullptr;
  char kind = 'u';          // of the dtype, as NumPy names it
  std::ptrdiff_t item = 1;  // bytes
  bool native = true;       // byte order
  int rank = 0;
  std::array<std::ptrdiff_t, 4> shape{}, strides{};  // strides in bytes
};

ArrayView view_of(const pybind11::array& array);

// Frames of one size and layout. They are kept alive until clear().
class FrameList {
 public:
  // Whether `object` is a batch: more than one axis more than a frame has, or a sequence.
  static bool is_batch(const pybind11::object& object, const PixelFormat& format);

  // NumPy arrays; throws std::invalid_argument or pybind11::type_error for what are no frames of the format.
  void set(const pybind11::object& object, const PixelFormat& format);
  // One frame, or one more, whose memory `owner` keeps alive. Axes before `axis` are left out.
  void add(const ArrayView& array, const PixelFormat& format, int axis, pybind11::object owner);

  // Lets go of the arrays; with the GIL.
  void clear();

  // Valid until the list changes.
  Frames frames() const;

 private:
  Frames layout_;
  std::vector<pybind11::object> owners_;  // they must live as long as their memory is read
  std::vector<const void*> pointers_;
};

}  // namespace kizu
