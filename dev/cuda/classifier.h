// Softmax, cross-entropy and their gradient, in place:  loss = log sum exp z - z[target];  z becomes scale * (softmax -
// one-hot), and 0 in the padding. logits (rows,Vp), of which V columns are logits; losses, targets (rows)
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

template <class X>
using ClassifierFunction = void (*)(X* logits, float* losses, const int32_t* targets, float scale, bool with_gradient,
                                    int64_t rows, int64_t V, int64_t Vp, cudaStream_t stream);

// v1: a thread per row.
template <class X>
__global__ void classifier_v1_kernel(X* logits, float* losses, const int32_t* targets, float scale, bool with_gradient,
                                     int64_t rows, int64_t V, int64_t Vp) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    X* z = logits + row * Vp;
    float largest = to_float(z[0]), sum = 0;
    for (int64_t v = 0; v < V; v++) largest = fmaxf(largest, to_float(z[v]));
    for (int64_t v = 0; v < V; v++) sum += expf(to_float(z[v]) - largest);
    losses[row] = logf(sum) + largest - to_float(z[targets[row]]);
    if (!with_gradient) return;
    for (int64_t v = 0; v < Vp; v++) {
        const float p = v < V ? expf(to_float(z[v]) - largest) / sum - (v == targets[row] ? 1.0f : 0.0f) : 0.0f;
        z[v] = from_float<X>(scale * p);
    }
}
template <class X>
void classifier_v1(X* logits, float* losses, const int32_t* targets, float scale, bool with_gradient, int64_t rows,
                   int64_t V, int64_t Vp, cudaStream_t stream) {
    launch(classifier_v1_kernel<X>, blocks(ceil_div(rows, 32)), dim3(32), 0, stream, logits, losses, targets, scale,
           with_gradient, rows, V, Vp);
}

// v2: a block per row; maximum, sum and gradient read it one after another, three times in all.
template <class X>
__global__ void classifier_v2_kernel(X* logits, float* losses, const int32_t* targets, float scale, bool with_gradient,
                                     int64_t V, int64_t Vp) {
    SharedMemory shared;
    const Shared<float> partial = shared.take<float>(kWarp);
    X* z = logits + static_cast<int64_t>(blockIdx.x) * Vp;
    const int32_t target = targets[blockIdx.x];
    const float target_logit = to_float(z[target]);
    float largest = -INFINITY;
    for (int64_t v = threadIdx.x; v < V; v += blockDim.x) largest = fmaxf(largest, to_float(z[v]));
    largest = block_max(largest, partial);
    float sum = 0;
    for (int64_t v = threadIdx.x; v < V; v += blockDim.x) sum += __expf(to_float(z[v]) - largest);
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) + largest - target_logit;
    if (!with_gradient) return;
    for (int64_t v = threadIdx.x; v < Vp; v += blockDim.x) {
        const float p = v < V ? __expf(to_float(z[v]) - largest) / sum - (v == target ? 1.0f : 0.0f) : 0.0f;
        z[v] = from_float<X>(scale * p);
    }
}
template <class X>
void classifier_v2(X* logits, float* losses, const int32_t* targets, float scale, bool with_gradient, int64_t rows,
                   int64_t V, int64_t Vp, cudaStream_t stream) {
    launch(classifier_v2_kernel<X>, blocks(rows), dim3(512), shared_bytes_of<float>(kWarp), stream, logits, losses,
           targets, scale, with_gradient, V, Vp);
}

template <class X>
std::vector<Version<ClassifierFunction<X>>> classifier_versions() {
    return {{1, "plain", "a thread per row", classifier_v1<X>},
            {2, "block", "a block per row, three reads", classifier_v2<X>},
            {3, "engine", "maximum and sum in one read, 16 bytes per access, the row stays in shared memory",
             classifier<X>}};
}

}  // namespace lnfree::cuda::lab
