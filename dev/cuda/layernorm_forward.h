// LayerNorm, forward:  out = (x - mean) / sigma * gamma + beta, and every row's mean and sigma.
// out, x (N,C); mean, sigma (N); gamma, beta (C)
#pragma once

#include "norm_operands.h"

namespace lnfree::cuda::lab {

template <class X>
using LayerNormForward = void (*)(X* out, float* mean, float* sigma, const X* x, const float* gamma, const float* beta,
                                  int64_t N, int64_t C, cudaStream_t stream);

// v1: a thread per row, as the formula reads. Neighbouring threads read far apart: every access fetches 32 bytes for one
// element.
template <class X>
__global__ void layernorm_forward_v1_kernel(X* out, float* mean, float* sigma, const X* x, const float* gamma,
                                            const float* beta, int64_t N, int64_t C) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= N) return;
    const X* row = x + n * C;
    float sum = 0, squares = 0;
    for (int64_t c = 0; c < C; c++) sum += to_float(row[c]);
    const float m = sum / static_cast<float>(C);
    for (int64_t c = 0; c < C; c++) squares += (to_float(row[c]) - m) * (to_float(row[c]) - m);
    const float s = sqrtf(squares / static_cast<float>(C) + kEpsilon);
    for (int64_t c = 0; c < C; c++) out[n * C + c] = from_float<X>((to_float(row[c]) - m) / s * gamma[c] + beta[c]);
    mean[n] = m;
    sigma[n] = s;
}
template <class X>
void layernorm_forward_v1(X* out, float* mean, float* sigma, const X* x, const float* gamma, const float* beta,
                          int64_t N, int64_t C, cudaStream_t stream) {
    launch(layernorm_forward_v1_kernel<X>, blocks(ceil_div(N, 256)), dim3(256), 0, stream, out, mean, sigma, x, gamma,
           beta, N, C);
}

// v2: a block per row. Neighbouring threads read neighbouring elements; the row is read three times, twice from the cache,
// and two sums over the block cost four barriers.
template <class X>
__global__ void layernorm_forward_v2_kernel(X* out, float* mean, float* sigma, const X* x, const float* gamma,
                                            const float* beta, int64_t C) {
    SharedMemory shared;
    const Shared<float> partial = shared.take<float>(kWarp);
    const int64_t n = blockIdx.x;
    const X* row = x + n * C;
    float sum = 0, squares = 0;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) sum += to_float(row[c]);
    const float m = block_sum(sum, partial) / static_cast<float>(C);
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) squares += (to_float(row[c]) - m) * (to_float(row[c]) - m);
    const float s = sqrtf(block_sum(squares, partial) / static_cast<float>(C) + kEpsilon);
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
        out[n * C + c] = from_float<X>((to_float(row[c]) - m) / s * gamma[c] + beta[c]);
    if (threadIdx.x != 0) return;
    mean[n] = m;
    sigma[n] = s;
}
template <class X>
void layernorm_forward_v2(X* out, float* mean, float* sigma, const X* x, const float* gamma, const float* beta,
                          int64_t N, int64_t C, cudaStream_t stream) {
    launch(layernorm_forward_v2_kernel<X>, blocks(N), dim3(256), shared_bytes_of<float>(kWarp), stream, out, mean,
           sigma, x, gamma, beta, C);
}

// v3: a warp per row: sums over a warp need no barrier and no shared memory.
template <class X>
__global__ void layernorm_forward_v3_kernel(X* out, float* mean, float* sigma, const X* x, const float* gamma,
                                            const float* beta, int64_t N, int64_t C) {
    const int64_t n = row_of_warp();
    if (n >= N) return;
    const X* row = x + n * C;
    float sum = 0, squares = 0;
    for (int64_t c = lane_index(); c < C; c += kWarp) sum += to_float(row[c]);
    const float m = warp_sum(sum) / static_cast<float>(C);
    for (int64_t c = lane_index(); c < C; c += kWarp) squares += (to_float(row[c]) - m) * (to_float(row[c]) - m);
    const float s = sqrtf(warp_sum(squares) / static_cast<float>(C) + kEpsilon);
    for (int64_t c = lane_index(); c < C; c += kWarp)
        out[n * C + c] = from_float<X>((to_float(row[c]) - m) / s * gamma[c] + beta[c]);
    if (lane_index() != 0) return;
    mean[n] = m;
    sigma[n] = s;
}
template <class X>
void layernorm_forward_v3(X* out, float* mean, float* sigma, const X* x, const float* gamma, const float* beta,
                          int64_t N, int64_t C, cudaStream_t stream) {
    launch(layernorm_forward_v3_kernel<X>, blocks(ceil_div(N, 4)), dim3(128), 0, stream, out, mean, sigma, x, gamma,
           beta, N, C);
}

template <class X>
void layernorm_forward_engine(X* out, float* mean, float* sigma, const X* x, const float* gamma, const float* beta,
                              int64_t N, int64_t C, cudaStream_t stream) {
    residual_norm_forward<X>(nullptr, out, nullptr, mean, sigma, x, nullptr, gamma, beta, Divisor(), Divisor(),
                             kEpsilon, N, C, stream);
}

template <class X>
std::vector<Version<LayerNormForward<X>>> layernorm_forward_versions() {
    return {{1, "plain", "a thread per row", layernorm_forward_v1<X>},
            {2, "block", "a block per row, neighbouring threads read neighbouring elements", layernorm_forward_v2<X>},
            {3, "warp", "a warp per row, no barriers", layernorm_forward_v3<X>},
            {4, "engine", "16 bytes per access, the row stays in registers", layernorm_forward_engine<X>}};
}

}  // namespace lnfree::cuda::lab
