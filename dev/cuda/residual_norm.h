// Residual addition, mean and sigma, and the norm for the two branches of attention:  sum = x + y;  normed_qk by each row's
// own sigma;  normed_v by a frozen one. What a layer costs between the removal of one site and that of the other.
// sum, normed_qk, normed_v, x, y (N,C); mean, sigma (N); gamma, beta (C)
#pragma once

#include "norm_operands.h"

namespace lnfree::cuda::lab {

template <class X>
using ResidualNormForward = void (*)(X* sum, X* normed_qk, X* normed_v, float* mean, float* sigma, const X* x,
                                     const X* y, const float* gamma, const float* beta, float sigma_bar, int64_t N,
                                     int64_t C, cudaStream_t stream);

// v1: three kernels: the sum is written, read, and read again.
template <class X>
__global__ void residual_add_v1_kernel(X* sum, const X* x, const X* y, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) sum[i] = from_float<X>(to_float(x[i]) + to_float(y[i]));
}
template <class X>
void residual_norm_v1(X* sum, X* normed_qk, X* normed_v, float* mean, float* sigma, const X* x, const X* y,
                      const float* gamma, const float* beta, float sigma_bar, int64_t N, int64_t C,
                      cudaStream_t stream) {
    launch(residual_add_v1_kernel<X>, blocks(ceil_div(N * C, 256)), dim3(256), 0, stream, sum, x, y, N * C);
    residual_norm_forward<X>(nullptr, normed_qk, nullptr, mean, sigma, sum, nullptr, gamma, beta, Divisor(), Divisor(),
                             kEpsilon, N, C, stream);
    norm_forward<X>(normed_v, nullptr, sum, mean, sigma, gamma, beta, frozen(sigma_bar), Divisor(), N, C, stream);
}

template <class X>
void residual_norm_engine(X* sum, X* normed_qk, X* normed_v, float* mean, float* sigma, const X* x, const X* y,
                          const float* gamma, const float* beta, float sigma_bar, int64_t N, int64_t C,
                          cudaStream_t stream) {
    residual_norm_forward<X>(sum, normed_qk, normed_v, mean, sigma, x, y, gamma, beta, Divisor(), frozen(sigma_bar),
                             kEpsilon, N, C, stream);
}

template <class X>
std::vector<Version<ResidualNormForward<X>>> residual_norm_versions() {
    return {{1, "apart", "addition, first norm, second norm", residual_norm_v1<X>},
            {2, "engine", "one pass, the row stays in registers", residual_norm_engine<X>}};
}

}  // namespace lnfree::cuda::lab
