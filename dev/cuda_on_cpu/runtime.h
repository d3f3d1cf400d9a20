// Emulation: the part of the CUDA runtime API that the engine uses. The device is this processor and its memory is this
// process's, so everything is done when the call returns, and streams and events have nothing to do (but for a stream beside the
// others, CUstream_st).
//
// cudaMalloc gives exactly the bytes that were asked for, all 0xFF: as floats they are NaN, so what was never written shows
// in every sum, and AddressSanitizer sees the first byte that is touched beyond the end.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "../../data/error.h"
#include "capture.h"
#include "launch_log.h"
#include "types.h"

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorECCUncorrectable = 214,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorIllegalState = 401,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchTimeout = 702,
    cudaErrorAssert = 710,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidAddressSpace = 717,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDefault = 0, cudaEventDisableTiming = 2;
constexpr unsigned cudaHostAllocDefault = 0;

// Work is done when it is given; on a stream made with cudaStreamNonBlocking, for what goes on beside the rest (NCCL's
// calls alone: nccl.h), as late as events and synchronisation allow, or at once (streams_are_late): what does not wait for it
// finds it undone, and what is given too soon does not find what it needs.
struct CUstream_st {
    bool is_late = false;
    std::vector<std::function<void()>> undone;
    int64_t waits_for = 0;  // this much of all work is done before what comes next
};
struct CUevent_st {
    std::chrono::steady_clock::time_point time;
    bool is_recorded = false;
    CUstream_st* late = nullptr;  // on which it was recorded
    int64_t work = 0;             // that had been given by then
};
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    size_t sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int regsPerBlock, warpSize, maxThreadsPerBlock, maxThreadsPerMultiProcessor;
    int maxThreadsDim[3], maxGridSize[3];
    int major, minor, multiProcessorCount, l2CacheSize;
};

namespace lnfree::cuda::emulation {

// Of this operating-system thread, as in CUDA.
inline cudaError_t& last_error() {
    static thread_local cudaError_t error = cudaSuccess;
    return error;
}
inline cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) last_error() = error;
    return error;
}

// What waits for a stream, or hands out memory, cannot be part of a capture.
inline cudaError_t unless_capturing() {
    return result(recording() == nullptr ? cudaSuccess : cudaErrorStreamCaptureUnsupported);
}

inline void catch_up(CUstream_st& stream) {
    std::vector<std::function<void()>> undone;
    undone.swap(stream.undone);
    for (const auto& work : undone) work();
}

// False: as early as it can be, which shows what is given too soon.
inline bool& streams_are_late() {
    static bool late = true;
    return late;
}

// For what may run beside other streams' work: it must wait for all that they were given before it. RunFailure if not.
inline void do_late(cudaStream_t stream, std::function<void()> work) {
    if (stream == nullptr || !stream->is_late) return work();
    if (stream->waits_for != work_given())
        throw RunFailure(
            "emulation: a stream of its own is given work that does not wait for what was given before it");
    if (!streams_are_late()) return work();
    stream->undone.push_back(std::move(work));
}

inline size_t physical_memory() {
    return static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

// All that has been given so far, whether it has been freed or not: a difference is what a piece of work asked for.
inline std::atomic<int64_t>& allocated_bytes() {
    static std::atomic<int64_t> bytes{0};
    return bytes;
}

// 256 bytes is the alignment of the real cudaMalloc. Linux would promise more memory than there is, and filling it would
// then end the process.
inline cudaError_t allocate(void** p, size_t bytes) {
    if (p == nullptr) return result(cudaErrorInvalidValue);
    *p = nullptr;
    if (const cudaError_t error = unless_capturing(); error != cudaSuccess) return error;
    if (bytes == 0) return cudaSuccess;
    if (bytes > physical_memory() || ::posix_memalign(p, 256, bytes) != 0) {
        *p = nullptr;
        return result(cudaErrorMemoryAllocation);
    }
    std::memset(*p, 0xff, bytes);
    allocated_bytes() += static_cast<int64_t>(bytes);
    return cudaSuccess;
}

}  // namespace lnfree::cuda::emulation

