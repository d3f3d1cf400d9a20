// Encoder, backward: row n of dout is added to row tokens[n] of dwte and to row n % T of dwpe. Several positions may hold
// the same token, and their rows must be added in a fixed order, without atomics.
// dwte (V,C), dwpe (T,C), dout (B,T,C), tokens (B,T), sorted: what sort_positions makes of the tokens, scratch:
// encoder_backward_scratch floats
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

template <class X>
using EncoderBackward = void (*)(float* dwte, float* dwpe, float* scratch, const X* dout, const int32_t* tokens,
                                 const int32_t* sorted, int64_t B, int64_t T, int64_t C, cudaStream_t stream);

// v1: a thread per channel walks over all positions, as the CPU does. C threads are few for a GPU.
template <class X>
__global__ void encoder_backward_v1_kernel(float* dwte, float* dwpe, const X* dout, const int32_t* tokens, int64_t N,
                                           int64_t T, int64_t C) {
    const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= C) return;
    for (int64_t n = 0; n < N; n++) {
        const float d = to_float(dout[n * C + c]);
        dwte[tokens[n] * C + c] += d;
        dwpe[n % T * C + c] += d;
    }
}
template <class X>
void encoder_backward_v1(float* dwte, float* dwpe, float*, const X* dout, const int32_t* tokens, const int32_t*,
                         int64_t B, int64_t T, int64_t C, cudaStream_t stream) {
    launch(encoder_backward_v1_kernel<X>, blocks(ceil_div(C, 32)), dim3(32), 0, stream, dwte, dwpe, dout, tokens, B * T,
           T, C);
}

// v2: positions sorted by token on the host; a thread per element of a piece's sum.
template <class X>
__global__ void encoder_backward_v2_kernel(float* dwte, const X* dout, const int32_t* sorted, SortedPositions layout,
                                           int64_t C) {
    const int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
    const int32_t first = static_cast<int32_t>(blockIdx.x), pieces = sorted[0];
    if (c >= C || first >= pieces) return;
    const int32_t* piece = sorted + layout.pieces();  // begin, end, token, row of each
    const int32_t token = piece[4 * first + 2];
    if (first > 0 && piece[4 * (first - 1) + 2] == token) return;  // the block of the run's first piece takes all of it
    float sum = 0;
    for (int32_t p = first; p < pieces && piece[4 * p + 2] == token; p++)
        for (int32_t i = piece[4 * p]; i < piece[4 * p + 1]; i++)
            sum += to_float(dout[sorted[layout.positions() + i] * C + c]);
    dwte[token * C + c] += sum;
}
template <class X>
__global__ void encoder_backward_v2_positions_kernel(float* dwpe, const X* dout, int64_t B, int64_t T, int64_t C) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= T * C) return;
    float sum = 0;
    for (int64_t b = 0; b < B; b++) sum += to_float(dout[b * T * C + i]);
    dwpe[i] += sum;
}
template <class X>
void encoder_backward_v2(float* dwte, float* dwpe, float*, const X* dout, const int32_t*, const int32_t* sorted,
                         int64_t B, int64_t T, int64_t C, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(B * T), static_cast<unsigned>(ceil_div(C, 128)));
    launch(encoder_backward_v2_kernel<X>, grid, dim3(128), 0, stream, dwte, dout, sorted, SortedPositions{B * T}, C);
    launch(encoder_backward_v2_positions_kernel<X>, blocks(ceil_div(T * C, 256)), dim3(256), 0, stream, dwpe, dout, B,
           T, C);
}

template <class X>
void encoder_backward_engine(float* dwte, float* dwpe, float* scratch, const X* dout, const int32_t*,
                             const int32_t* sorted, int64_t B, int64_t T, int64_t C, cudaStream_t stream) {
    encoder_backward(dwte, dwpe, scratch, dout, sorted, B, T, C, stream);
}

template <class X>
std::vector<Version<EncoderBackward<X>>> encoder_backward_versions() {
    return {{1, "plain", "a thread per channel walks over all positions", encoder_backward_v1<X>},
            {2, "sorted", "the host sorts positions by token: a block per run", encoder_backward_v2<X>},
            {3, "engine", "runs cut into pieces, 16 bytes per access, eight rows on their way",
             encoder_backward_engine<X>}};
}

}  // namespace lnfree::cuda::lab
