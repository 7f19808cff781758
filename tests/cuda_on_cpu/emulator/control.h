// What tests can ask of the emulator, also by ctypes from the shared library that it is linked into, where CUDA's entry
// points are visible, too. Any thread may call these at any time.
#pragma once

#pragma GCC visibility push(default)
extern "C" {

// The n-th call from now on, and with `sticky` every later one, returns `error`; (0, 0, 0) ends that. Entry points that
// return a cudaError_t count, from 1; cudaGetLastError, cudaPeekAtLastError and what host functions call do not. Such a
// call does nothing else. But cudaFree, cudaFreeHost, cuda*Destroy and cudaStreamEndCapture do their work first, as a
// call does that tells of an earlier failure; the graph of such an end of a capture is lost.
void cuda_on_cpu_fail_call(unsigned long long n, int error, int sticky);
// The entry point that failed first since then, "" if none has; until the next one is to fail.
const char* cuda_on_cpu_failed_call(void);

// Calls since the last reset, as they are counted above: of the entry point of that name, or of all for a null pointer.
// Every launch of a kernel is a call of cudaLaunchKernelExC.
unsigned long long cuda_on_cpu_calls(const char* name);
void cuda_on_cpu_reset_calls(void);

// How many there are now of: device_bytes, device_allocations, pinned_bytes, pinned_allocations, streams, events,
// graphs, graph_execs. -1 for any other name.
long long cuda_on_cpu_live(const char* what);

// Whether the calling thread is inside an entry point. Host functions and kernels are the program's: outside.
int cuda_on_cpu_inside(void);

}  // extern "C"
#pragma GCC visibility pop
