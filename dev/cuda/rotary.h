// Rotary positions: numbers i and i + R/2 of every head of queries and of keys, i < R/2, turn by an angle of the position's.
// qkv (B,T,Q), in place; turns (T,R/2,2): cosine and sine; way: 1, or -1 to turn back, which is the backward
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

template <class X>
using Rotary = void (*)(X* qkv, const float* turns, int64_t B, int64_t T, const Heads& heads, int64_t R, float way,
                        cudaStream_t stream);

// v1: a thread per pair. Its neighbours read what lies beside it, but two bytes at a time, and each asks with four divisions
// which pair is its own.
template <class X>
__global__ void rotary_v1_kernel(X* qkv, const float* turns, int64_t pairs, int64_t T, int64_t row, int64_t heads,
                                 int64_t HS, int64_t half, float way) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= pairs) return;
    const int64_t pair = i % half, head = i / half % heads, n = i / half / heads;
    X *x = qkv + n * row + head * HS + pair, *y = x + half;
    const float* turn = turns + (n % T * half + pair) * 2;
    const float cosine = turn[0], sine = way * turn[1], a = to_float(*x), b = to_float(*y);
    *x = from_float<X>(cosine * a - sine * b);
    *y = from_float<X>(cosine * b + sine * a);
}
template <class X>
void rotary_v1(X* qkv, const float* turns, int64_t B, int64_t T, const Heads& heads, int64_t R, float way,
               cudaStream_t stream) {
    const int64_t turning = heads.NH + heads.KH, pairs = B * T * turning * (R / 2);
    launch(rotary_v1_kernel<X>, blocks(ceil_div(pairs, 256)), dim3(256), 0, stream, qkv, turns, pairs, T, heads.row(),
           turning, heads.HS, R / 2, way);
}

template <class X>
std::vector<Version<Rotary<X>>> rotary_versions() {
    return {{1, "plain", "a thread per pair", rotary_v1<X>},
            {2, "engine", "a warp per position, 16 bytes of either half at a time", rotary<X>}};
}

}  // namespace lnfree::cuda::lab
