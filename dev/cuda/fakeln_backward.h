// FakeLN, backward. With g = dout * gamma and sigma_bar a constant:
//     dx += (g - mean(g)) / sigma_bar,   dgamma += sum of dout * (x - mean) / sigma_bar,   dbeta += sum of dout
// dx, dout, x (N,C); dgamma, dbeta, gamma (C); mean, sigma (N); scratch: norm_backward_scratch floats
#pragma once

#include "norm_operands.h"

namespace lnfree::cuda::lab {

template <class X>
using FakeLNBackward = void (*)(X* dx, float* dgamma, float* dbeta, float* scratch, const X* dout, const X* x,
                                const float* gamma, const float* mean, const float* sigma, float sigma_bar, int64_t N,
                                int64_t C, cudaStream_t stream);

// v1: a thread per row for dx, a thread per channel for dgamma and dbeta: every sum belongs to one thread.
template <class X>
__global__ void fakeln_backward_v1_kernel(X* dx, const X* dout, const float* gamma, float sigma_bar, int64_t N,
                                          int64_t C) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= N) return;
    float sum_g = 0;
    for (int64_t c = 0; c < C; c++) sum_g += to_float(dout[n * C + c]) * gamma[c];
    for (int64_t c = 0; c < C; c++) {
        const float here = (to_float(dout[n * C + c]) * gamma[c] - sum_g / static_cast<float>(C)) / sigma_bar;
        dx[n * C + c] = from_float<X>(to_float(dx[n * C + c]) + here);
    }
}
template <class X>
__global__ void fakeln_parameters_v1_kernel(float* dgamma, float* dbeta, const X* dout, const X* x, const float* mean,
                                            float sigma_bar, int64_t N, int64_t C) {
    const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float sum_gamma = 0, sum_beta = 0;
    for (int64_t n = 0; n < N; n++) {
        const float d = to_float(dout[n * C + c]);
        sum_gamma += d * (to_float(x[n * C + c]) - mean[n]) / sigma_bar;
        sum_beta += d;
    }
    dgamma[c] += sum_gamma;
    dbeta[c] += sum_beta;
}
template <class X>
void fakeln_backward_v1(X* dx, float* dgamma, float* dbeta, float*, const X* dout, const X* x, const float* gamma,
                        const float* mean, const float*, float sigma_bar, int64_t N, int64_t C, cudaStream_t stream) {
    launch(fakeln_backward_v1_kernel<X>, blocks(ceil_div(N, 256)), dim3(256), 0, stream, dx, dout, gamma, sigma_bar, N,
           C);
    launch(fakeln_parameters_v1_kernel<X>, blocks(ceil_div(C, 32)), dim3(32), 0, stream, dgamma, dbeta, dout, x, mean,
           sigma_bar, N, C);
}

// The very kernel that does LayerNorm's backward, told to divide by something else.
template <class X>
void fakeln_backward_engine(X* dx, float* dgamma, float* dbeta, float* scratch, const X* dout, const X* x,
                            const float* gamma, const float* mean, const float* sigma, float sigma_bar, int64_t N,
                            int64_t C, cudaStream_t stream) {
    norm_backward<X>(dx, false, dgamma, dbeta, nullptr, scratch, dout, nullptr, x, gamma, mean, sigma,
                     frozen(sigma_bar), Divisor(), nullptr, N, C, stream);
}

template <class X>
std::vector<Version<FakeLNBackward<X>>> fakeln_backward_versions() {
    return {{1, "plain", "a thread per row, then a thread per channel", fakeln_backward_v1<X>},
            {2, "engine", "LayerNorm's kernel with another divisor", fakeln_backward_engine<X>}};
}

}  // namespace lnfree::cuda::lab
