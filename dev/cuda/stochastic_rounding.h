// Weights in X beside their masters in float, each rounded up or down at random, in proportion to what lies between: element
// i by the i-th number that SplitMix64 gives for the key, of which the lower half of the upper half counts.
// copy, master (n)
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

template <class X>
using StochasticRounding = void (*)(X* copy, const float* master, int64_t n, uint64_t key, cudaStream_t stream);

// v1: a thread takes a stretch and goes on in the generator from one element to the next, as the CPU would. Neighbouring
// threads read 256 bytes apart.
constexpr int64_t kStretch = 64;
template <class X>
__global__ void stochastic_rounding_v1_kernel(X* copy, const float* master, int64_t n, uint64_t key) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kStretch;
    uint64_t state = key + static_cast<uint64_t>(first) * 0x9E3779B97F4A7C15u;
    for (int64_t i = first; i < first + kStretch && i < n; i++) {
        uint64_t z = state += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        copy[i] = from_float_stochastic<X>(master[i], static_cast<uint32_t>((z ^ (z >> 31)) >> 32));
    }
}
template <class X>
void stochastic_rounding_v1(X* copy, const float* master, int64_t n, uint64_t key, cudaStream_t stream) {
    launch(stochastic_rounding_v1_kernel<X>, blocks(ceil_div(n, 64 * kStretch)), dim3(64), 0, stream, copy, master, n,
           key);
}

template <class X>
std::vector<Version<StochasticRounding<X>>> stochastic_rounding_versions() {
    return {{1, "plain", "a thread per 64 elements, from one state of the generator to the next",
             stochastic_rounding_v1<X>},
            {2, "engine", "a thread per element, its bits a function of its number", round_stochastically<X>}};
}

}  // namespace lnfree::cuda::lab
