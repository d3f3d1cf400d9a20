// For nvcc: launches with one error path, shared memory beyond 48 KiB and programmatic dependent launch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>

#include "cuda_error.h"

namespace lnfree::cuda {

namespace device {

// More than a launch may use without asking; an H200 block has up to 227 KiB.
constexpr size_t shared_bytes_without_asking = 48 * 1024;

inline std::string text_of(dim3 v) {
    return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

// Whether a launch waits for its kernel, so that what it returns is about that one (CUDA_LAUNCH_BLOCKING=1).
inline bool launches_wait() {
    static const bool answer = [] {
        const char* const wish = std::getenv("CUDA_LAUNCH_BLOCKING");
        return wish != nullptr && std::string(wish) == "1";
    }();
    return answer;
}

// A launch that was refused, or by which the failure of an earlier kernel was noticed.
[[noreturn]] inline void fail_launch(cudaError_t error, const std::string& name) {
    if (was_left_by_a_kernel(error) && launches_wait()) throw RunFailure(name + ": " + cudaGetErrorString(error));
    fail_cuda(error, name);
}

// Whether this kernel was compiled for an architecture with griddepcontrol. The device alone does not decide: code for
// sm_80 runs on an H200 too, and there wait_for_previous_kernel() is empty, so a kernel allowed to begin early would read
// what is not there yet. Asked once per kernel and device, because asking costs as much as a launch.
inline bool can_begin_early(const void* kernel) {
    static thread_local std::map<std::pair<int, const void*>, bool> answers;
    int device = 0;
    require_cuda(cudaGetDevice(&device), "cudaGetDevice");
    const auto known = answers.find({device, kernel});
    if (known != answers.end()) return known->second;
    cudaFuncAttributes attributes = {};
    require_cuda(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
    return answers[{device, kernel}] = attributes.ptxVersion >= 90;
}

template <class... P, class... A>
void launch_with(bool is_dependent, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                 cudaStream_t stream, A&&... args) {
    const void* const address = reinterpret_cast<const void*>(kernel);
    const auto doing = [&] {
        const char* name = nullptr;
#if CUDART_VERSION >= 12030
        cudaFuncGetName(&name, address);
#endif
        if (name == nullptr) name = "of unknown name";
        return std::string("kernel ") + name + " <<<" + text_of(grid) + ", " + text_of(block) + ", " +
               std::to_string(shared_bytes) + ">>>";
    };
    if (shared_bytes > shared_bytes_without_asking) {
        const cudaError_t error =
            cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (error != cudaSuccess) fail_launch(error, doing());
    }
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = is_dependent && can_begin_early(address) ? 1 : 0;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
    if (error != cudaSuccess) fail_launch(error, doing());
}

}  // namespace device

// Runs `kernel` on grid.x * grid.y * grid.z blocks of block.x * block.y * block.z threads with `shared_bytes` of dynamic
// shared memory each, after what was given to `stream` before. Throws RunFailure where the launch is refused, or where an
// earlier kernel is found to have failed.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, A&&... args) {
    device::launch_with(false, kernel, grid, block, shared_bytes, stream, std::forward<A>(args)...);
}

// The same for kernels that may begin before the stream's previous kernel has ended (programmatic dependent launch, from
// compute capability 9.0 on). They call wait_for_previous_kernel() before they first touch global memory.
template <class... P, class... A>
void launch_dependent(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                      A&&... args) {
    device::launch_with(true, kernel, grid, block, shared_bytes, stream, std::forward<A>(args)...);
}

}  // namespace lnfree::cuda
