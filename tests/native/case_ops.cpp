#include "case_ops.h"

#include <sstream>
#include <stdexcept>

namespace kizu::tests {

namespace {

// The position in `names` of what the case says.
template <typename Enum>
Enum choice(const Case& from, const std::string& key, const std::vector<std::string>& names) {
  for (std::size_t i = 0; i < names.size(); ++i)
    if (from.text(key) == names[i]) return static_cast<Enum>(i);
  throw std::runtime_error(from.name + ": " + key + " is '" + from.text(key) + "'");
}

// Adds an output that must become what the case expects.
std::byte* expect(Call& call, const std::string& array, Lane& lane) {
  const Array& expected = call.of->array(array);
  call.outputs.push_back({&expected, lane.output(expected.bytes.size(), expected.item_size())});
  return call.outputs.back().memory.data;
}

// Adds an input; null if the case has no such array.
const std::byte* give(Call& call, const std::string& array, Lane& lane) {
  const Array* found = call.of->find(array);
  if (!found) return nullptr;
  call.inputs.push_back(lane.input(found->bytes, found->item_size()));
  return call.inputs.back().data;
}

std::vector<int> whole(const Case& from, const std::string& key) {
  const std::vector<double> numbers = from.numbers(key);
  return {numbers.begin(), numbers.end()};
}

// Everything of the case that belongs to the spec: cases in which it is the same share a plan, as the frames of one
// model do.
std::string spec_key(const Case& from, bool half) {
  static const std::vector<std::string> keys = {"format", "bayer", "packing",   "size", "resize",
                                                "crop",   "tiles", "rotations", "flags"};
  std::string key = half ? "half;" : "";
  for (const std::string& each : keys) key += from.text(each) + ";";
  for (const auto& [name, array] : from.arrays)
    if (name.starts_with("table") || name == "lines" || name == "affine")
      key.append(reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size());
  return key;
}

PrepareSpec prepare_spec(const Case& from, bool half) {
  PrepareSpec spec{};
  const std::vector<int> format = whole(from, "format"), size = whole(from, "size"), resize = whole(from, "resize");
  const std::vector<int> crop = whole(from, "crop"), tiles = whole(from, "tiles"), flags = whole(from, "flags");
  spec.format.channels = format.at(0);
  spec.format.bit_depth = format.at(1);
  spec.format.bgr = format.at(2);
  spec.format.bayer = choice<Bayer>(from, "bayer", {"none", "rggb", "grbg", "gbrg", "bggr"});
  spec.format.packing = choice<Packing>(from, "packing", {"none", "mono10p", "mono12p", "mono12packed"});
  spec.height = size.at(0);
  spec.width = size.at(1);
  spec.resize_height = resize.at(0);
  spec.resize_width = resize.at(1);
  if (!crop.empty()) spec.crop = Region{crop.at(0), crop.at(1), crop.at(2), crop.at(3)};
  spec.tile_rows = tiles.at(0);
  spec.tile_columns = tiles.at(1);
  spec.tile_overlap = tiles.at(2);
  spec.rotations = static_cast<int>(from.integer("rotations"));
  spec.boxes = flags.at(0);
  spec.pool = flags.at(1);
  spec.half = half;
  for (int i = 0; const Array* table = from.find("table" + std::to_string(i)); ++i)
    spec.tables.emplace_back(table->as<float>(), table->as<float>() + table->items());
  if (const Array* lines = from.find("lines"))
    for (std::size_t i = 0; i < lines->items(); i += 2)
      spec.lines.push_back({lines->as<double>()[i], lines->as<double>()[i + 1]});
  if (const Array* affine = from.find("affine"))
    for (std::size_t i = 0; i < affine->items(); i += 2)
      spec.affine.push_back({affine->as<float>()[i], affine->as<float>()[i + 1]});
  return spec;
}

Call start_prepare(const Case& from, Lane& lane) {
  Call call{&from, {}, {}};
  std::vector<Region> boxes;
  if (const Array* array = from.find("boxes"))
    for (const int* box = array->as<int>(); box < array->as<int>() + array->items(); box += 4)
      boxes.push_back({box[0], box[1], box[2], box[3]});
  const std::vector<int> shape = whole(from, "frame"), strides = whole(from, "strides");

  std::vector<const void*> data;
  const Array& frames = from.array("frames");  // (frames, bytes from the lowest to the highest that a frame has)
  const std::size_t bytes = frames.shape.at(1), sample = from.integer("sample");
  for (std::size_t i = 0; i < frames.shape[0]; ++i) {
    call.inputs.push_back(lane.input(std::span(frames.bytes).subspan(i * bytes, bytes), sample));
    data.push_back(call.inputs.back().data + from.integer("first"));
  }
  const Frames arguments{data, shape[0], shape[1], strides.at(0), strides.at(1), strides.at(2)};

  // One call for each output, by the plan of its type.
  for (const auto& [name, expected] : from.arrays) {
    if (!name.starts_with("expected")) continue;
    const bool half = expected.type == "float16";
    PreparePlan& plan = lane.plan(spec_key(from, half), [&] { return PreparePlan(prepare_spec(from, half)); });
    plan.set_geometry(shape.at(0), shape.at(1), boxes);
    std::byte* out = expect(call, name, lane);
    if (from.op() == "prepare")
      lane.prepare(plan, arguments, out);
    else
      lane.resize(plan, arguments, out);
  }
  return call;
}

Call start_score(const Case& from, Lane& lane) {
  Call call{&from, {}, {}};
  ScoreSpec spec{choice<ScoreRule>(from, "rule", {"residual", "residual_feature", "residual_logit", "logit"})};
  spec.weight = from.numbers("weight").at(0);
  spec.half = from.integer("half");
  spec.views = static_cast<int>(from.integer("views"));
  spec.reduce = choice<Reduce>(from, "reduce", {"max", "mean"});

  ScoreTensors tensors;
  tensors.images = static_cast<int>(from.integer("images"));
  tensors.channels = static_cast<int>(from.integer("channels"));
  tensors.pixels = from.integer("pixels");
  tensors.features = from.integer("features");
  tensors.x = give(call, "x", lane);
  tensors.x_hat = give(call, "x_hat", lane);
  tensors.f = give(call, "f", lane);
  tensors.f_hat = give(call, "f_hat", lane);
  tensors.logit = give(call, "logit", lane);
  auto* scores = reinterpret_cast<float*>(expect(call, "scores", lane));
  auto* map = from.find("map") ? reinterpret_cast<float*>(expect(call, "map", lane)) : nullptr;
  lane.score(spec, tensors, scores, map);
  return call;
}

Call start_smooth_map(const Case& from, Lane& lane) {
  Call call{&from, {}, {}};
  const auto axis = [&](const std::string& key) {
    const std::vector<double> of = from.numbers(key);  // the map's pixels, the region's, begin, end, sigma
    return SmoothAxis(static_cast<int>(of.at(0)), static_cast<int>(of.at(1)), of.at(2), of.at(3), of.at(4));
  };
  const SmoothMapPlan& plan = lane.plan(from.text("rows") + ";" + from.text("columns"),
                                        [&] { return SmoothMapPlan{axis("rows"), axis("columns")}; });
  const auto* map = reinterpret_cast<const float*>(give(call, "map", lane));
  auto* out = reinterpret_cast<float*>(expect(call, "expected", lane));
  lane.smooth_map(plan, static_cast<int>(from.integer("maps")), map, out);
  return call;
}

}  // namespace

Call start(const Case& from, Lane& lane) {
  if (from.op() == "prepare" || from.op() == "resize") return start_prepare(from, lane);
  if (from.op() == "score") return start_score(from, lane);
  if (from.op() == "smooth_map") return start_smooth_map(from, lane);
  throw std::runtime_error(from.name + ": no such operation");
}

}  // namespace kizu::tests
