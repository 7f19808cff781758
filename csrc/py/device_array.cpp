#include "py/device_array.h"

#ifdef KIZU_HAS_CUDA

#include <cstdint>
#include <string>

#include "core/check.h"

namespace py = pybind11;

namespace kizu {
namespace {

// DLPack's structures, as its specification lays them out for capsules called "dltensor".
struct DLTensor {
  void* data;
  struct {
    std::int32_t type, id;
  } device;
  std::int32_t rank;
  struct {
    std::uint8_t code, bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t *shape, *strides;  // in elements; no strides: C-contiguous
  std::uint64_t byte_offset;
};

constexpr int kDLCuda = 2, kDLCudaManaged = 13;
constexpr int kDLUnsigned = 1;
constexpr std::uintptr_t kLegacyStream = 1;  // as the array interface names the default stream

void check_rank(std::ptrdiff_t rank) { check(rank >= 1 && rank <= 4, "the frame has ", rank, " axes"); }

const ArrayView& with_pixels(const ArrayView& view) {
  for (int i = 0; i < view.rank; ++i)
    check(view.shape[i] > 0, "the frame has no pixels: a side of it is ", view.shape[i]);
  return view;
}

ArrayView view_of(const DLTensor& tensor) {
  check_rank(tensor.rank);
  ArrayView view;
  view.data = static_cast<const std::uint8_t*>(tensor.data) + tensor.byte_offset;
  view.kind = tensor.dtype.code == kDLUnsigned && tensor.dtype.lanes == 1 ? 'u' : '?';
  view.item = tensor.dtype.bits / 8;
  view.rank = tensor.rank;
  std::ptrdiff_t dense = view.item;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = tensor.shape[i];
    view.strides[i] = tensor.strides ? tensor.strides[i] * view.item : dense;
    dense *= tensor.shape[i];
  }
  return with_pixels(view);
}

ArrayView view_of(const py::dict& interface) {
  const auto shape = interface["shape"].cast<py::tuple>();
  check_rank(static_cast<std::ptrdiff_t>(shape.size()));
  const auto type = interface["typestr"].cast<std::string>();  // such as "|u1"
  ArrayView view;
  view.data = reinterpret_cast<const void*>(interface["data"].cast<py::tuple>()[0].cast<std::uintptr_t>());
  view.kind = type.size() == 3 ? type[1] : '?';
  view.item = type.size() == 3 ? type[2] - '0' : 0;
  view.native = type[0] == '|' || type[0] == '<';  // CUDA's hosts are little-endian
  view.rank = static_cast<int>(shape.size());
  const py::object strides = interface.contains("strides") ? py::object(interface["strides"]) : py::none();
  std::ptrdiff_t dense = view.item;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = shape[i].cast<std::ptrdiff_t>();
    view.strides[i] = strides.is_none() ? dense : strides.cast<py::tuple>()[i].cast<std::ptrdiff_t>();
    dense *= view.shape[i];
  }
  return with_pixels(view);
}

}  // namespace

std::optional<DeviceArrayView> device_array(const py::object& object, const cuda::Stream& stream,
                                            const cuda::Event& event, int device) try {
  const auto check_device = [device](int found) {
    check(found < 0 || found == device, "the frame lies on CUDA device ", found,
          ", but the detector computes on device ", device);
  };
  if (py::hasattr(object, "__dlpack_device__")) {
    const auto [type, id] = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    if (type == kDLCuda || type == kDLCudaManaged) {
      if (type == kDLCuda) check_device(id);
      const auto handle = reinterpret_cast<std::uintptr_t>(stream.get());
      // Not marked as used: the capsule itself lets go of the array when it is dropped.
      const auto capsule = object.attr("__dlpack__")(py::arg("stream") = handle).cast<py::capsule>();
      check(std::string(capsule.name()) == "dltensor", "the frame's __dlpack__ gives a capsule called '",
            capsule.name(), "', but must give a 'dltensor'");
      return DeviceArrayView{view_of(*capsule.get_pointer<DLTensor>()), capsule};
    }
  }
  if (py::hasattr(object, "__cuda_array_interface__")) {
    const auto interface = object.attr("__cuda_array_interface__").cast<py::dict>();
    DeviceArrayView array{view_of(interface), object};
    const auto [data, found] = cuda::device_pointer(array.view.data);
    check(data != nullptr, "the frame's __cuda_array_interface__ names an address that is not in device memory");
    check_device(found);
    array.view.data = data;
    // Before version 3 streams are not spoken of: the default one is what producers use.
    const bool spoken = interface["version"].cast<int>() >= 3;
    std::optional<std::uintptr_t> producer;
    if (!spoken) producer = kLegacyStream;
    if (spoken && interface.contains("stream") && !interface["stream"].is_none())
      producer = interface["stream"].cast<std::uintptr_t>();
    if (producer) {
      event.record(reinterpret_cast<CUstream_st*>(*producer));
      event.hold(stream);
    }
    return array;
  }
  return std::nullopt;
} catch (const py::error_already_set& error) {
  check(false, "the frame's array interface failed: ", error.what());
  return std::nullopt;
} catch (const py::cast_error& error) {
  check(false, "the frame's array interface is not understood: ", error.what());
  return std::nullopt;
}

}  // namespace kizu

#endif
