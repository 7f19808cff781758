// How a launch reaches the runtime. Here it is still known which arguments are pointers.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "kernel_call.h"
#include "runtime.h"

namespace cuda_on_cpu {

// Validates the configuration and puts the grid on its stream.
cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const Kernel& kernel,
                          std::shared_ptr<const KernelCall> call);

// Ends the process unless a kernel may dereference the pointer. `position` counts from 0.
void check_kernel_pointer(int position, const void* pointer);

template <typename T>
void check_argument(int position, const T& value) {
  if constexpr (std::is_pointer_v<T>) check_kernel_pointer(position, static_cast<const void*>(value));
}

template <typename... Parameters>
class TypedCall final : public KernelCall {
 public:
  using Values = std::tuple<std::decay_t<Parameters>...>;

  TypedCall(void (*kernel)(Parameters...), Values values) : kernel_(kernel), values_(std::move(values)) {}

  void run_thread() const override { std::apply(kernel_, values_); }

  void check_pointers() const override {
    int position = 0;
    std::apply([&](const auto&... value) { (check_argument(position++, value), ...); }, values_);
  }

  std::vector<void*> arguments() const override {
    const auto address = [](const auto& value) { return const_cast<void*>(static_cast<const void*>(&value)); };
    return std::apply([&](const auto&... value) { return std::vector<void*>{address(value)...}; }, values_);
  }

  std::shared_ptr<const KernelCall> with_arguments([[maybe_unused]] void** arguments) const override {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return std::make_shared<TypedCall>(kernel_, Values(*static_cast<std::decay_t<Parameters>*>(arguments[I])...));
    }(std::index_sequence_for<Parameters...>{});
  }

 private:
  void (*kernel_)(Parameters...);
  Values values_;
};

template <typename... Parameters, typename... Arguments>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "the kernel takes another number of arguments");
  using Call = TypedCall<Parameters...>;
  const Inside inside;
  return launch_kernel(
      *config, {.function = reinterpret_cast<const void*>(kernel)},
      std::make_shared<const Call>(kernel, typename Call::Values(std::forward<Arguments>(arguments)...)));
}

// cudaLaunchKernelExC: each element of `arguments` points to one argument.
template <typename... Parameters>
cudaError_t launch_from_array(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), void** arguments) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return launch(config, kernel, *static_cast<std::decay_t<Parameters>*>(arguments[I])...);
  }(std::index_sequence_for<Parameters...>{});
}

}  // namespace cuda_on_cpu
