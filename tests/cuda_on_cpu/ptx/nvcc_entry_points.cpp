// What the host code that nvcc generates calls: registration of kernels, and launches by their addresses.

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cudart_api.h"
#include "error.h"
#include "launch.h"
#include "registry.h"

namespace ptx {

namespace {

// Mangled names by the addresses of nvcc's host stubs. Registration happens before main, in no certain order, so the
// translated kernels are looked up when they are launched.
std::map<const void*, std::string>& stubs() {
  static auto& result = *new std::map<const void*, std::string>;
  return result;
}

// Of a launch by <<< >>>, between its two halves.
thread_local cudaLaunchConfig_t pushed = {};

const KernelCode* kernel_of(const void* stub) {
  const auto found = stubs().find(stub);
  return found == stubs().end() ? nullptr : find_kernel(found->second);
}

// Parameters side by side, as the kernel reads them.
class TranslatedCall final : public cuda_on_cpu::KernelCall {
 public:
  TranslatedCall(const KernelCode& code, void** arguments) : code_(code), parameters_(code.parameter_bytes) {
    for (std::size_t i = 0; i < code.parameters.size(); ++i)
      std::memcpy(parameters_.data() + code.parameters[i].offset, arguments[i], code.parameters[i].size);
  }

  void run_thread() const override {
    set_running_kernel(code_);
    code_.run(parameters_.data());
  }

  void check_pointers() const override {
    for (const std::size_t offset : code_.pointers) {
      const void* pointer = nullptr;
      std::memcpy(&pointer, parameters_.data() + offset, sizeof pointer);
      int position = 0;
      while (end_of(code_.parameters[static_cast<std::size_t>(position)]) <= offset) ++position;
      cuda_on_cpu::check_kernel_pointer(position, pointer);
    }
  }

  std::vector<void*> arguments() const override {
    std::vector<void*> result;
    for (const ParameterPlace& place : code_.parameters)
      result.push_back(const_cast<char*>(parameters_.data() + place.offset));
    return result;
  }

  std::shared_ptr<const KernelCall> with_arguments(void** arguments) const override {
    return std::make_shared<const TranslatedCall>(code_, arguments);
  }

 private:
  static std::size_t end_of(const ParameterPlace& place) { return place.offset + place.size; }

  const KernelCode& code_;
  std::vector<char> parameters_;
};

}  // namespace

}  // namespace ptx

using namespace ptx;  // NOLINT: everything below is C

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void**, const char* stub, char*, const char* mangled_name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  stubs()[stub] = mangled_name;
}

// Host code cannot name module variables here (no cudaMemcpyToSymbol), so there is nothing to remember.
void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared_bytes, CUstream_st* stream) {
  pushed = {};
  pushed.gridDim = grid;
  pushed.blockDim = block;
  pushed.dynamicSmemBytes = shared_bytes;
  pushed.stream = stream;
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared_bytes, void* stream) {
  *grid = pushed.gridDim;
  *block = pushed.blockDim;
  *shared_bytes = pushed.dynamicSmemBytes;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void** arguments) {
  const KernelCode* code = kernel_of(stub);
  if (!code) cuda_on_cpu::fail("launch of a kernel whose PTX was not translated");
  const cuda_on_cpu::Inside inside;
  const cuda_on_cpu::Kernel kernel = {stub, code->static_shared_bytes, code->max_threads};
  return cuda_on_cpu::launch_kernel(*config, kernel, std::make_shared<const TranslatedCall>(*code, arguments));
}

cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments, std::size_t shared_bytes,
                             cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelExC(&config, stub, arguments);
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared_bytes,
                               cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}

}  // extern "C"
