// PrepareSpec from the dictionary that kizu.prepare.native_spec makes.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <vector>

#include "ops/prepare.h"

namespace kizu {

using Box = std::array<int, 4>;  // left, top, right, bottom

inline Region region(const Box& box) { return {box[0], box[1], box[2], box[3]}; }

// Throws KeyError or TypeError in Python's terms for a dictionary that is not such a one.
PrepareSpec prepare_spec(const pybind11::dict& values);

}  // namespace kizu
