// The one header that every CUDA source of this project includes first. It makes the same kernel source compile twice:
//
//   with nvcc      for the GPU: the toolkit's headers and thin wrappers around the instructions that C++ has no words for
//   with g++       for this processor: an emulation of the CUDA execution model that runs every kernel, slowly, and
//                  looks for the mistakes that a GPU passes over in silence (README.md says which)
//
// Both give CUDA's own names and, in namespace lnfree::cuda, the few things that differ between the two:
//
//   bf16, to_float, from_float, from_float_stochastic     bf16.h
//   Vec, load_vec, store_vec, ..._streaming               vec.h
//   SharedMemory, Shared, shared_bytes_of, copy_async_... emulation: shared_memory.h    nvcc: device.h
//   mma_m16n8k16, ldmatrix_...                            emulation: tensor_cores.h     nvcc: device.h
//   launch, launch_dependent, wait_for_previous_kernel    emulation: launch.h           nvcc: device_launch.h
//   require_cuda                                          cuda_error.h
#pragma once

#ifdef __CUDACC__
#include "bf16.h"
#include "cuda_error.h"
#include "device.h"
#include "device_launch.h"
#include "vec.h"
#else
#include "atomics.h"
#include "bf16.h"
#include "cuda_error.h"
#include "launch.h"
#include "math.h"
#include "runtime.h"
#include "shared_memory.h"
#include "tensor_cores.h"
#include "types.h"
#include "vec.h"
#include "warp.h"
#endif

namespace lnfree::cuda {

#ifdef __CUDACC__
constexpr bool kEmulated = false;
#else
constexpr bool kEmulated = true;
#endif

}  // namespace lnfree::cuda
