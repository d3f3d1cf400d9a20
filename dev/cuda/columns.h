// Column by column over (N,M): biases and their gradients, for products whose library does not do it on the way out.
//     column_sums         dbias += sums of the columns of dout
//     gelu_backward_bias  dout becomes dout * gelu'(inp), and dbias += sums of its columns
//     add_bias            out += bias
//     bias_gelu_forward   fc += bias, then hidden = gelu(fc)
// dbias (M) float; bias (M); all else (N,M); scratch: column_sums_scratch floats
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

// ---------------------------------------------------------------------------------------------------------------------
// Sums of columns

template <class X>
using ColumnSums = void (*)(float* dbias, float* scratch, const X* dout, int64_t N, int64_t M, cudaStream_t stream);

// v1: a thread per column. Neighbours read neighbouring elements, but M threads are few for a GPU.
template <class X>
__global__ void column_sums_v1_kernel(float* dbias, const X* dout, int64_t N, int64_t M) {
    const int64_t m = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (m >= M) return;
    float sum = 0;
    for (int64_t n = 0; n < N; n++) sum += to_float(dout[n * M + m]);
    dbias[m] += sum;
}
template <class X>
void column_sums_v1(float* dbias, float*, const X* dout, int64_t N, int64_t M, cudaStream_t stream) {
    launch(column_sums_v1_kernel<X>, blocks(ceil_div(M, 32)), dim3(32), 0, stream, dbias, dout, N, M);
}

// v2: the rows are shared out among the 32 warps of a block, which adds them up in shared memory.
template <class X>
__global__ void column_sums_v2_kernel(float* dbias, const X* dout, int64_t N, int64_t M) {
    SharedMemory shared;
    const Shared<float> sums = shared.take<float>(kWarp * kWarp);
    const int64_t m = static_cast<int64_t>(blockIdx.x) * kWarp + lane_index();
    float sum = 0;
    for (int64_t n = warp_index(); n < N && m < M; n += kWarp) sum += to_float(dout[n * M + m]);
    sums[warp_index() * kWarp + lane_index()] = sum;
    __syncthreads();
    if (warp_index() != 0 || m >= M) return;
    float total = 0;
    for (int w = 0; w < kWarp; w++) total += sums[w * kWarp + lane_index()];
    dbias[m] += total;
}
template <class X>
void column_sums_v2(float* dbias, float*, const X* dout, int64_t N, int64_t M, cudaStream_t stream) {
    launch(column_sums_v2_kernel<X>, blocks(ceil_div(M, kWarp)), dim3(kWarp * kWarp),
           shared_bytes_of<float>(kWarp * kWarp), stream, dbias, dout, N, M);
}

template <class X>
void column_sums_engine(float* dbias, float* scratch, const X* dout, int64_t N, int64_t M, cudaStream_t stream) {
    column_sums(dbias, scratch, dout, N, M, M, stream);
}

template <class X>
std::vector<Version<ColumnSums<X>>> column_sums_versions() {
    return {{1, "plain", "a thread per column", column_sums_v1<X>},
            {2, "block", "32 warps share out the rows of 32 columns", column_sums_v2<X>},
            {3, "engine", "blocks share out the rows too, 16 bytes per access, four on their way; then their sums",
             column_sums_engine<X>}};
}

// ---------------------------------------------------------------------------------------------------------------------
// The same, through GELU

template <class X>
using GeluBackwardBias = void (*)(X* dout, float* dbias, float* scratch, const X* inp, int64_t N, int64_t M,
                                  cudaStream_t stream);

// v1: one after the other, a thread per element and then a thread per column: dout is written and read again.
template <class X>
__global__ void gelu_backward_v1_kernel(X* dout, const X* inp, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = to_float(inp[i]), u = kGeluScale * (x + 0.044715f * x * x * x), t = tanhf(u);
    const float slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * kGeluScale * (1 + 3 * 0.044715f * x * x);
    dout[i] = from_float<X>(to_float(dout[i]) * slope);
}
template <class X>
void gelu_backward_bias_v1(X* dout, float* dbias, float* scratch, const X* inp, int64_t N, int64_t M,
                           cudaStream_t stream) {
    launch(gelu_backward_v1_kernel<X>, blocks(ceil_div(N * M, 256)), dim3(256), 0, stream, dout, inp, N * M);
    column_sums_v1(dbias, scratch, static_cast<const X*>(dout), N, M, stream);
}

template <class X>
void gelu_backward_bias_engine(X* dout, float* dbias, float* scratch, const X* inp, int64_t N, int64_t M,
                               cudaStream_t stream) {
    gelu_backward_bias(dout, dbias, scratch, dout, inp, N, M, stream);
}

template <class X>
std::vector<Version<GeluBackwardBias<X>>> gelu_backward_bias_versions() {
    return {{1, "plain", "GELU's gradient, then its sums by a thread per column", gelu_backward_bias_v1<X>},
            {3, "engine", "what goes back to memory is summed on its way", gelu_backward_bias_engine<X>}};
}

// ---------------------------------------------------------------------------------------------------------------------
// Biases

template <class X>
using AddBias = void (*)(X* out, const X* bias, int64_t N, int64_t M, cudaStream_t stream);

// v1: a thread per element, which must divide to find its column.
template <class X>
__global__ void add_bias_v1_kernel(X* out, const X* bias, int64_t n, int64_t M) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<X>(to_float(out[i]) + to_float(bias[i % M]));
}
template <class X>
void add_bias_v1(X* out, const X* bias, int64_t N, int64_t M, cudaStream_t stream) {
    launch(add_bias_v1_kernel<X>, blocks(ceil_div(N * M, 256)), dim3(256), 0, stream, out, bias, N * M, M);
}

template <class X>
void add_bias_engine(X* out, const X* bias, int64_t N, int64_t M, cudaStream_t stream) {
    add_bias(out, bias, N, M, M, stream);
}

template <class X>
std::vector<Version<AddBias<X>>> add_bias_versions() {
    return {{1, "plain", "a thread per element", add_bias_v1<X>},
            {3, "engine", "a thread keeps its columns' biases, 16 bytes per access", add_bias_engine<X>}};
}

template <class X>
using BiasGelu = void (*)(X* hidden, X* fc, const X* bias, int64_t N, int64_t M, cudaStream_t stream);

// v1: one after the other; fc is written and read again.
template <class X>
void bias_gelu_v1(X* hidden, X* fc, const X* bias, int64_t N, int64_t M, cudaStream_t stream) {
    add_bias_v1(fc, bias, N, M, stream);
    gelu_forward(hidden, static_cast<const X*>(fc), N * M, stream);
}

template <class X>
std::vector<Version<BiasGelu<X>>> bias_gelu_versions() {
    return {{1, "plain", "the bias, then the engine's GELU", bias_gelu_v1<X>},
            {3, "engine", "in one pass", bias_gelu_forward<X>}};
}

}  // namespace lnfree::cuda::lab
