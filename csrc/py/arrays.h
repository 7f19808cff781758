// Checks of NumPy arrays that several bindings make.
#pragma once

#include <pybind11/numpy.h>

#include "core/check.h"

// float32 (size 4) or float16 (size 2) in the machine's byte order.
inline bool is_float(const pybind11::array& array, pybind11::ssize_t size) {
  return array.dtype().kind() == 'f' && array.itemsize() == size && array.dtype().byteorder() == '=';
}

inline void check_contiguous(const char* name, const pybind11::array& array) {
  kizu::check((array.flags() & pybind11::array::c_style) != 0, name, " must be C-contiguous");
  kizu::check((array.flags() & pybind11::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, name,
              " must be aligned to its dtype");
}
