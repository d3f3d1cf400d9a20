// The Euclidean norm of a gradient (n), in double precision and a fixed order. scratch: global_norm_scratch doubles
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

using GlobalNorm = void (*)(GradientNorm* out, double* scratch, const float* values, int64_t n, double clip,
                            cudaStream_t stream);

// What the reference makes of it.
inline double reference_norm(const Floats& values) {
    const auto n = static_cast<int64_t>(values.size());
    std::vector<double> partial(static_cast<size_t>(ceil_div(n, kNormBlock)));
    operations().sum_squares(partial.data(), values.data(), n);
    double sum = 0;
    for (const double part : partial) sum += part;
    return std::sqrt(sum);
}

// v1: one block.
static __global__ void global_norm_v1_kernel(GradientNorm* out, const float* values, int64_t n, double clip) {
    SharedMemory shared;
    const Shared<double> partial = shared.take<double>(kWarp);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += static_cast<double>(values[i]) * values[i];
    sum = block_sum(sum, partial);
    if (threadIdx.x != 0) return;
    out->norm = sqrt(sum);
    out->clip_scale = static_cast<float>(out->norm > clip ? clip / out->norm : 1.0);
}
inline void global_norm_v1(GradientNorm* out, double*, const float* values, int64_t n, double clip,
                           cudaStream_t stream) {
    launch(global_norm_v1_kernel, blocks(1), dim3(1024), shared_bytes_of<double>(kWarp), stream, out, values, n, clip);
}

// v2: many blocks, whose sums another kernel adds; an element per access.
static __global__ void global_norm_v2_kernel(double* partial, const float* values, int64_t n) {
    SharedMemory shared;
    const Shared<double> sums = shared.take<double>(kWarp);
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    double sum = 0;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
        sum += static_cast<double>(values[i]) * values[i];
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
inline void global_norm_v2(GradientNorm* out, double* scratch, const float* values, int64_t n, double clip,
                           cudaStream_t stream) {
    const int64_t count = std::min(global_norm_scratch(), ceil_div(n, kNormThreads));
    const size_t bytes = shared_bytes_of<double>(kWarp);
    launch(global_norm_v2_kernel, blocks(count), dim3(kNormThreads), bytes, stream, scratch, values, n);
    launch_dependent(finish_norm_kernel<kNormThreads>, blocks(1), dim3(kNormThreads), bytes, stream, out, scratch,
                     count, clip);
}

inline std::vector<Version<GlobalNorm>> global_norm_versions() {
    return {{1, "plain", "one block", global_norm_v1},
            {2, "two stages", "many blocks, then one that adds up their sums", global_norm_v2},
            {3, "engine", "16 bytes per access, four on their way per thread", global_norm}};
}

}  // namespace lnfree::cuda::lab