// ---- memory ----------------------------------------------------------------------------------------------------------

template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
    void* memory = nullptr;
    const cudaError_t error = lnfree::cuda::emulation::allocate(p == nullptr ? nullptr : &memory, bytes);
    if (p != nullptr) *p = static_cast<T*>(memory);
    return error;
}
template <class T>
cudaError_t cudaMallocHost(T** p, size_t bytes, unsigned = 0) {
    return cudaMalloc(p, bytes);
}
template <class T>
cudaError_t cudaHostAlloc(T** p, size_t bytes, unsigned) {
    return cudaMalloc(p, bytes);
}
template <class T>
cudaError_t cudaMallocAsync(T** p, size_t bytes, cudaStream_t) {
    return cudaMalloc(p, bytes);
}
inline cudaError_t cudaFree(void* p) {
    std::free(p);
    return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* p) {
    return cudaFree(p);
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t) {
    return cudaFree(p);
}

inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    if (bytes == 0) return cudaSuccess;
    if (to == nullptr || from == nullptr) return lnfree::cuda::emulation::result(cudaErrorInvalidValue);
    if (const cudaError_t error = lnfree::cuda::emulation::unless_capturing(); error != cudaSuccess) return error;
    std::memmove(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
    if (bytes == 0) return cudaSuccess;
    if (to == nullptr || from == nullptr) return lnfree::cuda::emulation::result(cudaErrorInvalidValue);
    lnfree::cuda::emulation::do_or_record([=] {
        lnfree::cuda::emulation::note_done(kind == cudaMemcpyHostToDevice   ? "copy to device"
                                           : kind == cudaMemcpyDeviceToHost ? "copy from device"
                                                                            : "copy");
        std::memmove(to, from, bytes);
    });
    return cudaSuccess;
}
inline cudaError_t cudaMemset(void* p, int value, size_t bytes) {
    if (bytes == 0) return cudaSuccess;
    if (p == nullptr) return lnfree::cuda::emulation::result(cudaErrorInvalidValue);
    if (const cudaError_t error = lnfree::cuda::emulation::unless_capturing(); error != cudaSuccess) return error;
    std::memset(p, value, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t = nullptr) {
    if (bytes == 0) return cudaSuccess;
    if (p == nullptr) return lnfree::cuda::emulation::result(cudaErrorInvalidValue);
    lnfree::cuda::emulation::do_or_record([=] {
        lnfree::cuda::emulation::note_done("memset");
        std::memset(p, value, bytes);
    });
    return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    *total = lnfree::cuda::emulation::physical_memory();
    *free = static_cast<size_t>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    return cudaSuccess;
}

// ---- streams and events ----------------------------------------------------------------------------------------------

inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = new CUstream_st;
    return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    *stream = new CUstream_st;
    (*stream)->is_late = flags == cudaStreamNonBlocking;
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (stream != nullptr) lnfree::cuda::emulation::catch_up(*stream);
    return lnfree::cuda::emulation::unless_capturing();
}
inline cudaError_t cudaStreamQuery(cudaStream_t) {
    return cudaSuccess;
}

inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
    *event = new CUevent_st;
    return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return cudaEventCreate(event);
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
    event->time = std::chrono::steady_clock::now();
    event->is_recorded = true;
    event->late = stream != nullptr && stream->is_late ? stream : nullptr;
    event->work = lnfree::cuda::emulation::work_given();
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (event->late != nullptr) lnfree::cuda::emulation::catch_up(*event->late);
    return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t) {
    return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
    if (event->late != nullptr && event->late != stream) lnfree::cuda::emulation::catch_up(*event->late);
    if (stream != nullptr) stream->waits_for = event->work;
    return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    if (!begin->is_recorded || !end->is_recorded)
        return lnfree::cuda::emulation::result(cudaErrorInvalidResourceHandle);
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return cudaSuccess;
}

// ---- graphs ----------------------------------------------------------------------------------------------------------

inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    auto& recording = lnfree::cuda::emulation::recording();
    if (recording != nullptr) return lnfree::cuda::emulation::result(cudaErrorIllegalState);
    recording = std::make_unique<lnfree::cuda::emulation::Recording>();
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    auto& recording = lnfree::cuda::emulation::recording();
    if (recording == nullptr) return lnfree::cuda::emulation::result(cudaErrorIllegalState);
    *graph = new CUgraph_st{std::move(*recording)};
    recording = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long = 0) {
    *executable = new CUgraphExec_st{{graph->work}};
    return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
    for (const auto& work : executable->work) lnfree::cuda::emulation::do_or_record(work);
    return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete executable;
    return cudaSuccess;
}

// ---- the device ------------------------------------------------------------------------------------------------------

inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    return lnfree::cuda::emulation::result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
inline cudaError_t cudaDeviceSynchronize() {
    return lnfree::cuda::emulation::unless_capturing();
}

// The limits of an H200, but only a few multiprocessors: kernels that size their grid by them then loop over their data
// in tests too.
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device != 0) return lnfree::cuda::emulation::result(cudaErrorInvalidDevice);
    *properties = cudaDeviceProp();
    std::snprintf(properties->name, sizeof(properties->name), "this processor (CUDA emulated)");
    properties->totalGlobalMem = lnfree::cuda::emulation::physical_memory();
    properties->sharedMemPerBlock = 48 * 1024;
    properties->sharedMemPerBlockOptin = 227 * 1024;
    properties->sharedMemPerMultiprocessor = 228 * 1024;
    properties->regsPerBlock = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    const int block[3] = {1024, 1024, 64}, grid[3] = {2147483647, 65535, 65535};
    std::memcpy(properties->maxThreadsDim, block, sizeof(block));
    std::memcpy(properties->maxGridSize, grid, sizeof(grid));
    properties->major = 9;
    properties->minor = 0;
    properties->multiProcessorCount = 3;
    properties->l2CacheSize = 50 << 20;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp properties;
    const cudaError_t error = cudaGetDeviceProperties(&properties, device);
    if (error != cudaSuccess) return error;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
            *value = properties.maxThreadsPerBlock;
            return cudaSuccess;
        case cudaDevAttrMultiProcessorCount:
            *value = properties.multiProcessorCount;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor:
            *value = properties.major;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            *value = properties.minor;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = static_cast<int>(properties.sharedMemPerBlockOptin);
            return cudaSuccess;
    }
    return lnfree::cuda::emulation::result(cudaErrorInvalidValue);
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
    return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
    *blocks = 2;
    return cudaSuccess;
}

// ---- errors ----------------------------------------------------------------------------------------------------------

inline cudaError_t cudaPeekAtLastError() {
    return lnfree::cuda::emulation::last_error();
}
inline cudaError_t cudaGetLastError() {
    const cudaError_t error = lnfree::cuda::emulation::last_error();
    lnfree::cuda::emulation::last_error() = cudaSuccess;
    return error;
}
inline const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation:
            return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration:
            return "cudaErrorInvalidConfiguration";
        case cudaErrorIllegalState:
            return "cudaErrorIllegalState";
        case cudaErrorStreamCaptureUnsupported:
            return "cudaErrorStreamCaptureUnsupported";
        case cudaErrorNoDevice:
            return "cudaErrorNoDevice";
        case cudaErrorInvalidDevice:
            return "cudaErrorInvalidDevice";
        case cudaErrorInvalidResourceHandle:
            return "cudaErrorInvalidResourceHandle";
        case cudaErrorNotReady:
            return "cudaErrorNotReady";
        case cudaErrorIllegalAddress:
            return "cudaErrorIllegalAddress";
        case cudaErrorLaunchFailure:
            return "cudaErrorLaunchFailure";
        default:
            return "an error that only a GPU has";
    }
}
inline const char* cudaGetErrorString(cudaError_t error) {
    return cudaGetErrorName(error);
}
