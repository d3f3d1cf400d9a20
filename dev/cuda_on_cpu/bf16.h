// bf16, the upper half of a float: its sign, its 8 bits of exponent and 7 of its 23 bits of fraction. Ours and not the
// toolkit's __nv_bfloat16, so that machines without the toolkit compile and test the same kernels; no arithmetic,
// because the kernels compute in float and only store in bf16. Stands alone, for nvcc and for any C++ compiler.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __CUDACC__
#include <cuda_bf16.h>
#define LNFREE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LNFREE_HOST_DEVICE inline
#endif

namespace lnfree::cuda {

struct bf16 {
    uint16_t bits;
};
static_assert(sizeof(bf16) == 2, "as it lies in memory");

// The same 32 bits as another type.
LNFREE_HOST_DEVICE uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
#endif
}
LNFREE_HOST_DEVICE float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
#endif
}

// Exact.
LNFREE_HOST_DEVICE float to_float(float value) {
    return value;
}
LNFREE_HOST_DEVICE float to_float(bf16 value) {
    return float_of(static_cast<uint32_t>(value.bits) << 16);
}

// The NaN that the GPU's conversion makes of every NaN.
constexpr uint16_t bf16_nan = 0x7fff;

// To the nearest, ties to even, as IEEE 754 does it: overflow gives infinity. Every NaN becomes bf16_nan.
LNFREE_HOST_DEVICE bf16 round_to_bf16(float value) {
#ifdef __CUDA_ARCH__
    return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
    const uint32_t bits = bits_of(value);
    if (value != value) return bf16{bf16_nan};
    // Half of the last place kept, less one where that place is even: a carry rounds up, through the exponent too.
    return bf16{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}

// Up or down with the probability that makes the mean of the results `value`, taken from the lower 16 of random_bits.
// Values above the largest finite bf16 may become infinite; NaN becomes bf16_nan.
LNFREE_HOST_DEVICE bf16 round_to_bf16_stochastic(float value, uint32_t random_bits) {
    if (value != value) return bf16{bf16_nan};
    if ((bits_of(value) & 0x7fffffff) == 0x7f800000) return bf16{static_cast<uint16_t>(bits_of(value) >> 16)};
    return bf16{static_cast<uint16_t>((bits_of(value) + (random_bits & 0xffff)) >> 16)};
}

// A float as an X, float or bf16, so that a kernel can be a template of how it stores: rounded as round_to_bf16 does.
template <class X>
LNFREE_HOST_DEVICE X from_float(float value);
template <>
LNFREE_HOST_DEVICE float from_float<float>(float value) {
    return value;
}
template <>
LNFREE_HOST_DEVICE bf16 from_float<bf16>(float value) {
    return round_to_bf16(value);
}

// The same with stochastic rounding; a float stays as it is.
template <class X>
LNFREE_HOST_DEVICE X from_float_stochastic(float value, uint32_t random_bits);
template <>
LNFREE_HOST_DEVICE float from_float_stochastic<float>(float value, uint32_t) {
    return value;
}
template <>
LNFREE_HOST_DEVICE bf16 from_float_stochastic<bf16>(float value, uint32_t random_bits) {
    return round_to_bf16_stochastic(value, random_bits);
}

// Two values rounded to bf16 as one register: `low` in the lower half, which comes first in memory. What the fragments of
// mma_m16n8k16 are made of; one instruction on the GPU.
LNFREE_HOST_DEVICE uint32_t pack_bf16(float low, float high) {
#ifdef __CUDA_ARCH__
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return static_cast<uint32_t>(round_to_bf16(high).bits) << 16 | round_to_bf16(low).bits;
#endif
}

}  // namespace lnfree::cuda
