// The extension kizu._core: bindings only. Signatures for Python are in python/kizu/_core.pyi.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/cuda.h"
#include "core/simd.h"
#include "py/bind.h"

namespace {

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto level : kizu::simd::available()) names.emplace_back(kizu::simd::name(level));
  return names;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.def("instruction_sets", &instruction_sets);
  m.def("cuda_devices", &kizu::cuda::device_count);
  kizu::bind_prepare(m);
  kizu::bind_replay(m);
  kizu::bind_score(m);
  kizu::bind_smooth_map(m);
}
