// The ladder of causal self-attention, backward. The engine holds versions 2 and 3.
//
//   v1  one thread per position: as a query it reads every key before it and sums dq, as a key it reads every query
//       after it and sums dk and dv.
//   v2  flash attention in float: one kernel owns blocks of keys, one owns blocks of queries, both share tiles of the
//       other side in shared memory. (engine: attention_backward_plain)
//   v3  the same with tensor cores. bf16 only. (engine: attention_backward_tensor_cores<bf16>)
//
// All remake the probabilities from lse, and none uses atomics.
#pragma once

#include <type_traits>
#include <vector>

#include "attention_check.h"
#include "attention_forward.h"
#include "lab.h"

namespace lnfree::cuda::lab {
namespace attention_v1 {

// One head of one sequence.
template <class X>
struct Head {
    const X *q, *k, *v, *dout, *out;
    const float* lse;
    int64_t stride, C;  // from one position to the next: of q, k and v; of dout and out
    int HS;

    // p(t,u) and ds(t,u), ds = scale * p * (dout(t) . v(u) - dout(t) . out(t))
    __device__ float2 weights(int64_t t, int64_t u) const {
        const float scale = 1.0f / sqrtf(static_cast<float>(HS));
        const float p = expf(scale * dot(q + t * stride, k + u * stride, HS) - lse[t]);
        const float dp = dot(dout + t * C, v + u * stride, HS), delta = dot(dout + t * C, out + t * C, HS);
        return make_float2(p, scale * p * (dp - delta));
    }
};

// Thread (b * NH + h) * T + t computes dq, dk and dv of position t of a head.
template <class X>
__global__ void backward_kernel(X* dqkv, const X* dout, const X* qkv, const X* out, const float* lse, int64_t B,
                                int64_t T, int64_t C, int64_t NH) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= B * NH * T) return;
    const int HS = static_cast<int>(C / NH);
    const int64_t t = row % T, h = row / T % NH, b = row / T / NH, stride = 3 * C;
    const X* q = qkv + b * T * stride + h * HS;
    const int64_t in_out = b * T * C + h * HS;
    const Head<X> head = {q, q + C, q + 2 * C, dout + in_out, out + in_out, lse + row - t, stride, C, HS};

    X* to = dqkv + (b * T + t) * stride + h * HS;
    float dq[largest_head] = {};
    for (int64_t u = 0; u <= t; ++u) {
        const float ds = head.weights(t, u).y;
        for (int d = 0; d < HS; ++d) dq[d] += ds * to_float(head.k[u * stride + d]);
    }
    for (int d = 0; d < HS; ++d) to[d] = from_float<X>(dq[d]);

    float dk[largest_head] = {}, dv[largest_head] = {};
    for (int64_t later = t; later < T; ++later) {
        const float2 weights = head.weights(later, t);
        for (int d = 0; d < HS; ++d) {
            dk[d] += weights.y * to_float(head.q[later * stride + d]);
            dv[d] += weights.x * to_float(head.dout[later * C + d]);
        }
    }
    for (int d = 0; d < HS; ++d) {
        to[C + d] = from_float<X>(dk[d]);
        to[2 * C + d] = from_float<X>(dv[d]);
    }
}

// Head sizes up to 256, every head with its own keys. Needs no scratch memory.
template <class X>
void attention_backward(X* dqkv, float*, const X* dout, const X* qkv, const X* out, const float* lse, int64_t B,
                        int64_t T, const Heads& heads, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>((B * heads.NH * T + threads - 1) / threads));
    launch(backward_kernel<X>, grid, dim3(threads), 0, stream, dqkv, dout, qkv, out, lse, B, T, heads.width(),
           heads.NH);
}

}  // namespace attention_v1

template <class X>
std::vector<Version<attention_check::Backward<X>>> attention_backward_versions() {
    std::vector<Version<attention_check::Backward<X>>> versions = {
        {1, "a thread per position", "reads every key before it and every query after it",
         attention_v1::attention_backward<X>},
        {2, "flash (engine)", "tiles in shared memory, used by 32 rows", attention_backward_plain<X>},
    };
    if constexpr (std::is_same_v<X, bf16>)
        versions.push_back(
            {3, "tensor cores (engine)", "weights never leave the registers", attention_backward_tensor_cores<X>});
    return versions;
}

}  // namespace lnfree::cuda::lab
