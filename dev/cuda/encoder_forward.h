// Encoder, forward:  out[n] = wte[tokens[n]] + wpe[n % T].  out (B,T,C), tokens (B,T), wte (V,C), wpe (T,C)
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

template <class X>
using EncoderForward = void (*)(X* out, const int32_t* tokens, const X* wte, const X* wpe, int64_t B, int64_t T,
                                int64_t C, cudaStream_t stream);

// v1: a thread per element.
template <class X>
__global__ void encoder_forward_v1_kernel(X* out, const int32_t* tokens, const X* wte, const X* wpe, int64_t N,
                                          int64_t T, int64_t C) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= N * C) return;
    const int64_t n = i / C, c = i % C;
    out[i] = from_float<X>(to_float(wte[tokens[n] * C + c]) + to_float(wpe[n % T * C + c]));
}
template <class X>
void encoder_forward_v1(X* out, const int32_t* tokens, const X* wte, const X* wpe, int64_t B, int64_t T, int64_t C,
                        cudaStream_t stream) {
    launch(encoder_forward_v1_kernel<X>, blocks(ceil_div(B * T * C, 256)), dim3(256), 0, stream, out, tokens, wte, wpe,
           B * T, T, C);
}

template <class X>
std::vector<Version<EncoderForward<X>>> encoder_forward_versions() {
    return {{1, "plain", "a thread per element, a division for each", encoder_forward_v1<X>},
            {2, "engine", "a warp per row, 16 bytes per access", encoder_forward<X>}};
}

}  // namespace lnfree::cuda::lab
