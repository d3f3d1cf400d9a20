// Causal self-attention for decoding: T new positions of each of B sequences look at themselves and at the `first` ones
// before them, whose keys and values are in the cache, where the new ones' go too.
// out (B,T,C), qkv (B,T,3C), cache (B,capacity,2C): keys, then values, of every position; head sizes up to 256
#pragma once

#include "lab.h"

namespace lnfree::cuda::lab {

template <class X>
using AttentionCached = void (*)(X* out, X* cache, const X* qkv, int64_t B, int64_t T, int64_t first, int64_t capacity,
                                 const Heads& heads, cudaStream_t stream);

// The first half of v1 and v2, where every head has its own keys, is the engine's: keys and values into the cache.
template <class X>
void append_to_cache(X* cache, const X* qkv, int64_t B, int64_t T, int64_t first, int64_t capacity, int64_t C,
                     cudaStream_t stream) {
    launch_dependent(append_to_cache_kernel<X>, blocks(ceil_div(B * T * 2 * C, 256)), dim3(256), 0, stream, cache, qkv,
                     B, T, first, capacity, C, 2 * C);
}

// One head of one new position.
template <class X>
struct CachedHead {
    int64_t C, HS, keys;  // channels, of a head, and positions to look at
    const X *q, *key;
    X* out;

    __device__ CachedHead(X* out_, const X* qkv, const X* cache, int64_t row, int64_t T, int64_t first,
                          int64_t capacity, int64_t C_, int64_t NH)
        : C(C_), HS(C_ / NH), keys(first + row / NH % T + 1) {
        const int64_t n = row / NH, head = row % NH;
        q = qkv + n * 3 * C + head * HS;
        key = cache + n / T * capacity * 2 * C + head * HS;
        out = out_ + n * C + head * HS;
    }
    __device__ float score(int64_t u) const {
        float sum = 0;
        for (int64_t c = 0; c < HS; c++) sum += to_float(q[c]) * to_float(key[u * 2 * C + c]);
        return sum * rsqrtf(static_cast<float>(HS));
    }
    __device__ float value(int64_t u, int64_t c) const { return to_float(key[u * 2 * C + C + c]); }
};

// v1: a thread per head of a position reads the keys twice, for the largest score and for the weights. A few hundred
// threads, each alone with its head, are nothing to a GPU.
constexpr int kMostChannels = 256;
template <class X>
__global__ void attention_cached_v1_kernel(X* out, const X* qkv, const X* cache, int64_t B, int64_t T, int64_t first,
                                           int64_t capacity, int64_t C, int64_t NH) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= B * T * NH) return;
    const CachedHead<X> head(out, qkv, cache, row, T, first, capacity, C, NH);
    float largest = -INFINITY, sum = 0, mean[kMostChannels] = {};
    for (int64_t u = 0; u < head.keys; u++) largest = fmaxf(largest, head.score(u));
    for (int64_t u = 0; u < head.keys; u++) {
        const float p = expf(head.score(u) - largest);
        sum += p;
        for (int64_t c = 0; c < head.HS; c++) mean[c] += p * head.value(u, c);
    }
    for (int64_t c = 0; c < head.HS; c++) head.out[c] = from_float<X>(mean[c] / sum);
}
template <class X>
void attention_cached_v1(X* out, X* cache, const X* qkv, int64_t B, int64_t T, int64_t first, int64_t capacity,
                         const Heads& heads, cudaStream_t stream) {
    const int64_t C = heads.width(), NH = heads.NH;
    append_to_cache(cache, qkv, B, T, first, capacity, C, stream);
    launch(attention_cached_v1_kernel<X>, blocks(ceil_div(B * T * NH, 32)), dim3(32), 0, stream, out, qkv,
           static_cast<const X*>(cache), B, T, first, capacity, C, NH);
}

// v2: a block per head of a position: its threads share out the keys, then, the weights being in shared memory, the
// channels. All keys are worked on together, but a lane reads a key from end to end, so that neighbouring lanes read rows
// that lie 2C apart; and the weights must fit shared memory.
template <class X>
__global__ void attention_cached_v2_kernel(X* out, const X* qkv, const X* cache, int64_t T, int64_t first,
                                           int64_t capacity, int64_t C, int64_t NH) {
    SharedMemory shared;
    const Shared<float> partial = shared.take<float>(kWarp), weights = shared.take<float>(first + T);
    const CachedHead<X> head(out, qkv, cache, blockIdx.x, T, first, capacity, C, NH);
    float largest = -INFINITY, sum = 0;
    for (int64_t u = threadIdx.x; u < head.keys; u += blockDim.x) {
        const float score = head.score(u);
        weights[u] = score;
        largest = fmaxf(largest, score);
    }
    largest = block_max(largest, partial);
    for (int64_t u = threadIdx.x; u < head.keys; u += blockDim.x) {
        const float p = __expf(weights[u] - largest);
        weights[u] = p;
        sum += p;
    }
    sum = block_sum(sum, partial);
    for (int64_t c = threadIdx.x; c < head.HS; c += blockDim.x) {
        float mean = 0;
        for (int64_t u = 0; u < head.keys; u++) mean += weights[u] * head.value(u, c);
        head.out[c] = from_float<X>(mean / sum);
    }
}
template <class X>
void attention_cached_v2(X* out, X* cache, const X* qkv, int64_t B, int64_t T, int64_t first, int64_t capacity,
                         const Heads& heads, cudaStream_t stream) {
    const int64_t C = heads.width(), NH = heads.NH;
    append_to_cache(cache, qkv, B, T, first, capacity, C, stream);
    const size_t bytes = shared_bytes_of<float>(kWarp) + shared_bytes_of<float>(first + T);
    launch(attention_cached_v2_kernel<X>, blocks(B * T * NH), dim3(128), bytes, stream, out, qkv,
           static_cast<const X*>(cache), T, first, capacity, C, NH);
}

template <class X>
std::vector<Version<AttentionCached<X>>> attention_cached_versions() {
    return {
        {1, "plain", "a thread per head of a position, keys read twice", attention_cached_v1<X>},
        {2, "block", "a block per head: threads share the keys, then the channels", attention_cached_v2<X>},
        {3, "engine", "a warp per head, its lanes the channels; one read, the softmax online", attention_cached<X>}};
}

}  // namespace lnfree::cuda::lab
