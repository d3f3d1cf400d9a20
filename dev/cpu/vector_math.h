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

}  // namespace vector_math

// e^x. Relative error below 2e-7 wherever the result is a normal number; +inf above 88.37, 0 below -87.69, NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, e^x = 2^n e^r, and e^r by a polynomial with 1 + r exact and the largest relative error
// as small as it can be (7e-9 with the five others, found by linear programming; with four, 9e-8, the sum of all errors
// would pass 2e-7). 2^n is its exponent's bits: those of n = -127 and n = 128 are 0's and infinity's, so that x need only be
// kept between the two.
inline float fast_exp(float x) {
    constexpr float log2_e = 1.44269504f;
    constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // ln2_high has few bits: n * ln2_high is exact
    constexpr float round_magic =
        12582912.0f + 127.0f;               // adding 1.5 * 2^23 rounds to an integer; 127: an exponent's bias
    float clamped = x > 88.8f ? 88.8f : x;  // NaN passes both comparisons
    clamped = clamped < -88.0f ? -88.0f : clamped;
    const float shifted = clamped * log2_e + round_magic;
    const float n = shifted - round_magic;
    float r = clamped - n * ln2_high;
    r = r - n * ln2_low;
    float sum = 0.00139540550f;
    sum = sum * r + 0.00837537181f;
    sum = sum * r + 0.0416668244f;
    sum = sum * r + 0.166664481f;
    sum = sum * r + 0.499999940f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return sum * vector_math::from_bits(vector_math::bits_of(shifted) << 23);
}

inline double fast_exp(double x) {
    return std::exp(x);
}

// The logistic function 1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2. Relative error below 4e-7 wherever the result is a normal
// number, 0 below -88.37; NaN for NaN.
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
