// Sums over a micro-batch in double precision and in a fixed order: of sigma, for each of S arrays (B,T), position 0 apart
// (sums (S,2), added to; arrays lie `stride` floats from one to the next), and of the losses (n), added to one sum.
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

using SigmaStatistics = void (*)(double* sums, const float* sigma, int64_t stride, int64_t S, int64_t B, int64_t T,
                                 cudaStream_t stream);

// v1: a thread per array.
static __global__ void sigma_statistics_v1_kernel(double* sums, const float* sigma, int64_t stride, int64_t S,
                                                  int64_t N, int64_t T) {
    const int64_t s = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (s >= S) return;
    for (int64_t n = 0; n < N; n++) sums[2 * s + (n % T == 0 ? 0 : 1)] += static_cast<double>(sigma[s * stride + n]);
}
inline void sigma_statistics_v1(double* sums, const float* sigma, int64_t stride, int64_t S, int64_t B, int64_t T,
                                cudaStream_t stream) {
    launch(sigma_statistics_v1_kernel, blocks(ceil_div(S, 32)), dim3(32), 0, stream, sums, sigma, stride, S, B * T, T);
}

// v2: a warp per array.
static __global__ void sigma_statistics_v2_kernel(double* sums, const float* sigma, int64_t stride, int64_t N,
                                                  int64_t T) {
    const float* s = sigma + static_cast<int64_t>(blockIdx.x) * stride;
    double at_0 = 0, elsewhere = 0;
    for (int64_t n = threadIdx.x; n < N; n += kWarp) (n % T == 0 ? at_0 : elsewhere) += static_cast<double>(s[n]);
    at_0 = warp_sum(at_0);
    elsewhere = warp_sum(elsewhere);
    if (threadIdx.x != 0) return;
    sums[2 * blockIdx.x] += at_0;
    sums[2 * blockIdx.x + 1] += elsewhere;
}
inline void sigma_statistics_v2(double* sums, const float* sigma, int64_t stride, int64_t S, int64_t B, int64_t T,
                                cudaStream_t stream) {
    launch(sigma_statistics_v2_kernel, blocks(S), dim3(kWarp), 0, stream, sums, sigma, stride, B * T, T);
}

inline std::vector<Version<SigmaStatistics>> sigma_statistics_versions() {
    return {{1, "plain", "a thread per array", sigma_statistics_v1},
            {2, "warp", "a warp per array, neighbouring lanes read neighbouring elements", sigma_statistics_v2},
            {3, "engine", "a block of 1024 threads per array, eight elements on their way in each", sigma_statistics}};
}

// ---------------------------------------------------------------------------------------------------------------------
// The losses

using AddSum = void (*)(double* sum, const float* values, int64_t n, cudaStream_t stream);

// v1: one thread.
static __global__ void add_sum_v1_kernel(double* sum, const float* values, int64_t n) {
    for (int64_t i = 0; i < n; i++) *sum += static_cast<double>(values[i]);
}
inline void add_sum_v1(double* sum, const float* values, int64_t n, cudaStream_t stream) {
    launch(add_sum_v1_kernel, blocks(1), dim3(1), 0, stream, sum, values, n);
}

inline std::vector<Version<AddSum>> add_sum_versions() {
    return {{1, "plain", "one thread", add_sum_v1},
            {3, "engine", "a block of 1024 threads, eight elements on their way in each", add_sum}};
}

}  // namespace lnfree::cuda::lab
