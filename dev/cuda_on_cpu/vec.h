// n values that are read or written by one instruction. 16 bytes are the most that a GPU moves at once for a thread; a
// longer Vec takes several. In the emulation: a copy that insists on the alignment that the instruction needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "../../data/error.h"
#include "bf16.h"

namespace lnfree::cuda {

template <class X, int n>
struct alignas(n * sizeof(X)) Vec {
    static_assert((n & (n - 1)) == 0 && n * sizeof(X) <= 128, "a power of two of values, 128 bytes at most");
    X v[n];
    LNFREE_HOST_DEVICE X& operator[](int i) { return v[i]; }
    LNFREE_HOST_DEVICE const X& operator[](int i) const { return v[i]; }
};

#ifdef __CUDACC__

// The instruction that moves `bytes` bytes.
template <size_t bytes>
struct VectorWord {
    using Type = uint4;
};
template <>
struct VectorWord<8> {
    using Type = uint2;
};
template <>
struct VectorWord<4> {
    using Type = unsigned;
};
template <>
struct VectorWord<2> {
    using Type = unsigned short;
};

// The n values at p, which must be aligned to n * sizeof(X) or 16 bytes, whichever is less.
template <int n, class X>
__device__ __forceinline__ Vec<X, n> load_vec(const X* p) {
    using Word = typename VectorWord<sizeof(Vec<X, n>)>::Type;
    Vec<X, n> values;
#pragma unroll
    for (size_t i = 0; i < sizeof(values) / sizeof(Word); ++i)
        reinterpret_cast<Word*>(&values)[i] = reinterpret_cast<const Word*>(p)[i];
    return values;
}

// The same for what this kernel reads only once: the caches keep other things instead.
template <int n, class X>
__device__ __forceinline__ Vec<X, n> load_vec_streaming(const X* p) {
    using Word = typename VectorWord<sizeof(Vec<X, n>)>::Type;
    Vec<X, n> values;
#pragma unroll
    for (size_t i = 0; i < sizeof(values) / sizeof(Word); ++i)
        reinterpret_cast<Word*>(&values)[i] = __ldcs(reinterpret_cast<const Word*>(p) + i);
    return values;
}

// Writes the n values to p, aligned as for load_vec.
template <class X, int n>
__device__ __forceinline__ void store_vec(X* p, const Vec<X, n>& values) {
    using Word = typename VectorWord<sizeof(Vec<X, n>)>::Type;
#pragma unroll
    for (size_t i = 0; i < sizeof(values) / sizeof(Word); ++i)
        reinterpret_cast<Word*>(p)[i] = reinterpret_cast<const Word*>(&values)[i];
}

// The same for what is not read again soon.
template <class X, int n>
__device__ __forceinline__ void store_vec_streaming(X* p, const Vec<X, n>& values) {
    using Word = typename VectorWord<sizeof(Vec<X, n>)>::Type;
#pragma unroll
    for (size_t i = 0; i < sizeof(values) / sizeof(Word); ++i)
        __stcs(reinterpret_cast<Word*>(p) + i, reinterpret_cast<const Word*>(&values)[i]);
}

#else

namespace emulation {

// Throws RunFailure where a GPU would stop with "misaligned address".
inline void check_alignment(const void* p, size_t bytes) {
    const size_t needed = bytes < 16 ? bytes : 16;
    if (reinterpret_cast<uintptr_t>(p) % needed != 0)
        throw RunFailure("an access to " + std::to_string(bytes) +
                         " bytes at once at an address that is no multiple of " + std::to_string(needed));
}

}  // namespace emulation

// The n values at p, which must be aligned to n * sizeof(X) or 16 bytes, whichever is less.
template <int n, class X>
Vec<X, n> load_vec(const X* p) {
    emulation::check_alignment(p, sizeof(Vec<X, n>));
    Vec<X, n> values;
    std::memcpy(values.v, p, sizeof(values.v));
    return values;
}
template <int n, class X>
Vec<X, n> load_vec_streaming(const X* p) {
    return load_vec<n>(p);
}

// Writes the n values to p, aligned as for load_vec.
template <class X, int n>
void store_vec(X* p, const Vec<X, n>& values) {
    emulation::check_alignment(p, sizeof(values.v));
    std::memcpy(p, values.v, sizeof(values.v));
}
template <class X, int n>
void store_vec_streaming(X* p, const Vec<X, n>& values) {
    store_vec(p, values);
}

#endif

}  // namespace lnfree::cuda
