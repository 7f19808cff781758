// A pointer, a shape and strides; owns nothing.
#pragma once

#include <array>
#include <cstddef>

namespace kizu {

template <typename T, int Rank>
struct TensorView {
  T* data = nullptr;
  std::array<std::ptrdiff_t, Rank> shape{};
  std::array<std::ptrdiff_t, Rank> strides{};  // in elements, may be negative or zero
};

}  // namespace kizu
