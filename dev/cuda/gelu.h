// GELU in GPT-2's tanh form, forward:  x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).  out, inp (n)
#pragma once

#include "lab.h"

namespace lnfree {
namespace cuda {
namespace lab {

template <class X>
using GeluFunction = void (*)(X* out, const X* inp, int64_t n, cudaStream_t stream);

// v1: the formula, a thread per element.
template <class X>
__global__ void gelu_v1_kernel(X* out, const X* inp, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = to_float(inp[i]);
    out[i] = from_float<X>(0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))));
}
template <class X>
void gelu_v1(X* out, const X* inp, int64_t n, cudaStream_t stream) {
    launch(gelu_v1_kernel<X>, blocks(ceil_div(n, 256)), dim3(256), 0, stream, out, inp, n);
}

// v2: (1 + tanh u) / 2 is 1 / (1 + e^-2u): two fast instructions instead of the library's tanh. The accesses are as short
// as before.
template <class X>
__global__ void gelu_v2_kernel(X* out, const X* inp, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = to_float(inp[i]);
    out[i] = from_float<X>(x * gelu_share(x));
}
template <class X>
void gelu_v2(X* out, const X* inp, int64_t n, cudaStream_t stream) {
    launch(gelu_v2_kernel<X>, blocks(ceil_div(n, 256)), dim3(256), 0, stream, out, inp, n);
}

template <class X>
std::vector<Version<GeluFunction<X>>> gelu_versions() {
    return {{1, "plain", "a thread per element, tanhf", gelu_v1<X>},
            {2, "sigmoid", "one exponential and one division instead of tanhf", gelu_v2<X>},
            {3, "engine", "16 bytes per access, two on their way per thread", gelu_forward<X>}};
}

}  // namespace lab
}  // namespace cuda
}  // namespace lnfree
