// CUDA's declarations. The entry points that the runtime defines are visible outside of the shared library that it is
// linked into, so that tests can call them; whoever defines one includes this, and not CUDA's header, first.
#pragma once

#pragma GCC visibility push(default)
#include <cuda_runtime_api.h>
#pragma GCC visibility pop
