// How a launch reaches the runtime. Here it is still known which arguments are pointers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

namespace cuda_on_cpu {

struct Kernel {
  const void* function = nullptr;  // what cudaFuncSetAttribute calls it
  std::size_t static_shared_bytes = 0;
  unsigned max_threads = 1024;  // of a block; __launch_bounds__ where it is known
};

// Validates the configuration and puts the grid on its stream. `thread` is one thread's share.
cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const Kernel& kernel, std::function<void()> thread);

// Ends the process unless a kernel may dereference the pointer. `position` counts from 0.
void check_kernel_pointer(int position, const void* pointer);

template <typename T>
void check_argument(int position, const T& value) {
  if constexpr (std::is_pointer_v<T>) check_kernel_pointer(position, static_cast<const void*>(value));
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "the kernel takes another number of arguments");
  const std::tuple<std::decay_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  int position = 0;
  std::apply([&](const auto&... value) { (check_argument(position++, value), ...); }, values);
  return launch_kernel(*config, {.function = reinterpret_cast<const void*>(kernel)},
                       [kernel, values] { std::apply(kernel, values); });
}

// cudaLaunchKernelExC: each element of `arguments` points to one argument.
template <typename... Parameters>
cudaError_t launch_from_array(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), void** arguments) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return launch(config, kernel, *static_cast<std::decay_t<Parameters>*>(arguments[I])...);
  }(std::index_sequence_for<Parameters...>{});
}

}  // namespace cuda_on_cpu
