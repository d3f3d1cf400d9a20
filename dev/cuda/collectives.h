// What several GPUs that train one model do together, a process each: NCCL's reductions and broadcasts of the parts of a flat
// buffer (dev/processes.h). In emulation NCCL is emulated too (dev/cuda_on_cpu/nccl.h). What is small goes from host to host,
// over MPI or sockets.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "../../data/error.h"
#include "../cuda_on_cpu/cuda.h"
#include "../engine.h"
#include "../processes.h"

#if !defined(__CUDACC__)
#include "../cuda_on_cpu/nccl.h"
#define LNFREE_HAS_NCCL true
#elif defined(LNFREE_NCCL)
#include <nccl.h>
#define LNFREE_HAS_NCCL true
#else
#define LNFREE_HAS_NCCL false
#endif

namespace lnfree::cuda {

// Whether this program was built with it.
constexpr bool kHasNccl = LNFREE_HAS_NCCL;

#if LNFREE_HAS_NCCL

inline void require_nccl(ncclResult_t result, const char* what) {
    if (result == ncclSuccess) return;
    throw RunFailure(std::string(what) + " failed: NCCL says " + ncclGetErrorString(result) +
                     " (NCCL_DEBUG=INFO says more)");
}

class Collectives {
  public:
    // Those of this run's processes, joined at the first call: all of them must make it.
    static Collectives& of_this_run() {
        static Collectives all;
        return all;
    }

    // Of a range of flat (n), what lies in this process's part becomes the sum over all processes; the rest keeps what it had.
    void sum_parts(float* flat, int64_t n, Range range, cudaStream_t stream) {
        for_each_part(n, range, [&](int r, Range part) {
            float* const p = flat + part.first;
            return ncclReduce(p, p, static_cast<size_t>(part.size()), ncclFloat, ncclSum, r, all_, stream);
        });
    }
    // Every process's part of flat (n) becomes everyone's.
    template <class X>
    void share_parts(X* flat, int64_t n, cudaStream_t stream) {
        for_each_part(n, {0, n}, [&](int r, Range part) {
            X* const p = flat + part.first;
            return ncclBroadcast(p, p, static_cast<size_t>(part.size()) * sizeof(X), ncclUint8, r, all_, stream);
        });
    }

  private:
    Collectives() {
        ncclUniqueId id{};
        if (processes().leads()) require_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
        processes().broadcast(&id, sizeof id);
        require_nccl(ncclCommInitRank(&all_, processes().size(), id, processes().rank()), "ncclCommInitRank");
        std::thread([all = all_] { watch(all); }).detach();
    }

    // A GPU whose connection to another breaks would wait for ever, and the main thread with it: NCCL notes it, and whoever uses
    // it must look (user guide, "Asynchronous errors and error handling").
    static void watch(ncclComm_t all) {
        for (ncclResult_t error = ncclSuccess; error == ncclSuccess || error == ncclInProgress;) {
            std::this_thread::sleep_for(std::chrono::milliseconds(500));
            if (ncclCommGetAsyncError(all, &error) != ncclSuccess) return;
            if (error != ncclSuccess && error != ncclInProgress)
                processes().give_up(std::string("its GPU lost the others: NCCL says ") + ncclGetErrorString(error) +
                                    " (NCCL_DEBUG=INFO says more); --resume goes on from the last checkpoint");
        }
    }

    template <class F>
    void for_each_part(int64_t n, Range range, const F& f) {
        require_nccl(ncclGroupStart(), "ncclGroupStart");
        for (int r = 0; r < processes().size(); r++) {
            const Range part = common(range, part_of(n, r, processes().size()));
            if (part.size() > 0) require_nccl(f(r, part), "what the GPUs do together");
        }
        require_nccl(ncclGroupEnd(), "what the GPUs do together");
    }

    ncclComm_t all_ = nullptr;
};

inline void sum_over_processes(float* flat, int64_t n, Range range, cudaStream_t stream) {
    if (processes().size() > 1) Collectives::of_this_run().sum_parts(flat, n, range, stream);
}
template <class X>
void share_over_processes(X* flat, int64_t n, cudaStream_t stream) {
    if (processes().size() > 1) Collectives::of_this_run().share_parts(flat, n, stream);
}

#else

// Such a program trains in one process: dev/run refuses others.
inline void sum_over_processes(float*, int64_t, Range, cudaStream_t) {}
template <class X>
void share_over_processes(X*, int64_t, cudaStream_t) {}

#endif

// The gradients' sums over the processes, block by block, on a stream of their own: what is complete is on its way while
// backward is still at work on the blocks below. The same calls in the same order whether that is so or not, so that the
// sums are the same to the bit.
class GradientSums {
  public:
    GradientSums() = default;
    GradientSums(const GradientSums&) = delete;
    GradientSums& operator=(const GradientSums&) = delete;

    // Sums a range of flat (n) once what `stream` has been given so far is done.
    void sum(float* flat, int64_t n, Range range, cudaStream_t stream) {
        if (processes().size() == 1) return;
        begin();
        require_cuda(cudaEventRecord(event_, stream), "summing gradients");
        require_cuda(cudaStreamWaitEvent(beside_, event_, 0), "summing gradients");
        sum_over_processes(flat, n, range, beside_);
    }
    // What `stream` is given from here on finds them summed.
    void finish(cudaStream_t stream) {
        if (beside_ == nullptr) return;
        require_cuda(cudaEventRecord(event_, beside_), "summing gradients");
        require_cuda(cudaStreamWaitEvent(stream, event_, 0), "summing gradients");
    }

  private:
    // Kept until the process ends, as the engine's own stream is.
    cudaStream_t beside_ = nullptr;
    cudaEvent_t event_ = nullptr;

    void begin() {
        if (beside_ != nullptr) return;
        require_cuda(cudaStreamCreateWithFlags(&beside_, cudaStreamNonBlocking), "cudaStreamCreate");
        require_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
    }
};

// Where the tensors of block l lie, which are called h.l.*, one after another; empty if there are none.
inline Range range_of_block(const std::vector<Tensor>& tensors, int64_t l) {
    const std::string prefix = "h." + std::to_string(l) + ".";
    Range range;
    for (const Tensor& t : tensors) {
        if (t.name.compare(0, prefix.size(), prefix) != 0) continue;
        if (range.size() == 0) range = {t.offset, t.offset};
        range.last = t.offset + t.size;
    }
    return range;
}

// Of a flat buffer in the host's memory (n), of which every process has its part, the first process gets all.
inline void first_has_all(float* flat, int64_t n) {
    std::vector<int64_t> counts;
    for (int r = 0; r < processes().size(); r++) counts.push_back(part_of(n, r, processes().size()).size());
    processes().collect(flat, flat + processes().part(n).first, counts);
}

// Euclidean norm of a flat buffer from that of every process's part.
inline double norm_over_processes(double of_this_part) {
    if (processes().size() == 1) return of_this_part;
    std::vector<double> norms(static_cast<size_t>(processes().size()));
    norms[static_cast<size_t>(processes().rank())] = of_this_part;
    processes().all_gather(norms.data(), sizeof norms[0], processes().shares(processes().size()));
    double squares = 0;
    for (const double norm : norms) squares += norm * norm;
    return std::sqrt(squares);
}

}  // namespace lnfree::cuda
