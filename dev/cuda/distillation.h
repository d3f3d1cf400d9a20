// Softmax, cross-entropy and distance to a teacher, and their gradient, in place: with p and p_o the softmax of a row of
// logits z and of the teacher's o, y its target and w the teacher's share
//     loss = -log p[y],   kl = KL(p_o || p),   z becomes scale * (p - (1 - w) * one-hot(y) - w * p_o), and 0 in the padding
// logits, teacher_logits (rows,Vp), of which V columns are logits; losses, kls, targets (rows)
//
// And whether two models find the same token likeliest, the first of equals: same (rows) of logits a, b (rows,Vp).
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

template <class X>
using DistillationFunction = void (*)(X* logits, float* losses, float* kls, const X* teacher_logits,
                                      const int32_t* targets, float share, float scale, bool with_gradient,
                                      int64_t rows, int64_t V, int64_t Vp, cudaStream_t stream);

// v1: a thread per row: maxima, then sums, then gradients.
template <class X>
__global__ void distillation_v1_kernel(X* logits, float* losses, float* kls, const X* teacher_logits,
                                       const int32_t* targets, float share, float scale, bool with_gradient,
                                       int64_t rows, int64_t V, int64_t Vp) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    X* z = logits + row * Vp;
    const X* o = teacher_logits + row * Vp;
    float largest = to_float(z[0]), largest_o = to_float(o[0]), sum = 0, sum_o = 0, apart = 0;
    for (int64_t v = 0; v < V; v++) {
        largest = fmaxf(largest, to_float(z[v]));
        largest_o = fmaxf(largest_o, to_float(o[v]));
    }
    for (int64_t v = 0; v < V; v++) {
        const float below = to_float(z[v]) - largest, below_o = to_float(o[v]) - largest_o, e = expf(below_o);
        sum += expf(below);
        sum_o += e;
        apart += e * (below_o - below);
    }
    losses[row] = logf(sum) + largest - to_float(z[targets[row]]);
    kls[row] = apart / sum_o + logf(sum / sum_o);
    if (!with_gradient) return;
    for (int64_t v = 0; v < Vp; v++) {
        float d = 0;
        if (v < V) {
            d = expf(to_float(z[v]) - largest) / sum - share * (expf(to_float(o[v]) - largest_o) / sum_o);
            if (v == targets[row]) d -= 1 - share;
        }
        z[v] = from_float<X>(scale * d);
    }
}
template <class X>
void distillation_v1(X* logits, float* losses, float* kls, const X* teacher_logits, const int32_t* targets, float share,
                     float scale, bool with_gradient, int64_t rows, int64_t V, int64_t Vp, cudaStream_t stream) {
    launch(distillation_v1_kernel<X>, blocks(ceil_div(rows, 32)), dim3(32), 0, stream, logits, losses, kls,
           teacher_logits, targets, share, scale, with_gradient, rows, V, Vp);
}

// v2: a block per row; both rows are read three times.
template <class X>
__global__ void distillation_v2_kernel(X* logits, float* losses, float* kls, const X* teacher_logits,
                                       const int32_t* targets, float share, float scale, bool with_gradient, int64_t V,
                                       int64_t Vp) {
    SharedMemory shared;
    const Shared<float> partial = shared.take<float>(kWarp);
    X* z = logits + static_cast<int64_t>(blockIdx.x) * Vp;
    const X* o = teacher_logits + static_cast<int64_t>(blockIdx.x) * Vp;
    const int32_t target = targets[blockIdx.x];
    const float target_logit = to_float(z[target]);
    float largest = -INFINITY, largest_o = -INFINITY, sum = 0, sum_o = 0, apart = 0;
    for (int64_t v = threadIdx.x; v < V; v += blockDim.x) {
        largest = fmaxf(largest, to_float(z[v]));
        largest_o = fmaxf(largest_o, to_float(o[v]));
    }
    largest = block_max(largest, partial);
    largest_o = block_max(largest_o, partial);
    for (int64_t v = threadIdx.x; v < V; v += blockDim.x) {
        const float below = to_float(z[v]) - largest, below_o = to_float(o[v]) - largest_o, e = __expf(below_o);
        sum += __expf(below);
        sum_o += e;
        apart += e * (below_o - below);
    }
    sum = block_sum(sum, partial);
    sum_o = block_sum(sum_o, partial);
    apart = block_sum(apart, partial);
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = logf(sum) + largest - target_logit;
        kls[blockIdx.x] = apart / sum_o + logf(sum / sum_o);
    }
    if (!with_gradient) return;
    for (int64_t v = threadIdx.x; v < Vp; v += blockDim.x) {
        float d = 0;
        if (v < V) d = __expf(to_float(z[v]) - largest) / sum - share * (__expf(to_float(o[v]) - largest_o) / sum_o);
        if (v == target) d -= 1 - share;
        z[v] = from_float<X>(scale * d);
    }
}
template <class X>
void distillation_v2(X* logits, float* losses, float* kls, const X* teacher_logits, const int32_t* targets, float share,
                     float scale, bool with_gradient, int64_t rows, int64_t V, int64_t Vp, cudaStream_t stream) {
    launch(distillation_v2_kernel<X>, blocks(rows), dim3(512), shared_bytes_of<float>(kWarp), stream, logits, losses,
           kls, teacher_logits, targets, share, scale, with_gradient, V, Vp);
}

template <class X>
std::vector<Version<DistillationFunction<X>>> distillation_versions() {
    return {{1, "plain", "a thread per row", distillation_v1<X>},
            {2, "block", "a block per row, three reads", distillation_v2<X>},
            {3, "engine", "maxima and all three sums in one read, 16 bytes per access", distillation<X>}};
}

// ---------------------------------------------------------------------------------------------------------------------

template <class X>
using SameLikeliest = void (*)(uint8_t* same, const X* a, const X* b, int64_t rows, int64_t V, int64_t Vp,
                               cudaStream_t stream);

// v1: a thread per row.
template <class X>
__global__ void same_likeliest_v1_kernel(uint8_t* same, const X* a, const X* b, int64_t rows, int64_t V, int64_t Vp) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const X *z = a + row * Vp, *o = b + row * Vp;
    int64_t best = 0, best_o = 0;
    for (int64_t v = 1; v < V; v++) {
        if (to_float(z[v]) > to_float(z[best])) best = v;
        if (to_float(o[v]) > to_float(o[best_o])) best_o = v;
    }
    same[row] = best == best_o ? 1 : 0;
}
template <class X>
void same_likeliest_v1(uint8_t* same, const X* a, const X* b, int64_t rows, int64_t V, int64_t Vp,
                       cudaStream_t stream) {
    launch(same_likeliest_v1_kernel<X>, blocks(ceil_div(rows, 32)), dim3(32), 0, stream, same, a, b, rows, V, Vp);
}

template <class X>
std::vector<Version<SameLikeliest<X>>> same_likeliest_versions() {
    return {{1, "plain", "a thread per row", same_likeliest_v1<X>},
            {3, "engine", "a warp per row, of whose lanes the lowest token wins", same_likeliest<X>}};
}

}  // namespace lnfree::cuda::lab
