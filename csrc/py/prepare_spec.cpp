#include "py/prepare_spec.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>

namespace py = pybind11;

namespace kizu {
namespace {

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

template <typename T>
T get(const py::dict& values, const char* name) {
  if (!values.contains(name)) throw py::key_error(std::string("the spec has no ") + name);
  return values[name].cast<T>();
}

}  // namespace

PrepareSpec prepare_spec(const py::dict& values) {
  PrepareSpec spec;
  spec.format = {get<int>(values, "channels"), get<int>(values, "bit_depth"), get<bool>(values, "bgr"),
                 bayer(get<std::string>(values, "bayer")), packing(get<std::string>(values, "packing"))};
  const auto size = get<std::array<int, 2>>(values, "size"), resize = get<std::array<int, 2>>(values, "resize");
  spec.height = size[0], spec.width = size[1];
  spec.resize_height = resize[0], spec.resize_width = resize[1];
  if (const auto crop = get<std::optional<Box>>(values, "crop")) spec.crop = region(*crop);
  const auto tiles = get<std::array<int, 3>>(values, "tiles");
  spec.tile_rows = tiles[0], spec.tile_columns = tiles[1], spec.tile_overlap = tiles[2];
  spec.boxes = get<bool>(values, "boxes");
  spec.rotations = get<int>(values, "rotations");
  spec.pool = get<bool>(values, "pool");
  spec.tables = get<std::vector<std::vector<float>>>(values, "tables");
  for (const auto& [scale, offset] : get<std::vector<std::array<double, 2>>>(values, "lines"))
    spec.lines.push_back({scale, offset});
  for (const auto& [scale, offset] : get<std::vector<std::array<float, 2>>>(values, "affine"))
    spec.affine.push_back({scale, offset});
  return spec;
}

}  // namespace kizu
