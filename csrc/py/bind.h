// Each file of this folder binds one thing; module.cpp puts them together.
#pragma once

#include <pybind11/pybind11.h>

namespace kizu {

void bind_prepare(pybind11::module_& m);
void bind_replay(pybind11::module_& m);
void bind_score(pybind11::module_& m);
void bind_smooth_map(pybind11::module_& m);

}  // namespace kizu
