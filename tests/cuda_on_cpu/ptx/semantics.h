// Everything that translated PTX calls.
#pragma once

#include "error.h"
#include "execution.h"
#include "floats.h"
#include "integers.h"
#include "kernel_code.h"
#include "memory_access.h"

namespace ptx {

using cuda_on_cpu::BlockVote;
using cuda_on_cpu::WarpOperation;

}  // namespace ptx
