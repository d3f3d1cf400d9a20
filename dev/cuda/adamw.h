// AdamW over all tensors of a model: m, v and weights from gradients, which are set to 0; and a copy of the weights in X.
// master, grad, m, v, copy (n); norm: the factor that clipping gives gradients; tensors: which stretches decay, on the
// device and, for versions that launch tensor by tensor, on the host
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

template <class X>
struct AdamWOperands {
    float *master, *grad, *m, *v;
    X* copy;
    const GradientNorm* norm;
    const TensorRange* tensors;
    const std::vector<TensorRange>* tensors_on_host;
    int64_t n;
    AdamWConstants step;
};
template <class X>
using AdamWFunction = void (*)(const AdamWOperands<X>& p, cudaStream_t stream);

// v1: a launch per tensor, a thread per element; then the copy; then the zeroes.
static __global__ void adamw_v1_kernel(float* master, const float* grad, float* m, float* v, const GradientNorm* norm,
                                       float keep, int64_t n, AdamWConstants s) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float gradient = grad[i] * norm->clip_scale;
    m[i] = s.beta1 * m[i] + s.rest1 * gradient;
    v[i] = s.beta2 * v[i] + s.rest2 * gradient * gradient;
    master[i] = keep * master[i] - s.step * m[i] / (sqrtf(v[i]) * s.root2 + s.eps);
}
template <class X>
void adamw_v1(const AdamWOperands<X>& p, cudaStream_t stream) {
    for (const TensorRange& t : *p.tensors_on_host)
        launch(adamw_v1_kernel, blocks(ceil_div(t.size, 256)), dim3(256), 0, stream, p.master + t.offset,
               p.grad + t.offset, p.m + t.offset, p.v + t.offset, p.norm, t.decay ? p.step.keep : 1.0f, t.size, p.step);
    convert(p.copy, p.master, p.n, stream);
    require_cuda(cudaMemsetAsync(p.grad, 0, sizeof(float) * static_cast<size_t>(p.n), stream), "cudaMemsetAsync");
}

template <class X>
void adamw_engine(const AdamWOperands<X>& p, cudaStream_t stream) {
    adamw<X>(p.master, p.grad, p.m, p.v, p.copy, p.norm, p.tensors, static_cast<int64_t>(p.tensors_on_host->size()),
             p.n, p.step, std::nullopt, stream);
}

template <class X>
std::vector<Version<AdamWFunction<X>>> adamw_versions() {
    return {{1, "plain", "a launch per tensor, then the copy, then the zeroes", adamw_v1<X>},
            {2, "engine", "one launch and one pass for all, 16 bytes per access", adamw_engine<X>}};
}

}  // namespace lnfree::cuda::lab
