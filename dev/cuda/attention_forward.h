// The ladder of causal self-attention, forward. The engine holds versions 2 and 3.
//
//   v1  one thread per query, which reads every key before it three times: for the largest score, for the sum of
//       exponentials, for the sum of values. Every thread reads all of it from memory by itself.
//   v2  flash attention in float: a block of queries shares tiles of keys and values in shared memory, and one pass is
//       enough because the softmax is rescaled when a larger score comes. (engine: attention_forward_plain)
//   v3  the same with tensor cores: scores and weights never leave the registers, tiles are copied in the background.
//       bf16 only. (engine: attention_forward_tensor_cores<bf16>)
#pragma once

#include <type_traits>
#include <vector>

#include "attention_check.h"
#include "lab.h"

namespace lnfree::cuda::lab {
namespace attention_v1 {

constexpr int largest_head = 256, threads = 64;

template <class X>
__device__ float dot(const X* a, const X* b, int HS) {
    float sum = 0;
    for (int d = 0; d < HS; ++d) sum += to_float(a[d]) * to_float(b[d]);
    return sum;
}

// Thread (b * NH + h) * T + t computes row t of a head.
template <class X>
__global__ void forward_kernel(X* out, float* lse, const X* qkv, int64_t B, int64_t T, int64_t C, int64_t NH) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= B * NH * T) return;
    const int HS = static_cast<int>(C / NH);
    const int64_t t = row % T, h = row / T % NH, b = row / T / NH, stride = 3 * C;
    const float scale = 1.0f / sqrtf(static_cast<float>(HS));
    const X* first_q = qkv + b * T * stride + h * HS;
    const X *q = first_q + t * stride, *k = first_q + C, *v = first_q + 2 * C;

    float largest = -attention::kInfinity;
    for (int64_t u = 0; u <= t; ++u) largest = fmaxf(largest, scale * dot(q, k + u * stride, HS));
    float sum = 0;
    for (int64_t u = 0; u <= t; ++u) sum += expf(scale * dot(q, k + u * stride, HS) - largest);
    float weighted[largest_head] = {};
    for (int64_t u = 0; u <= t; ++u) {
        const float p = expf(scale * dot(q, k + u * stride, HS) - largest) / sum;
        for (int d = 0; d < HS; ++d) weighted[d] += p * to_float(v[u * stride + d]);
    }
    for (int d = 0; d < HS; ++d) out[(b * T + t) * C + h * HS + d] = from_float<X>(weighted[d]);
    lse[row] = largest + logf(sum);
}

// Head sizes up to 256, every head with its own keys.
template <class X>
void attention_forward(X* out, float* lse, const X* qkv, int64_t B, int64_t T, const Heads& heads,
                       cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>((B * heads.NH * T + threads - 1) / threads));
    launch(forward_kernel<X>, grid, dim3(threads), 0, stream, out, lse, qkv, B, T, heads.width(), heads.NH);
}

}  // namespace attention_v1

template <class X>
std::vector<Version<attention_check::Forward<X>>> attention_forward_versions() {
    std::vector<Version<attention_check::Forward<X>>> versions = {
        {1, "a thread per query", "reads every key three times", attention_v1::attention_forward<X>},
        {2, "flash (engine)", "tiles in shared memory, used by 32 rows", attention_forward_plain<X>},
    };
    if constexpr (std::is_same_v<X, bf16>)
        versions.push_back(
            {3, "tensor cores (engine)", "weights never leave the registers", attention_forward_tensor_cores<X>});
    return versions;
}

}  // namespace lnfree::cuda::lab
