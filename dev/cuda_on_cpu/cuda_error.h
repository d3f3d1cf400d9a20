// The one error path for calls of the CUDA runtime, with nvcc and in emulation.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "runtime.h"
#endif

#include <string>

#include "../../data/error.h"

namespace lnfree::cuda {

// Whether a kernel went wrong while it ran. Such an error stays: the device's memory is lost to this process, and from then
// on every call returns it, whatever it was asked for.
inline bool was_left_by_a_kernel(cudaError_t error) {
    switch (error) {
        case cudaErrorECCUncorrectable:
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorLaunchFailure:
            return true;
        default:
            return false;
    }
}

// For an error that is to be told; `doing` is what was tried.
[[noreturn]] inline void fail_cuda(cudaError_t error, const std::string& doing) {
    // The runtime keeps the error of a call that it refused for whoever asks next: some library, which would then take it
    // for its own.
    static_cast<void>(cudaGetLastError());
    const std::string what = cudaGetErrorString(error);
    if (was_left_by_a_kernel(error))
        throw RunFailure("a kernel failed before this was noticed (" + doing + "): " + what +
                         "; CUDA_LAUNCH_BLOCKING=1 in the environment finds out which one");
    throw RunFailure(doing + ": " + what);
}

// Throws RunFailure for whatever the runtime refuses.
inline void require_cuda(cudaError_t error, const char* doing) {
    if (error != cudaSuccess) fail_cuda(error, doing);
}

}  // namespace lnfree::cuda
