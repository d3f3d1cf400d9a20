// exp and tanh for inner loops: straight-line arithmetic, so that the compiler makes vector code of a plain loop around
// them for whatever instruction set it compiles for. test/isa/test_vector_math.cpp holds the errors stated here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lnfree {

namespace vector_math {

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// 2^n for n in [-126, 127], by writing the exponent.
inline float power_of_two(int32_t n) {
    return from_bits(static_cast<uint32_t>(n + 127) << 23);
}

}  // namespace vector_math

// e^x. Relative error below 2e-7 wherever the result is a normal number; +inf above 88.73, 0 below -104, NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, e^x = 2^n e^r, and e^r by its Taylor series up to r^7 (the next term is 5e-9).
inline float fast_exp(float x) {
    constexpr float log2_e = 1.44269504f;
    constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // ln2_high has few bits: n * ln2_high is exact
    constexpr float round_magic = 12582912.0f;                           // 1.5 * 2^23: adding it rounds to an integer
    float clamped = x > 89.0f ? 89.0f : x;                               // NaN passes both comparisons
    clamped = clamped < -104.0f ? -104.0f : clamped;
    const float shifted = clamped * log2_e + round_magic;
    const float n = shifted - round_magic;
    const auto exponent = static_cast<int32_t>(vector_math::bits_of(shifted) - vector_math::bits_of(round_magic));
    float r = clamped - n * ln2_high;
    r = r - n * ln2_low;
    float sum = 1.0f / 5040.0f;
    sum = sum * r + 1.0f / 720.0f;
    sum = sum * r + 1.0f / 120.0f;
    sum = sum * r + 1.0f / 24.0f;
    sum = sum * r + 1.0f / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    // In two factors, because 2^n alone may be out of range where the product overflows or becomes subnormal. The mask
    // keeps a NaN's meaningless exponent within the shifts.
    const int32_t half = (exponent & 0x3ff) - ((exponent & 0x200) << 1);
    const int32_t first = half >> 1;
    return sum * vector_math::power_of_two(first) * vector_math::power_of_two(half - first);
}

inline double fast_exp(double x) {
    return std::exp(x);
}

// tanh x. Relative error below 5e-7, absolute error below 1.2e-7; NaN for NaN.
//
// Near zero the odd Taylor series up to x^9 (the next term is 8e-9 of x at 0.25); elsewhere 1 - 2 / (e^2|x| + 1) with x's sign.
inline float fast_tanh(float x) {
    const float magnitude = std::fabs(x);
    const float square = x * x;
    float series = 62.0f / 2835.0f;
    series = series * square - 17.0f / 315.0f;
    series = series * square + 2.0f / 15.0f;
    series = series * square - 1.0f / 3.0f;
    const float near = x + x * square * series;
    const float far = std::copysign(1.0f - 2.0f / (fast_exp(2.0f * magnitude) + 1.0f), x);
    return magnitude < 0.25f ? near : far;
}

inline double fast_tanh(double x) {
    return std::tanh(x);
}

}  // namespace lnfree
