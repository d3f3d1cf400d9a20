// NCCL in emulation: the few calls that dev/cuda/collectives.h makes, carried out at once by the run's own processes
// (dev/processes.h), on memory that is the host's anyway. Sums are taken in the order of the processes. On a stream of their
// own they are carried out as late as that allows (runtime.h).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../processes.h"
#include "cuda.h"

typedef int ncclResult_t;
typedef int ncclDataType_t;
typedef int ncclRedOp_t;
typedef void* ncclComm_t;
struct ncclUniqueId {
    char internal[128];
};
constexpr ncclResult_t ncclSuccess = 0, ncclSystemError = 2, ncclInProgress = 7;
constexpr ncclDataType_t ncclUint8 = 1, ncclFloat = 7;
constexpr ncclRedOp_t ncclSum = 0;

inline const char* ncclGetErrorString(ncclResult_t error) {
    return error == ncclSuccess ? "no error" : "an emulated error";
}
// What a test lets the connections between GPUs come to.
inline std::atomic<ncclResult_t>& ncclEmulatedAsyncError() {
    static std::atomic<ncclResult_t> error{ncclSuccess};
    return error;
}
inline ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
    *error = ncclEmulatedAsyncError();
    return ncclSuccess;
}
inline ncclResult_t ncclGetUniqueId(ncclUniqueId*) {
    return ncclSuccess;
}
inline ncclResult_t ncclCommInitRank(ncclComm_t*, int, ncclUniqueId, int) {
    return ncclSuccess;
}
inline ncclResult_t ncclGroupStart() {
    return ncclSuccess;
}
inline ncclResult_t ncclGroupEnd() {
    return ncclSuccess;
}

namespace lnfree::cuda::emulation {

inline void reduce(const void* from, void* to, size_t count, int root) {
    const auto n = static_cast<int64_t>(count);
    const auto size = static_cast<size_t>(processes().size());
    std::vector<lnfree::Range> pieces(size);
    pieces[static_cast<size_t>(root)] = {0, n};
    std::vector<float> received(size * count);
    std::vector<float*> places;
    for (size_t r = 0; r < size; r++) places.push_back(received.data() + r * count);
    processes().exchange(static_cast<const float*>(from), pieces, std::vector<bool>(size, true), places);
    if (processes().rank() != root) return;
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        for (size_t r = 0; r < size; r++) sum += places[r][i];
        static_cast<float*>(to)[i] = sum;
    }
}

}  // namespace lnfree::cuda::emulation

inline ncclResult_t ncclReduce(const void* from, void* to, size_t count, ncclDataType_t, ncclRedOp_t, int root,
                               ncclComm_t, cudaStream_t stream) {
    lnfree::cuda::emulation::do_late(stream, [=] { lnfree::cuda::emulation::reduce(from, to, count, root); });
    return ncclSuccess;
}

// In place, as all of our calls are. Type ncclUint8.
inline ncclResult_t ncclBroadcast(const void*, void* data, size_t count, ncclDataType_t, int root, ncclComm_t,
                                  cudaStream_t stream) {
    lnfree::cuda::emulation::do_late(stream, [=] {
        std::vector<int64_t> counts(static_cast<size_t>(lnfree::processes().size()));
        counts[static_cast<size_t>(root)] = static_cast<int64_t>(count);
        lnfree::processes().all_gather(data, 1, counts);
    });
    return ncclSuccess;
}
