// Emulation: stream capture and graphs. What a thread gives to its streams between begin and end of a capture is not done
// but written down, with its arguments as they are then, and done when the graph is launched. As on a GPU a value that has
// changed since has not changed in the graph, which is what the tests of code that captures are after.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace lnfree::cuda::emulation {

using Recording = std::vector<std::function<void()>>;

// Where this thread's work goes while it captures; null: it is done at once.
inline std::unique_ptr<Recording>& recording() {
    static thread_local std::unique_ptr<Recording> current;
    return current;
}

// How much work streams have been given so far.
inline int64_t& work_given() {
    static int64_t count = 0;
    return count;
}

// For everything that a stream is given. `work` holds its arguments by value.
template <class Work>
void do_or_record(Work work) {
    if (recording() == nullptr) {
        work_given()++;
        return work();
    }
    recording()->push_back(std::move(work));
}

}  // namespace lnfree::cuda::emulation

struct CUgraph_st {
    lnfree::cuda::emulation::Recording work;
};
struct CUgraphExec_st : CUgraph_st {};
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraphExec_st*;
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
