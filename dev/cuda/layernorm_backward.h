// LayerNorm, backward. With g = dout * gamma and xhat = (x - mean) / sigma:
//     dx += (g - mean(g) - xhat * mean(g * xhat)) / sigma,   dgamma += sum of dout * xhat,   dbeta += sum of dout
// dx, dout, x (N,C); dgamma, dbeta, gamma (C); mean, sigma (N); scratch: norm_backward_scratch floats
#pragma once

#include "norm_operands.h"

namespace lnfree::cuda::lab {

template <class X>
using LayerNormBackward = void (*)(X* dx, float* dgamma, float* dbeta, float* scratch, const X* dout, const X* x,
                                   const float* gamma, const float* mean, const float* sigma, int64_t N, int64_t C,
                                   cudaStream_t stream);

// v1: a thread per row for dx, a thread per channel for dgamma and dbeta: every sum belongs to one thread.
template <class X>
__global__ void layernorm_backward_v1_kernel(X* dx, const X* dout, const X* x, const float* gamma, const float* mean,
                                             const float* sigma, int64_t N, int64_t C) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= N) return;
    const float m = mean[n], s = sigma[n];
    float sum_g = 0, sum_gx = 0;
    for (int64_t c = 0; c < C; c++) {
        const float g = to_float(dout[n * C + c]) * gamma[c];
        sum_g += g;
        sum_gx += g * (to_float(x[n * C + c]) - m) / s;
    }
    for (int64_t c = 0; c < C; c++) {
        const float g = to_float(dout[n * C + c]) * gamma[c], xhat = (to_float(x[n * C + c]) - m) / s;
        const float here = (g - sum_g / static_cast<float>(C) - xhat * sum_gx / static_cast<float>(C)) / s;
        dx[n * C + c] = from_float<X>(to_float(dx[n * C + c]) + here);
    }
}
template <class X>
__global__ void layernorm_parameters_v1_kernel(float* dgamma, float* dbeta, const X* dout, const X* x,
                                               const float* mean, const float* sigma, int64_t N, int64_t C) {
    const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float sum_gamma = 0, sum_beta = 0;
    for (int64_t n = 0; n < N; n++) {
        const float d = to_float(dout[n * C + c]);
        sum_gamma += d * (to_float(x[n * C + c]) - mean[n]) / sigma[n];
        sum_beta += d;
    }
    dgamma[c] += sum_gamma;
    dbeta[c] += sum_beta;
}
template <class X>
void layernorm_backward_v1(X* dx, float* dgamma, float* dbeta, float*, const X* dout, const X* x, const float* gamma,
                           const float* mean, const float* sigma, int64_t N, int64_t C, cudaStream_t stream) {
    launch(layernorm_backward_v1_kernel<X>, blocks(ceil_div(N, 256)), dim3(256), 0, stream, dx, dout, x, gamma, mean,
           sigma, N, C);
    launch(layernorm_parameters_v1_kernel<X>, blocks(ceil_div(C, 32)), dim3(32), 0, stream, dgamma, dbeta, dout, x,
           mean, sigma, N, C);
}

// v2: a warp per row for dx. For dgamma and dbeta a block takes some rows, a thread a channel at a time, and partial sums
// are added in a fixed order. x and dout are still read twice over.
template <class X>
__global__ void layernorm_backward_v2_kernel(X* dx, const X* dout, const X* x, const float* gamma, const float* mean,
                                             const float* sigma, int64_t N, int64_t C) {
    const int64_t n = row_of_warp();
    if (n >= N) return;
    const float m = mean[n], scale = 1.0f / sigma[n];
    float sum_g = 0, sum_gx = 0;
    for (int64_t c = lane_index(); c < C; c += kWarp) {
        const float g = to_float(dout[n * C + c]) * gamma[c];
        sum_g += g;
        sum_gx += g * (to_float(x[n * C + c]) - m) * scale;
    }
    const float mean_g = warp_sum(sum_g) / static_cast<float>(C), mean_gx = warp_sum(sum_gx) / static_cast<float>(C);
    for (int64_t c = lane_index(); c < C; c += kWarp) {
        const float g = to_float(dout[n * C + c]) * gamma[c], xhat = (to_float(x[n * C + c]) - m) * scale;
        dx[n * C + c] = from_float<X>(to_float(dx[n * C + c]) + (g - mean_g - xhat * mean_gx) * scale);
    }
}
template <class X>
__global__ void layernorm_parameters_v2_kernel(float* partial, const X* dout, const X* x, const float* mean,
                                               const float* sigma, int64_t N, int64_t C, int64_t rows_per_block) {
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * rows_per_block;
    const int64_t end = begin + rows_per_block < N ? begin + rows_per_block : N;
    float* out = partial + static_cast<int64_t>(blockIdx.x) * 2 * C;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
        float sum_gamma = 0, sum_beta = 0;
        for (int64_t n = begin; n < end; n++) {
            const float d = to_float(dout[n * C + c]);
            sum_gamma += d * (to_float(x[n * C + c]) - mean[n]) / sigma[n];
            sum_beta += d;
        }
        out[c] = sum_gamma;
        out[C + c] = sum_beta;
    }
}
template <class X>
void layernorm_backward_v2(X* dx, float* dgamma, float* dbeta, float* scratch, const X* dout, const X* x,
                           const float* gamma, const float* mean, const float* sigma, int64_t N, int64_t C,
                           cudaStream_t stream) {
    const int64_t rows = norm_backward_rows_per_block(N), parts = ceil_div(N, rows);
    launch(layernorm_backward_v2_kernel<X>, blocks(ceil_div(N, 4)), dim3(128), 0, stream, dx, dout, x, gamma, mean,
           sigma, N, C);
    launch(layernorm_parameters_v2_kernel<X>, blocks(parts), dim3(256), 0, stream, scratch, dout, x, mean, sigma, N, C,
           rows);
    add_partial_sums({dgamma, dbeta, nullptr, C}, 2 * C, scratch, parts, stream);
}

template <class X>
void layernorm_backward_engine(X* dx, float* dgamma, float* dbeta, float* scratch, const X* dout, const X* x,
                               const float* gamma, const float* mean, const float* sigma, int64_t N, int64_t C,
                               cudaStream_t stream) {
    norm_backward<X>(dx, false, dgamma, dbeta, nullptr, scratch, dout, nullptr, x, gamma, mean, sigma, Divisor(),
                     Divisor(), nullptr, N, C, stream);
}

template <class X>
std::vector<Version<LayerNormBackward<X>>> layernorm_backward_versions() {
    return {{1, "plain", "a thread per row, then a thread per channel", layernorm_backward_v1<X>},
            {2, "warp", "a warp per row, then blocks of rows with partial sums", layernorm_backward_v2<X>},
            {3, "engine", "one pass for all three, rows on their way while others are computed",
             layernorm_backward_engine<X>}};
}

}  // namespace lnfree::cuda::lab
