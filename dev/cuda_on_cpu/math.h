// Emulation: CUDA's arithmetic functions that the C library does not have. Where the GPU has a fast and inexact
// instruction (__expf, __fdividef, rsqrtf) the emulation computes the value itself, so tests against the emulation say
// nothing of those instructions' errors: two units in the last place and less, by the CUDA C++ Programming Guide.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// NOLINTBEGIN(bugprone-reserved-identifier,bugprone-macro-parentheses): CUDA's names, and types as macro arguments.

// The C library's headers declare functions of these names that its libraries do not contain.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)

inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline double rsqrt(double x) {
    return 1.0 / sqrt(x);
}
inline float __fdividef(float x, float y) {
    return x / y;
}
inline float __frcp_rn(float x) {
    return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
inline float __fadd_rn(float x, float y) {
    return x + y;
}
inline float __fmul_rn(float x, float y) {
    return x * y;
}
inline float __fmaf_rn(float x, float y, float z) {
    return fmaf(x, y, z);
}
inline float __saturatef(float x) {
    return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}

namespace lnfree::cuda::emulation {

// The bytes of one type as another of the same size.
template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

}  // namespace lnfree::cuda::emulation

inline unsigned __float_as_uint(float x) {
    return lnfree::cuda::emulation::same_bits<unsigned>(x);
}
inline int __float_as_int(float x) {
    return lnfree::cuda::emulation::same_bits<int>(x);
}
inline float __uint_as_float(unsigned x) {
    return lnfree::cuda::emulation::same_bits<float>(x);
}
inline float __int_as_float(int x) {
    return lnfree::cuda::emulation::same_bits<float>(x);
}
inline int __float2int_rn(float x) {
    return static_cast<int>(nearbyintf(x));
}
inline int __float2int_rz(float x) {
    return static_cast<int>(x);
}
inline float __int2float_rn(int x) {
    return static_cast<float>(x);
}
inline float __uint2float_rn(unsigned x) {
    return static_cast<float>(x);
}

inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __clz(int x) {
    return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline unsigned __umulhi(unsigned x, unsigned y) {
    return static_cast<unsigned>(uint64_t{x} * y >> 32);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}
// Bytes of the eight in (y, x), the lowest being byte 0 of x, chosen by the four nibbles of `selector`.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = uint64_t{y} << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned choice = selector >> (4 * i) & 7;
        result |= static_cast<unsigned>(bytes >> (8 * choice) & 0xff) << (8 * i);
    }
    return result;
}

// CUDA has these in the global namespace. As on the GPU, a NaN loses against a number.
#define LNFREE_MIN_MAX(T)     \
    inline T min(T a, T b) {  \
        return b < a ? b : a; \
    }                         \
    inline T max(T a, T b) {  \
        return a < b ? b : a; \
    }
LNFREE_MIN_MAX(int)
LNFREE_MIN_MAX(unsigned)
LNFREE_MIN_MAX(long)
LNFREE_MIN_MAX(unsigned long)
LNFREE_MIN_MAX(long long)
LNFREE_MIN_MAX(unsigned long long)
#undef LNFREE_MIN_MAX
inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) {
    return fmaxf(a, b);
}
inline double min(double a, double b) {
    return fmin(a, b);
}
inline double max(double a, double b) {
    return fmax(a, b);
}

// Loads and stores with a hint for the caches.
template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcs(const T* p) {
    return *p;
}
template <class T>
T __ldcg(const T* p) {
    return *p;
}
template <class T>
T __ldca(const T* p) {
    return *p;
}
template <class T>
void __stcs(T* p, T value) {
    *p = value;
}
template <class T>
void __stcg(T* p, T value) {
    *p = value;
}
// NOLINTEND(bugprone-reserved-identifier,bugprone-macro-parentheses)
