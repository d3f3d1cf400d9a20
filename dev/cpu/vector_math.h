// exp, the logistic function (tanh, shifted), the error function and a maximum for inner loops: straight-line arithmetic, so that the compiler
// makes vector code of a plain loop around them for whatever instruction set it compiles for.
// test/isa/test_vector_math.cpp holds the errors stated here.
// (Functions here are in a namespace without a name: they are compiled once per instruction set, and of several copies of
// one function a linker would keep the first that it meets.)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace lnfree {
namespace {

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

// The logistic function 1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2. Relative error below 4e-7 wherever the result is a normal
// number, 0 below -88.73; NaN for NaN.
inline float fast_logistic(float x) {
    return 1.0f / (1.0f + fast_exp(-x));
}

inline double fast_logistic(double x) {
    return 1.0 / (1.0 + std::exp(-x));
}

// The error function. Absolute error below 7e-7; NaN for NaN. Abramowitz and Stegun, 7.1.26.
inline float fast_erf(float x) {
    const float magnitude = x < 0.0f ? -x : x, t = 1.0f / (1.0f + 0.3275911f * magnitude);
    float sum = 1.061405429f;
    sum = sum * t - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = sum * t + 0.254829592f;
    const float of_magnitude = 1.0f - sum * t * fast_exp(-x * x);
    return x < 0.0f ? -of_magnitude : of_magnitude;
}

inline double fast_erf(double x) {
    return std::erf(x);
}

// The largest of x[0..n), n > 0; NaN are passed over, unless x[0] is one. In lanes of its own, because compilers may not
// take a maximum in another order than the source's while NaN and signed zeros count.
template <class Real>
Real largest_of(const Real* x, int64_t n) {
    constexpr int64_t LANES = 16;
    Real lane[LANES];
    std::fill(lane, lane + LANES, x[0]);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
        for (int64_t j = 0; j < LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    }
    for (int64_t j = 0; i + j < n; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    return *std::max_element(lane, lane + LANES);
}

}  // namespace
}  // namespace lnfree
