// Turns the segmentation faults that misuse of device memory causes into messages.
#pragma once

namespace cuda_on_cpu {

// Installs the handler, once. Faults that have nothing to do with device memory go to the handler before.
void catch_faults();
// Lets the handler run on the calling operating-system thread even if a CUDA thread's stack has overflowed.
void prepare_fault_stack();

}  // namespace cuda_on_cpu
