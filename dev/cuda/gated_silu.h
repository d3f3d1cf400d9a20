// Gated SiLU, forward: of a row's 2H numbers the first H, g, open gates for the others, u:  out = g / (1 + e^-g) * u.
// out (N,H), inp (N,2H)
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

template <class X>
using GatedSilu = void (*)(X* out, const X* inp, int64_t N, int64_t H, cudaStream_t stream);

// v1: the formula, a thread per element.
template <class X>
__global__ void gated_silu_v1_kernel(X* out, const X* inp, int64_t n, int64_t H) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const X* row = inp + i / H * 2 * H;
    const float g = to_float(row[i % H]), u = to_float(row[H + i % H]);
    out[i] = from_float<X>(g / (1.0f + expf(-g)) * u);
}
template <class X>
void gated_silu_v1(X* out, const X* inp, int64_t N, int64_t H, cudaStream_t stream) {
    launch(gated_silu_v1_kernel<X>, blocks(ceil_div(N * H, 256)), dim3(256), 0, stream, out, inp, N * H, H);
}

template <class X>
std::vector<Version<GatedSilu<X>>> gated_silu_versions() {
    return {{1, "plain", "a thread per element", gated_silu_v1<X>},
            {2, "engine", "a warp per row, 16 bytes at a time, fast exponential and division", gated_silu_forward<X>}};
}

}  // namespace lnfree::cuda::lab
