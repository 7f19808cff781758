// Marks a function that both the host and CUDA devices compute.
#pragma once

#if defined(__CUDACC__)
#define KIZU_HOST_DEVICE __host__ __device__
#else
#define KIZU_HOST_DEVICE
#endif
