// Arrays of other libraries that lie in a CUDA device's memory.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "core/cuda.h"
#include "py/frame_list.h"

namespace kizu {

// A view of a device array, and what keeps its memory alive.
struct DeviceArrayView {
  ArrayView view;
  pybind11::object owner;
};

// The view of an object that has __dlpack__ on a CUDA device, or __cuda_array_interface__; nothing for others. What
// runs on the stream from now on waits until the array's producer has written it: DLPack's producer sees to it, the
// array interface names a stream to wait for. Throws std::invalid_argument for an array of another device than
// `device`.
std::optional<DeviceArrayView> device_array(const pybind11::object& object, const cuda::Stream& stream,
                                            const cuda::Event& event, int device);

}  // namespace kizu
