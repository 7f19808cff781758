// The translated kernels of the program.
#pragma once

#include <string>

#include "kernel_code.h"

namespace ptx {

// nullptr if none of that mangled name was translated.
const KernelCode* find_kernel(const std::string& mangled_name);

// The kernel that is running, or ran last.
const KernelCode* running_kernel();
void set_running_kernel(const KernelCode& code);

}  // namespace ptx
