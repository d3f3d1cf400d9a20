// Emulation: CUDA's keywords, its vector types, and the variables that tell a thread where it is.
#pragma once

#include <cstdint>

// NOLINTBEGIN(bugprone-reserved-identifier,bugprone-macro-parentheses,google-explicit-constructor): CUDA's names, types as macro
// arguments, and numbers where a dim3 is wanted.

// What a function is compiled for: here everything is for the same processor. (__noinline__ is left alone, because the
// C++ library's headers use that very word inside attributes.)
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// A raw shared array. The threads of a block all run on one thread of the operating system, one block at a time, so a
// variable of that thread is exactly what they share. Not checked: Shared<T> (shared_memory.h) is.
#define __shared__ static thread_local

// Alignments are CUDA's: a vector of 2 or 4 is one aligned access, one of 3 is three.
#define LNFREE_VECTOR_TYPES(name, T)                                  \
    struct alignas(2 * sizeof(T)) name##2 {                           \
        T x, y;                                                       \
    };                                                                \
    struct name##3 {                                                  \
        T x, y, z;                                                    \
    };                                                                \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { \
        T x, y, z, w;                                                 \
    };                                                                \
    inline name##2 make_##name##2(T x, T y) {                         \
        return {x, y};                                                \
    }                                                                 \
    inline name##3 make_##name##3(T x, T y, T z) {                    \
        return {x, y, z};                                             \
    }                                                                 \
    inline name##4 make_##name##4(T x, T y, T z, T w) {               \
        return {x, y, z, w};                                          \
    }

LNFREE_VECTOR_TYPES(float, float)
LNFREE_VECTOR_TYPES(double, double)
LNFREE_VECTOR_TYPES(int, int)
LNFREE_VECTOR_TYPES(uint, unsigned)
LNFREE_VECTOR_TYPES(short, short)
LNFREE_VECTOR_TYPES(ushort, unsigned short)
LNFREE_VECTOR_TYPES(longlong, long long)
LNFREE_VECTOR_TYPES(ulonglong, unsigned long long)
#undef LNFREE_VECTOR_TYPES

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// Set by the emulation whenever it goes on with another thread (block.h); constants on a GPU, so never assign to them.
inline thread_local uint3 threadIdx = {0, 0, 0};
inline thread_local uint3 blockIdx = {0, 0, 0};
inline thread_local dim3 blockDim;
inline thread_local dim3 gridDim;
inline constexpr int warpSize = 32;
// NOLINTEND(bugprone-reserved-identifier,bugprone-macro-parentheses,google-explicit-constructor)
