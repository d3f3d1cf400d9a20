// FakeLN, forward:  out = (x - mean) / sigma_bar * gamma + beta. Every row's sigma is still measured: statistics go on
// after removal (protocol.md 3), and the auxiliary loss needs it.
// out, x (N,C); mean, sigma (N); gamma, beta (C)
#pragma once

#include "norm_operands.h"

namespace lnfree::cuda::lab {

template <class X>
using FakeLNForward = void (*)(X* out, float* mean, float* sigma, const X* x, const float* gamma, const float* beta,
                               float sigma_bar, int64_t N, int64_t C, cudaStream_t stream);

// v1: a thread per row measures, then a thread per element norms.
template <class X>
__global__ void moments_v1_kernel(float* mean, float* sigma, const X* x, int64_t N, int64_t C) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= N) return;
    float sum = 0, squares = 0;
    for (int64_t c = 0; c < C; c++) sum += to_float(x[n * C + c]);
    const float m = sum / static_cast<float>(C);
    for (int64_t c = 0; c < C; c++) squares += (to_float(x[n * C + c]) - m) * (to_float(x[n * C + c]) - m);
    mean[n] = m;
    sigma[n] = sqrtf(squares / static_cast<float>(C) + kEpsilon);
}
template <class X>
__global__ void fakeln_forward_v1_kernel(X* out, const X* x, const float* mean, const float* gamma, const float* beta,
                                         float sigma_bar, int64_t N, int64_t C) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= N * C) return;
    out[i] = from_float<X>((to_float(x[i]) - mean[i / C]) / sigma_bar * gamma[i % C] + beta[i % C]);
}
template <class X>
void fakeln_forward_v1(X* out, float* mean, float* sigma, const X* x, const float* gamma, const float* beta,
                       float sigma_bar, int64_t N, int64_t C, cudaStream_t stream) {
    launch(moments_v1_kernel<X>, blocks(ceil_div(N, 256)), dim3(256), 0, stream, mean, sigma, x, N, C);
    launch(fakeln_forward_v1_kernel<X>, blocks(ceil_div(N * C, 256)), dim3(256), 0, stream, out, x, mean, gamma, beta,
           sigma_bar, N, C);
}

// The very kernel that does LayerNorm, told to divide by something else.
template <class X>
void fakeln_forward_engine(X* out, float* mean, float* sigma, const X* x, const float* gamma, const float* beta,
                           float sigma_bar, int64_t N, int64_t C, cudaStream_t stream) {
    residual_norm_forward<X>(nullptr, out, nullptr, mean, sigma, x, nullptr, gamma, beta, frozen(sigma_bar), Divisor(),
                             kEpsilon, N, C, stream);
}

template <class X>
std::vector<Version<FakeLNForward<X>>> fakeln_forward_versions() {
    return {{1, "plain", "a thread per row measures, then a thread per element norms", fakeln_forward_v1<X>},
            {2, "engine", "LayerNorm's kernel with another divisor", fakeln_forward_engine<X>}};
}

}  // namespace lnfree::cuda::lab
