// What several GPUs that train one model do together, a process each: NCCL's reductions and broadcasts of the parts of a flat
// buffer (dev/processes.h). In emulation NCCL is emulated too (dev/cuda_on_cpu/nccl.h). MPI starts the processes and
// carries what is small.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../../data/error.h"
#include "../cuda_on_cpu/cuda.h"
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

    // This process's part of flat (n) becomes the sum over all processes; the other parts keep what they had.
    void sum_parts(float* flat, int64_t n, cudaStream_t stream) {
        for_each_part(n, [&](int r, Range part) {
            float* const p = flat + part.first;
            return ncclReduce(p, p, static_cast<size_t>(part.size()), ncclFloat, ncclSum, r, all_, stream);
        });
    }
    // Every process's part of flat (n) becomes everyone's.
    template <class X>
    void share_parts(X* flat, int64_t n, cudaStream_t stream) {
        for_each_part(n, [&](int r, Range part) {
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
    }

    template <class F>
    void for_each_part(int64_t n, const F& f) {
        require_nccl(ncclGroupStart(), "ncclGroupStart");
        for (int r = 0; r < processes().size(); r++) {
            const Range part = part_of(n, r, processes().size());
            if (part.size() > 0) require_nccl(f(r, part), "what the GPUs do together");
        }
        require_nccl(ncclGroupEnd(), "what the GPUs do together");
    }

    ncclComm_t all_ = nullptr;
};

inline void sum_over_processes(float* flat, int64_t n, cudaStream_t stream) {
    if (processes().size() > 1) Collectives::of_this_run().sum_parts(flat, n, stream);
}
template <class X>
void share_over_processes(X* flat, int64_t n, cudaStream_t stream) {
    if (processes().size() > 1) Collectives::of_this_run().share_parts(flat, n, stream);
}

#else

// Such a program trains in one process: dev/run refuses others.
inline void sum_over_processes(float*, int64_t, cudaStream_t) {}
template <class X>
void share_over_processes(X*, int64_t, cudaStream_t) {}

#endif

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
