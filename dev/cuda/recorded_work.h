// A pass over a micro-batch as one call: CUDA graphs.
#pragma once

#include <vector>

#include "../cuda_on_cpu/cuda.h"

namespace lnfree::cuda {

// Work that is the same for every micro-batch but for what lies in the device's memory. With --cuda-graphs the GPU gets it in
// one call: recorded when it comes for the second time (the first time loads kernels and chooses products, which cannot be
// recorded), launched from then on. A recording holds every argument as it was, pointers too, so `frozen` names all that
// is passed by value and can change, and forget() is for when memory moves.
class RecordedWork {
  public:
    RecordedWork() = default;
    RecordedWork(const RecordedWork&) = delete;
    RecordedWork& operator=(const RecordedWork&) = delete;
    ~RecordedWork() { forget(); }

    template <class Work>
    void run(const std::vector<double>& frozen, cudaStream_t stream, const Work& work) {
        if (frozen != frozen_) {
            forget();
            frozen_ = frozen;
            return work();
        }
        if (graph_ == nullptr) record(stream, work);
        require_cuda(cudaGraphLaunch(graph_, stream), "a recorded pass");
    }
    void forget() {
        if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
        graph_ = nullptr;
        frozen_.clear();
    }

  private:
    std::vector<double> frozen_;
    cudaGraphExec_t graph_ = nullptr;

    template <class Work>
    void record(cudaStream_t stream, const Work& work) {
        cudaGraph_t recorded = nullptr;
        require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording a pass");
        try {
            work();
        } catch (...) {
            if (cudaStreamEndCapture(stream, &recorded) == cudaSuccess && recorded != nullptr)
                cudaGraphDestroy(recorded);
            throw;
        }
        require_cuda(cudaStreamEndCapture(stream, &recorded), "recording a pass");
        const cudaError_t error = cudaGraphInstantiate(&graph_, recorded, 0);
        cudaGraphDestroy(recorded);
        require_cuda(error, "recording a pass");
    }
};

}  // namespace lnfree::cuda
